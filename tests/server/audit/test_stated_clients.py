"""What a run states of its clients: who had pinned the code, who came late, and how that is refuted."""

import json
from pathlib import Path

import pytest
from flwr.app import Message

from common.privacy.events import as_json
from server.audit.audit import audit_run
from server.state.privacy_spent import ClientPrivacyCost
from tests.support.server.failing_federation import (
    checked,
    clients_at,
    federate,
    lines,
    round_of,
    survival_config,
)


def lie(output: Path, rounds: int) -> list[str]:
    """Charge every client so many rounds, as if it had come for the last ones only; gives the audit's doubts."""
    file = output / "privacy.json"
    statement = json.loads(file.read_text())
    statement["joined_late"] = dict.fromkeys(statement["clients"], 6 - rounds + 1)
    config, plans = survival_config(output, num_rounds=6), {}
    for name, client in statement["clients"].items():
        plans[name] = config.plan(client["num_units"])
        share = ClientPrivacyCost(plans[name], rounds, rounds, True, plans[name].spent(rounds))
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

    assert any("more rounds must have taken place" in doubt for doubt in lie(output, 1))


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

    state, _ = federate(folders, config.model_copy(update={"resume": True}), pinned="ab" * 32)

    assert state.status == "complete"
    assert state.bundles == dict.fromkeys(("ward-0", "ward-1", "ward-2"), "")
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

    state, _ = federate(
        again,
        survival_config(output),
        lost=note,
        there=lambda n: n < 2 or (2 in seen) == (n == 3),
        pinned={0: "", 1: "", 2: "", 3: "ab" * 32},
    )

    assert state.clients["ward-2"].node_id == 5
    assert state.bundles["ward-2"] == ""
    assert lines(output)[-1]["clients"] == 3


def test_a_pin_of_another_bundle_than_the_run_sends_does_not_count(folders: list[Path], output: Path) -> None:
    for folder, pin in zip(folders, ("ab", "ab", "cd"), strict=True):
        policy = folder / "policy.toml"
        policy.write_text(policy.read_text() + f'bundle = "{pin * 32}"\n')
    config = survival_config(output, system__bundle="ab" * 32)

    state, _ = federate(folders, config, pinned={0: "ab" * 32, 1: "ab" * 32, 2: "cd" * 32})

    assert state.bundles == {"ward-0": "ab" * 32, "ward-1": "ab" * 32, "ward-2": ""}
