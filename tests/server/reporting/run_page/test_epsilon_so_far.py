"""Epsilon so far is a bound on what the rounds so far have cost, and ends where the run's own bound is."""

import json
from pathlib import Path

import pytest

from common.privacy.accounting import spent_by
from common.privacy.events import DpSgdEvent, from_json
from server.reporting.run_page.epsilon_so_far import epsilon_so_far
from tests.support.server.run_folders import PRIVATE, RunOnDisk


def statement(folder: Path, **more: object) -> dict[str, object]:
    RunOnDisk(PRIVATE | dict(more), rounds=4, planned=4).write(folder)  # type: ignore[arg-type]
    return dict(json.loads((folder / "privacy.json").read_text()))


def test_each_round_costs_what_its_events_cost(tmp_path: Path) -> None:
    # Batches of a half make several steps a round.
    privacy = statement(tmp_path / "run", **{"privacy.metrics": "none", "training.batch-size": 20})
    event = from_json(privacy["clients"]["north"]["events"]["training"][0])  # type: ignore[index]
    assert isinstance(event, DpSgdEvent)
    assert event.steps > 4
    found = epsilon_so_far(privacy, 4)

    for number, spent in enumerate(found, 1):
        exact = spent_by([event.counted(event.steps // 4 * number)], delta=1e-5)
        assert exact.pld - 1e-9 <= spent.pld <= exact.pld + 0.01  # the coarse grid rounds up
        assert spent.rdp == pytest.approx(exact.rdp)
    assert found[-1].pld == privacy["epsilon_max"]


def test_the_closing_counts_come_after_the_last_round(tmp_path: Path) -> None:
    privacy = statement(tmp_path / "run", **{"privacy.noise-multiplier": 400.0, "privacy.closing-noise": 5.0})
    found = epsilon_so_far(privacy, 4)

    assert 0 < found[-1].pld < 0.5 * privacy["epsilon_max"]  # type: ignore[operator]


def test_rounds_that_are_not_counted_cost_no_counts(tmp_path: Path) -> None:
    privacy = statement(tmp_path / "run", **{"privacy.noise-multiplier": 400.0, "evaluation.every": 2})
    found = [spent.pld for spent in epsilon_so_far(privacy, 4, counted_every=2)]

    assert found[0] < found[1] / 3  # round 1 has no counts
    assert found[1] == pytest.approx(found[2])


def test_a_run_without_a_mechanism_or_rounds_has_none(tmp_path: Path) -> None:
    assert epsilon_so_far({"private": False}, 4) == []
    assert epsilon_so_far(statement(tmp_path / "run"), 0) == []


def test_many_rounds_have_the_bound_of_a_later_one(tmp_path: Path) -> None:
    RunOnDisk(PRIVATE, rounds=100, planned=100).write(tmp_path / "run")
    privacy = json.loads((tmp_path / "run" / "privacy.json").read_text())
    found = [spent.pld for spent in epsilon_so_far(privacy, 100)]

    assert len(found) == 100
    assert found == sorted(found)
    assert len(set(found)) <= 20
    assert found[-1] <= privacy["epsilon_max"]
