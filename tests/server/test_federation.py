"""Rounds that survive: late and missing clients, quorum, retries, skipped rounds.

Drives `server.run_context`.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message

from common.config.loading import defaults, parse
from common.errors import FederationError
from common.ledger.audit.audit import audit_ledger
from server import federation
from tests.support.paths import ROOT
from tests.support.server.failing_federation import (
    charged,
    checked,
    federate,
    lines,
    round_of,
    summary,
    survival_config,
)


def test_a_late_client_is_reported_and_left_out_and_its_round_goes_on(
    folders: list[Path], output: Path, own_home: Path
) -> None:
    state, _ = federate(folders, survival_config(output), lost=lambda n, message: (n, round_of(message)) == (1, 2))

    assert state.status == "complete"
    assert [(line["clients"], line["failures"]) for line in lines(output)] == [
        (3, {}),
        (2, {"ward-1": "LATE"}),
        (3, {}),
        (3, {}),
    ]
    assert charged(own_home, output) == {"ward-0": (4, 5), "ward-1": (3, 4), "ward-2": (4, 5)}
    assert json.loads((output / "privacy.json").read_text())["clients"]["ward-1"]["rounds"] == 4  # what was asked
    checked(output)


def test_a_round_below_quorum_is_tried_again_and_nobody_is_charged_twice(
    folders: list[Path], output: Path, own_home: Path
) -> None:
    tries: list[int] = []

    def deaf_once(number: int, message: Message) -> bool:
        if (number, round_of(message)) != (2, 3):
            return False
        tries.append(number)
        return len(tries) == 1

    config = survival_config(output, min_clients=3)
    _, grid = federate(folders, config, lost=deaf_once)

    assert [line["clients"] for line in lines(output)] == [3, 3, 3, 3]
    assert [line["failures"] for line in lines(output)] == [{}] * 4
    asked = [who for who, kind, number in grid.asked if (kind, number) == ("train", 3)]
    assert (sorted(asked[:3]), asked[3:]) == ([0, 1, 2], [2])
    assert charged(own_home, output) == dict.fromkeys(("ward-0", "ward-1", "ward-2"), (4, 5))


def test_a_client_whose_reply_was_lost_sends_the_same_bytes_when_it_is_asked_again(
    folders: list[Path], output: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from client.training.trainer import Trainer

    trained: list[str] = []
    train = Trainer.train

    def counted(self: Trainer, *args: Any, **more: Any) -> Any:
        trained.append(f"{more['name']} {more['server_round']}")
        return train(self, *args, **more)

    monkeypatch.setattr(Trainer, "train", counted)
    tries: list[int] = []

    def unheard_once(number: int, message: Message) -> bool:
        if (number, round_of(message), message.metadata.message_type) != (1, 2, "train"):
            return False
        tries.append(number)
        return len(tries) == 1

    federate(folders, survival_config(output, min_clients=3), unheard=unheard_once)

    assert len(tries) == 2
    assert trained.count("ward-1 2") == 1
    assert charged(own_home, output)["ward-1"] == (4, 5)
    assert [line["clients"] for line in lines(output)] == [3, 3, 3, 3]


def test_a_round_that_stays_below_quorum_is_skipped_and_moves_nothing(
    folders: list[Path], output: Path, own_home: Path
) -> None:
    models: list[np.ndarray] = []

    def watch(number: int, message: Message) -> bool:
        if message.metadata.message_type == "train" and number == 0:
            models.append(next(iter(message.content.array_records["arrays"].values())).numpy().copy())
        return number == 1 and round_of(message) == 2

    state, grid = federate(folders, survival_config(output, min_clients=3), lost=watch)

    second = lines(output)[1]
    assert (second["skipped"], second["clients"], second["failures"]) == (True, 2, {"ward-1": "LATE"})
    assert "private" not in second
    asked = [who for who, kind, number in grid.asked if (kind, number) == ("train", 2)]
    assert (sorted(asked[:3]), asked[3:]) == ([0, 1, 2], [1])
    assert np.array_equal(models[1], models[2])  # what entered rounds 2 and 3
    assert not np.array_equal(models[0], models[1])
    assert state.status == "complete"
    assert (summary(output)["rounds"], summary(output)["rounds_skipped"]) == (4, 1)
    assert charged(own_home, output) == {"ward-0": (4, 5), "ward-1": (3, 4), "ward-2": (4, 5)}
    checked(output)


def test_three_skipped_rounds_in_a_row_stop_the_run_and_one_command_resumes_it(
    folders: list[Path], output: Path, own_home: Path
) -> None:
    config = survival_config(output, min_clients=3, num_rounds=6)

    with pytest.raises(FederationError, match=r"round 4: 2 clients sent an update, and 3 are needed \(LATE\)"):
        federate(folders, config, lost=lambda n, message: n == 2 and round_of(message) > 1)
    assert summary(output)["status"] == "interrupted"
    assert [line.get("skipped", False) for line in lines(output)] == [False, True, True]

    state, _ = federate(folders, config.model_copy(update={"resume": True}))

    assert state.status == "complete"
    assert [line.get("skipped", False) for line in lines(output)] == [False, True, True, False, False, False]
    assert charged(own_home, output) == {"ward-0": (6, 7), "ward-1": (6, 7), "ward-2": (4, 5)}
    checked(output)


def test_a_run_whose_rounds_were_all_skipped_is_not_complete(folders: list[Path], output: Path) -> None:
    with pytest.raises(FederationError, match="round 2: 0 clients"):
        federate(folders, survival_config(output, num_rounds=2), lost=lambda _, message: round_of(message) > 0)

    assert summary(output)["status"] == "interrupted"


def test_a_client_that_refuses_is_not_asked_again(folders: list[Path], output: Path) -> None:
    policy = folders[1] / "policy.toml"

    def withdraw(number: int, message: Message) -> bool:
        if (number, round_of(message)) == (1, 2):
            policy.write_text(policy.read_text().replace("max-epsilon = 5.0", "max-epsilon = 0.01"))
        return False

    config = survival_config(output, min_clients=3, num_rounds=4, round_retries=5)
    with pytest.raises(FederationError, match="POLICY"):
        federate(folders, config, lost=withdraw)

    assert lines(output)[1]["failures"] == {"ward-1": "POLICY"}


def test_a_run_does_not_begin_below_its_quorum(folders: list[Path], output: Path, own_home: Path) -> None:
    with pytest.raises(FederationError, match=r"only 1 nodes .* min-clients=2 are needed"):
        federate(folders, survival_config(output), there=lambda n: n == 0)

    assert not (own_home / "holder" / "ledger.sqlite").exists() or charged_nothing(own_home)


def charged_nothing(home: Path) -> bool:
    return audit_ledger(home / "holder" / "ledger.sqlite", ()).runs == ()


def test_a_resumed_run_in_which_nothing_was_ever_released_is_not_complete(folders: list[Path], output: Path) -> None:
    config = survival_config(output, min_clients=3, num_rounds=4)

    def stop(number: int, message: Message) -> bool:
        if round_of(message) == 3:
            raise KeyboardInterrupt
        return number == 2 and round_of(message) > 0

    federate(folders, config, lost=stop)

    with pytest.raises(FederationError, match="round 4: 2 clients"):
        federate(
            folders,
            config.model_copy(update={"resume": True}),
            lost=lambda number, message: number == 2 and round_of(message) > 0,
        )
    assert summary(output)["status"] == "interrupted"


def test_a_client_too_large_for_any_plan_is_left_out_and_the_run_goes_on(folders: list[Path], output: Path) -> None:
    site = folders[1] / "client.toml"
    site.write_text(site.read_text().replace("num-images = 60", "num-images = 1000000"))

    state, _ = federate(folders, survival_config(output))

    assert state.status == "complete"
    assert dict(state.refusals) == {"node 3": "CONFIG"}


@pytest.mark.parametrize(("setting", "seconds"), [(5.0, 5.0), ("", defaults()["round-deadline"])])
def test_only_rounds_of_real_clients_have_a_deadline(setting: float | str, seconds: float) -> None:
    wanted = parse(defaults() | {"round-deadline": setting}).round_deadline

    assert federation._reply_seconds(wanted, simulated=False) == seconds
    assert federation._reply_seconds(wanted, simulated=True) is None


def test_server_of_a_simulation_starts_without_heavy_libraries() -> None:
    heavy = {"torch", "torchvision", "timm", "datasets", "sklearn", "pandas", "opacus", "matplotlib"}
    code = f"import sys, server.app; print(sorted({heavy!r} & set(sys.modules)))"

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)

    assert found.stdout.strip() == "[]"
