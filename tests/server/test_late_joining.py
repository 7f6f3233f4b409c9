"""Clients that come late, or come back, and runs that are resumed with them."""

import json
from pathlib import Path

import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from common.config.loading import Scalar, parse, resolved
from common.errors import ConfigError
from server import late_joining as latecomers
from tests.support.clients.own_clients import POLICY
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


def test_a_client_that_comes_late_takes_part_from_then_on_with_a_plan_of_its_own(
    folders: list[Path], output: Path, own_home: Path
) -> None:
    rounds: set[int] = set()

    def note(_: int, message: Message) -> bool:
        rounds.add(round_of(message))
        return False

    state, grid = federate(folders, survival_config(output), lost=note, there=lambda n: n != 2 or 2 in rounds)

    assert [line["clients"] for line in lines(output)] == [2, 2, 3, 3]
    assert state.joined == summary(output)["joined_late"] == {"ward-2": 3}
    assert grid.asked[[who for who, _, _ in grid.asked].index(2)] == (2, "query", 0)  # met before it is asked anything
    assert charged(own_home, output) == {"ward-0": (4, 5), "ward-1": (4, 5), "ward-2": (2, 3)}
    statement = json.loads((output / "privacy.json").read_text())
    assert {name: one["rounds"] for name, one in statement["clients"].items()} == {
        "ward-0": 4,
        "ward-1": 4,
        "ward-2": 2,
    }
    checked(output)


def test_a_resumed_run_goes_on_without_a_client_that_is_away_and_takes_it_back(
    folders: list[Path], output: Path, own_home: Path
) -> None:
    config = survival_config(output, num_rounds=6)

    def stop(_: int, message: Message) -> bool:
        if round_of(message) == 3:
            raise KeyboardInterrupt
        return False

    interrupted, _ = federate(folders, config, lost=stop)
    assert interrupted.status == "interrupted"
    seen: set[int] = set()

    def note(_: int, message: Message) -> bool:
        seen.add(round_of(message))
        return False

    state, _ = federate(
        folders, config.model_copy(update={"resume": True}), lost=note, there=lambda n: n != 0 or 4 in seen
    )

    assert state.status == "complete"
    assert [line["clients"] for line in lines(output)] == [3, 3, 2, 2, 3, 3]
    assert lines(output)[2]["failures"] == {"ward-0": "UNREACHABLE"}
    assert charged(own_home, output) == {"ward-0": (4, 5), "ward-1": (6, 7), "ward-2": (6, 7)}
    checked(output)


def test_a_run_with_a_late_client_is_resumed_with_the_same_cohorts(folders: list[Path], output: Path) -> None:
    config = survival_config(output, num_rounds=6, client_fraction=0.7, min_clients=1)
    seen: set[int] = set()
    before: list[list[str]] = []

    def stop(_: int, message: Message) -> bool:
        seen.add(round_of(message))
        if round_of(message) == 4:
            raise KeyboardInterrupt
        return False

    interrupted, _ = federate(folders, config, lost=stop, there=lambda n: n != 1 or 1 in seen)
    before = [list(cohort) for cohort in interrupted.cohorts]

    state, _ = federate(folders, config.model_copy(update={"resume": True}))

    assert interrupted.joined == {"ward-1": 2}
    assert state.cohorts == before
    assert max(sum(name in cohort for cohort in before) for name in state.clients) <= config.participations
    assert load_file(output / "model" / "model.safetensors")


def test_a_client_that_refused_at_the_meeting_is_not_asked_again_before_each_round(
    folders: list[Path], output: Path
) -> None:
    policy = folders[2] / "policy.toml"
    policy.write_text(policy.read_text().replace("max-epsilon = 5.0", "max-epsilon = 0.01"))

    state, grid = federate(folders, survival_config(output))

    assert [line["clients"] for line in lines(output)] == [2, 2, 2, 2]
    assert dict(state.refusals) == {"node 4": "POLICY"}
    assert [kind for who, kind, _ in grid.asked if who == 2] == ["query"]


def test_a_client_that_was_only_slow_is_asked_again_but_not_for_ever(
    folders: list[Path], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latecomers, "_LONGEST_WAIT", 0.05)
    slow = survival_config(output, num_rounds=6)

    _, grid = federate(folders, slow, lost=lambda n, message: n == 2 and message.metadata.message_type == "query")

    assert [kind for who, kind, _ in grid.asked if who == 2] == ["query"] * 4  # at the meeting, then three times
    assert [line["clients"] for line in lines(output)] == [2] * 6


