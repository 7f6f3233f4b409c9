"""Rounds that survive: late and missing clients, quorum, retries, skipped rounds, clients that come late."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from own_home_cases import own_home_fixture  # noqa: F401
from safetensors.numpy import load_file
from survival_cases import clients_at, clients_of, federate, round_of, survival_config

from common.audit.ledger_audit import audit_ledger, kept_heads
from common.errors import FederationError
from common.privacy.events import as_json
from common.privacy.plan import plan_for
from server import latecomers
from server.audit.run_audit import audit_run
from server.spending import Share


@pytest.fixture(name="folders")
def folders_fixture(tmp_path: Path, own_home: Path) -> list[Path]:
    return clients_of(tmp_path)


@pytest.fixture(name="output")
def output_fixture(tmp_path: Path) -> Path:
    return tmp_path / "run"


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rounds.jsonl").read_text().splitlines()]


def summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return found


def charged(home: Path, output: Path) -> dict[str, tuple[int, int]]:
    """Client -> rounds reserved and releases committed, the closing one among them, by a ledger that verifies."""
    report = audit_ledger(home / "holder" / "ledger.sqlite", kept_heads(output / "heads.jsonl"))
    assert (report.verdict, report.remarks.doubts) == ("verified", [])
    return {run.client: (run.rounds, run.sent) for run in report.runs}


def checked(output: Path) -> None:
    report = audit_run(output)
    assert report.remarks.doubts == []


def test_a_late_client_is_reported_and_left_out_and_its_round_goes_on(
    folders: list[Path], output: Path, own_home: Path
) -> None:
    outcome, _ = federate(folders, survival_config(output), lost=lambda n, message: (n, round_of(message)) == (1, 2))

    assert outcome.status == "complete"
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
    from client.learner import Learner

    trained: list[str] = []
    train = Learner.train

    def counted(self: Learner, *args: Any, **more: Any) -> Any:
        trained.append(f"{more['name']} {more['server_round']}")
        return train(self, *args, **more)

    monkeypatch.setattr(Learner, "train", counted)
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

    outcome, grid = federate(folders, survival_config(output, min_clients=3), lost=watch)

    second = lines(output)[1]
    assert (second["skipped"], second["clients"], second["failures"]) == (True, 2, {"ward-1": "LATE"})
    assert "private" not in second
    asked = [who for who, kind, number in grid.asked if (kind, number) == ("train", 2)]
    assert (sorted(asked[:3]), asked[3:]) == ([0, 1, 2], [1])
    assert np.array_equal(models[1], models[2])  # what entered rounds 2 and 3
    assert not np.array_equal(models[0], models[1])
    assert outcome.status == "complete"
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

    outcome, _ = federate(folders, config.model_copy(update={"resume": True}))

    assert outcome.status == "complete"
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


def test_a_client_that_comes_late_takes_part_from_then_on_with_a_plan_of_its_own(
    folders: list[Path], output: Path, own_home: Path
) -> None:
    rounds: set[int] = set()

    def note(_: int, message: Message) -> bool:
        rounds.add(round_of(message))
        return False

    outcome, grid = federate(folders, survival_config(output), lost=note, there=lambda n: n != 2 or 2 in rounds)

    assert [line["clients"] for line in lines(output)] == [2, 2, 3, 3]
    assert outcome.joined == summary(output)["joined_late"] == {"ward-2": 3}
    assert grid.asked[[who for who, _, _ in grid.asked].index(2)] == (2, "query", 0)  # met before it is asked anything
    assert charged(own_home, output) == {"ward-0": (4, 5), "ward-1": (4, 5), "ward-2": (2, 3)}
    statement = json.loads((output / "privacy.json").read_text())
    assert {name: one["rounds"] for name, one in statement["clients"].items()} == {
        "ward-0": 4,
        "ward-1": 4,
        "ward-2": 2,
    }
    checked(output)


def test_a_run_does_not_begin_below_its_quorum(folders: list[Path], output: Path, own_home: Path) -> None:
    with pytest.raises(FederationError, match=r"only 1 nodes .* min-clients=2 are needed"):
        federate(folders, survival_config(output), there=lambda n: n == 0)

    assert not (own_home / "holder" / "ledger.sqlite").exists() or charged_nothing(own_home)


def charged_nothing(home: Path) -> bool:
    return audit_ledger(home / "holder" / "ledger.sqlite", ()).runs == ()


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

    outcome, _ = federate(
        folders, config.model_copy(update={"resume": True}), lost=note, there=lambda n: n != 0 or 4 in seen
    )

    assert outcome.status == "complete"
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

    outcome, _ = federate(folders, config.model_copy(update={"resume": True}))

    assert interrupted.joined == {"ward-1": 2}
    assert outcome.cohorts == before
    assert max(sum(name in cohort for cohort in before) for name in outcome.clients) <= config.participations
    assert load_file(output / "model" / "model.safetensors")


def test_a_client_that_refused_at_the_meeting_is_not_asked_again_before_each_round(
    folders: list[Path], output: Path
) -> None:
    policy = folders[2] / "policy.toml"
    policy.write_text(policy.read_text().replace("max-epsilon = 5.0", "max-epsilon = 0.01"))

    outcome, grid = federate(folders, survival_config(output))

    assert [line["clients"] for line in lines(output)] == [2, 2, 2, 2]
    assert dict(outcome.refusals) == {"node 4": "POLICY"}
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

    outcome, _ = federate(folders, survival_config(output), lost=slow)

    assert [line["clients"] for line in lines(output)] == [3, 3, 3, 3]
    assert outcome.joined == {"ward-2": 1}
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
    outcome, _ = federate(folders, config.model_copy(update={"resume": True}))

    assert list(interrupted.joined.items()) == [("zed", 2), ("amy", 2)]
    assert outcome.cohorts == before
    assert all(line["failures"] == {} for line in lines(output))
    checked(output)


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


def lie(output: Path, rounds: int) -> list[str]:
    """Charge every client so many rounds, as if it had come for the last ones only; gives the audit's doubts."""
    file = output / "privacy.json"
    statement = json.loads(file.read_text())
    statement["joined_late"] = dict.fromkeys(statement["clients"], 6 - rounds + 1)
    config, plans = survival_config(output, num_rounds=6), {}
    for name, client in statement["clients"].items():
        plans[name] = plan_for(config, client["num_units"])
        share = Share(plans[name], rounds, True, plans[name].spent(rounds))
        client |= {"rounds": rounds, "epsilon": share.spent.pld, "epsilon_rdp": share.spent.rdp}
        client["events"] = {part: [as_json(event) for event in events] for part, events in share.events.items()}
    statement |= {"epsilon_max": share.spent.pld, "epsilon_max_rdp": share.spent.rdp}
    for copy in (output / "summary.json", output / "model" / "card.json"):
        found = json.loads(copy.read_text())
        copy.write_text(json.dumps(found | {"epsilon_max": share.spent.pld}))
    file.write_text(json.dumps(statement))
    return audit_run(output).remarks.doubts


