"""Runs with the default quorum, and what they say of clients that were missing.

Drives `server.reporting.missing_clients`.
"""

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message
from rich.console import Console

from common.errors import FederationError
from server.reporting.missing_clients import missing_clients, missing_text
from server.reporting.summary_view import print_summary
from tests.support.clients.own_clients import OwnClient, write_images
from tests.support.server.failing_federation import (
    charged,
    checked,
    clients_of,
    federate,
    lines,
    round_of,
    summary,
    survival_config,
)

NOBODY: dict[str, Any] = {"clients": {}, "unit": "image", "never_joined": 0}


@pytest.fixture(name="five")
def five_fixture(tmp_path: Path, own_home: Path) -> list[Path]:
    """Four clients of 60 images and one of 120."""
    large = write_images(tmp_path / "images-large", range(240, 360))
    return [*clients_of(tmp_path, 4), OwnClient(tmp_path, large, name="large").folder]


def bold_text(folder: Path) -> str:
    """Return the parts of the final table that stand in bold."""
    console = Console(file=io.StringIO(), record=True, width=400, force_terminal=True)
    print_summary(summary(folder), folder, console)
    marked = console.export_text(styles=True).split("\x1b[1m")[1:]
    return " ".join(part.split("\x1b[0m")[0] for part in marked)


def test_a_default_run_goes_on_without_one_of_five_and_says_whose_images_the_model_has_not_seen(
    five: list[Path], output: Path, own_home: Path
) -> None:
    config = survival_config(output, num_clients=5, min_clients="", num_rounds=3)

    state, _ = federate(five, config, lost=lambda n, message: n == 4 and round_of(message) in (2, 3))

    assert (state.status, config.min_clients) == ("complete", 4)
    assert [line["clients"] for line in lines(output)] == [5, 4, 4]
    assert summary(output)["missing"] == {
        "clients": {"large": {"share": pytest.approx(1 / 3), "missed": 2, "rounds": 3}},
        "unit": "image",
        "never_joined": 0,
    }
    said = "large in 2 of 3 rounds (33% of the declared images)"
    assert said in bold_text(output)
    statement = json.loads((output / "privacy.json").read_text())
    assert statement["statement"].endswith(f"; MISSING FROM THE MODEL: {said}")
    assert statement["missing"] == summary(output)["missing"]
    checked(output)


def test_a_default_run_begins_with_four_of_five_and_says_that_one_never_came(five: list[Path], output: Path) -> None:
    federate(five, survival_config(output, num_clients=5, min_clients="", num_rounds=1), there=lambda n: n != 4)

    assert [line["clients"] for line in lines(output)] == [4]
    assert summary(output)["missing"] == NOBODY | {"never_joined": 1}
    assert "1 planned client in all rounds (its size is not known)" in bold_text(output)
    checked(output)


def test_a_late_client_was_missing_from_the_rounds_before_it(five: list[Path], output: Path) -> None:
    seen: set[int] = set()

    def note(_: int, message: Message) -> bool:
        seen.add(round_of(message))
        return False

    config = survival_config(output, num_clients=5, min_clients="", num_rounds=3)
    federate(five, config, lost=note, there=lambda n: n != 4 or 1 in seen)

    assert [line["clients"] for line in lines(output)] == [4, 5, 5]
    assert summary(output)["missing"]["clients"] == {"large": {"share": pytest.approx(1 / 3), "missed": 1, "rounds": 3}}


def test_a_default_run_does_not_begin_with_three_of_five(five: list[Path], output: Path) -> None:
    with pytest.raises(FederationError, match=r"only 3 nodes .* min-clients=4 are needed"):
        federate(five, survival_config(output, num_clients=5, min_clients=""), there=lambda n: n < 3)


def test_a_default_run_says_who_refused_when_too_few_are_left(five: list[Path], output: Path) -> None:
    for folder in five[:2]:
        policy = folder / "policy.toml"
        policy.write_text(policy.read_text().replace("max-epsilon = 5.0", "max-epsilon = 0.01"))

    with pytest.raises(FederationError, match=r"only 3 of 5 .* min-clients=4\n.*node 2 \(POLICY\), node 3 \(POLICY\)"):
        federate(five, survival_config(output, num_clients=5, min_clients=""))


def test_a_round_of_a_default_run_with_three_of_five_is_skipped(five: list[Path], output: Path, own_home: Path) -> None:
    config = survival_config(output, num_clients=5, min_clients="", num_rounds=3)

    federate(five, config, lost=lambda n, message: n < 2 and round_of(message) == 2)

    assert [line.get("skipped", False) for line in lines(output)] == [False, True, False]
    assert summary(output)["missing"] == NOBODY  # the skipped round changed nothing
    assert charged(own_home, output)["large"] == (3, 4)


def test_min_clients_0_waits_for_all_as_runs_of_0_1_0_did(five: list[Path], output: Path) -> None:
    with pytest.raises(FederationError, match="min-clients=N lets a run begin with fewer"):
        federate(five, survival_config(output, num_clients=5, min_clients=0), there=lambda n: n != 4)


def test_the_largest_share_is_named_first_and_a_long_list_is_cut() -> None:
    one = {"missed": 1, "rounds": 2}
    clients = {f"c{n}": one | {"share": n / 100} for n in range(1, 8)}

    text = missing_text({"clients": clients, "unit": "group", "never_joined": 0})

    assert text.startswith("c7 in 1 of 2 rounds (7% of the declared groups), c6 ")
    assert text.endswith("c3 in 1 of 2 rounds (3% of the declared groups), 2 others in some rounds (3%)")
    assert missing_text(NOBODY) == ""


def test_who_is_named_first_has_the_largest_share_over_the_missed_rounds() -> None:
    seldom, often = ({"share": share, "missed": missed, "rounds": 9} for share, missed in ((0.5, 1), (0.2, 8)))

    text = missing_text({"clients": {"seldom": seldom, "often": often}, "unit": "image", "never_joined": 0})

    assert text.index("often") < text.index("seldom")


def test_a_round_with_fewer_updates_than_the_strategy_needs_is_skipped(five: list[Path], output: Path) -> None:
    trimmed: dict[str, Any] = {"strategy__name": "FedTrimmedAvg", "num_clients": 5, "num_rounds": 2}
    config = survival_config(output, min_clients=1, round_retries=0, **trimmed)

    # Of four values a fifth from each end would cut off none.
    federate(five, config, lost=lambda n, message: n == 4 and round_of(message) == 1)

    assert [bool(line.get("skipped")) for line in lines(output)] == [True, False]


@pytest.mark.parametrize(("cohort", "missed"), [(["a", "b"], 0), (["a"], 1)])
def test_a_late_client_was_missing_only_from_rounds_that_had_room(cohort: list[str], missed: int) -> None:
    state: Any = SimpleNamespace(
        config=SimpleNamespace(cohort_size=2, num_clients=3, privacy=SimpleNamespace(unit="image")),
        roll=SimpleNamespace(clients={"a": 10, "b": 10, "late": 10}),
        clients=["a", "b", "late"],
        joined={"a": 1, "b": 1, "late": 2},
        rounds=[{"round": 1, "failures": {}}, {"round": 2, "failures": {}}],
        cohorts=[cohort, ["a", "late"]],
    )

    assert missing_clients(state)["clients"].get("late", {"missed": 0})["missed"] == missed