def test_a_client_that_was_slow_at_the_meeting_takes_part_when_it_answers(folders: list[Path], output: Path) -> None:
    asked: list[int] = []

    def slow(number: int, message: Message) -> bool:
        if (number, message.metadata.message_type) != (2, "query"):
            return False
        asked.append(number)
        return len(asked) == 1

    state, _ = federate(folders, survival_config(output), lost=slow)

    assert [line["clients"] for line in lines(output)] == [3, 3, 3, 3]
    assert state.joined == {"ward-2": 1}
    checked(output)


@pytest.mark.usefixtures("own_home")
def test_clients_that_come_together_get_the_same_rounds_after_a_resume(tmp_path: Path, output: Path) -> None:
    """The order in which they came, not their names', decides who gets the room that is left."""
    folders = clients_of(tmp_path, 4)
    for place, name in ((2, "zed"), (3, "amy")):
        site = folders[place] / "client.toml"
        site.write_text(site.read_text().replace(f"ward-{place}", name))
    config = survival_config(output, num_clients=4, num_rounds=6, client_fraction=0.5, min_clients=1)
    seen: set[int] = set()

    def stop(_: int, message: Message) -> bool:
        seen.add(round_of(message))
        if round_of(message) == 5:
            raise KeyboardInterrupt
        return False

    interrupted, _ = federate(folders, config, lost=stop, there=lambda n: n < 2 or 1 in seen)
    before = [list(cohort) for cohort in interrupted.cohorts]
    state, _ = federate(folders, config.model_copy(update={"resume": True}))

    assert list(interrupted.joined.items()) == [("zed", 2), ("amy", 2)]
    assert state.cohorts == before
    assert all(line["failures"] == {} for line in lines(output))
    checked(output)


def test_a_second_node_of_a_client_that_is_there_is_turned_away(folders: list[Path], output: Path) -> None:
    seen: set[int] = set()

    def note(_: int, message: Message) -> bool:
        seen.add(round_of(message))
        return False

    twice = [*folders, folders[0]]
    config = survival_config(output, num_clients=4)

    state, grid = federate(twice, config, lost=note, there=lambda n: n < 3 or 2 in seen)

    assert state.clients["ward-0"].node_id == 2
    assert dict(state.refusals) == {"node 5": "SAME-NAME"}
    assert [kind for who, kind, _ in grid.asked if who == 3] == ["query"]
    assert [line["clients"] for line in lines(output)] == [3, 3, 3, 3]


@pytest.mark.usefixtures("own_home")
def test_a_new_client_is_turned_away_while_the_run_lacks_only_one_that_may_come_back(
    tmp_path: Path, output: Path
) -> None:
    seen: set[int] = set()

    def note(_: int, message: Message) -> bool:
        seen.add(round_of(message))
        return False

    state, _ = federate(
        clients_of(tmp_path, 4),
        survival_config(output),
        lost=note,
        there=lambda n: n in (1, 2) or (n == 3) == (2 in seen),
    )

    assert dict(state.refusals) == {"client ward-3": "FEDERATION-FULL"}
    assert sorted(state.clients) == ["ward-0", "ward-1", "ward-2"]


def test_a_run_that_goes_on_cannot_be_resumed_beside_itself(folders: list[Path], output: Path) -> None:
    config = survival_config(output)
    said: list[str] = []

    def beside(number: int, message: Message) -> bool:
        if (number, round_of(message)) == (0, 2):
            with pytest.raises(ConfigError, match="run by another process") as refused:
                federate(folders, config.model_copy(update={"resume": True}))
            said.append(str(refused.value))
        return False

    state, _ = federate(folders, config, lost=beside)

    assert len(said) == 1
    assert state.status == "complete"
    assert [line["clients"] for line in lines(output)] == [3, 3, 3, 3]


def test_sums_of_a_client_that_comes_before_the_only_round_are_in_the_model(folders: list[Path], output: Path) -> None:
    allowed = POLICY.replace('["full"]', '["head"]') + 'mechanisms = ["dp-statistics"]\n'
    for folder in folders:
        (folder / "policy.toml").write_text(allowed)
    own: dict[str, Scalar] = {"privacy.mechanism": "dp-statistics", "model.backbone": "timm:test_resnet"}
    own |= {"model.tuning": "head", "model.weights": "random", "data.image-size": 32}
    config = parse(resolved(survival_config(output)) | own)
    asked: list[int] = []

    def note(number: int, _: Message) -> bool:
        asked.append(number)
        return False

    # The third node comes once the other two were asked what they have.
    state, _ = federate(folders, config, lost=note, there=lambda n: n != 2 or 1 in asked)

    assert (state.joined, [line["clients"] for line in lines(output)]) == ({"ward-2": 1}, [3])
    assert state.privacy_cost is not None
    assert set(state.privacy_cost.shares) == {"ward-0", "ward-1", "ward-2"}
    checked(output)