def test_a_statement_that_says_clients_came_late_is_refuted_by_what_they_signed(
    tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRACT_HOME", "")  # set by the grid for each client, and as before afterwards
    homes = [tmp_path / f"home-{number}" for number in range(3)]
    folders = clients_at(tmp_path, homes)
    federate(folders, survival_config(output, num_rounds=6), homes=homes)
    checked(output)

    assert any("there were more" in doubt for doubt in lie(output, 1))


def test_a_pin_counts_only_where_it_held_for_the_whole_run(folders: list[Path], output: Path) -> None:
    config = survival_config(output)

    def stop(_: int, message: Message) -> bool:
        if round_of(message) == 3:
            raise KeyboardInterrupt
        return False

    federate(folders, config, lost=stop)
    for folder in folders:
        policy = folder / "policy.toml"
        policy.write_text(policy.read_text() + f'bundle = "{"ab" * 32}"\n')

    outcome, _ = federate(folders, config.model_copy(update={"resume": True}), pinned="ab" * 32)

    assert outcome.status == "complete"
    assert outcome.bundles == dict.fromkeys(("ward-0", "ward-1", "ward-2"), "")
    statement = json.loads((output / "privacy.json").read_text())
    assert any("3 of 3 clients have not pinned it" in line for line in statement["not_protected"])


def test_a_client_that_comes_back_with_a_pin_had_none_before(folders: list[Path], output: Path) -> None:
    """The same client at another node, as one without a key is after a restart."""
    seen: set[int] = set()
    again = [*folders, folders[2]]

    def note(_: int, message: Message) -> bool:
        seen.add(round_of(message))
        if 2 in seen and "bundle" not in (folders[2] / "policy.toml").read_text():
            policy = folders[2] / "policy.toml"
            policy.write_text(policy.read_text() + f'bundle = "{"ab" * 32}"\n')
        return False

    outcome, _ = federate(
        again,
        survival_config(output),
        lost=note,
        there=lambda n: n < 2 or (2 in seen) == (n == 3),
        pinned={0: "", 1: "", 2: "", 3: "ab" * 32},
    )

    assert outcome.clients["ward-2"].node_id == 5
    assert outcome.bundles["ward-2"] == ""
    assert lines(output)[-1]["clients"] == 3


def test_a_pin_of_another_bundle_than_the_run_sends_does_not_count(folders: list[Path], output: Path) -> None:
    for folder, pin in zip(folders, ("ab", "ab", "cd"), strict=True):
        policy = folder / "policy.toml"
        policy.write_text(policy.read_text() + f'bundle = "{pin * 32}"\n')
    config = survival_config(output, system__bundle="ab" * 32)

    outcome, _ = federate(folders, config, pinned={0: "ab" * 32, 1: "ab" * 32, 2: "cd" * 32})

    assert outcome.bundles == {"ward-0": "ab" * 32, "ward-1": "ab" * 32, "ward-2": ""}


def test_a_client_too_large_for_any_plan_is_left_out_and_the_run_goes_on(folders: list[Path], output: Path) -> None:
    site = folders[1] / "client.toml"
    site.write_text(site.read_text().replace("num-images = 60", "num-images = 1000000"))

    outcome, _ = federate(folders, survival_config(output))

    assert outcome.status == "complete"
    assert dict(outcome.refusals) == {"node 3": "CONFIG"}
