"""Clients that are killed in a run with noise in shares: each round is charged once, and one reply leaves.

Drives `client.guard`, `client.secure.exchange`, `client.secure.secrets_file`, `common.ledger.transactions`.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Message

from client.secure.secrets_file import SecretsFile
from common.ledger.audit.read_only import open_read_only
from common.ledger.transactions import LedgerSession
from server import federation
from tests.support.clients.own_clients import code
from tests.support.clients.secure_clients import POLICY, homes_of, secure_clients, secure_config
from tests.support.server.failing_federation import FailingGrid, charged, lines, round_of
from tests.support.server.secure_probes import Probe, copy_of, kind_of, other_model, secure_round

PRIVATE = POLICY.replace('["full"]', '["head"]') + "accept-honest-shares = true\n"
SETTINGS: dict[str, Any] = {
    "model__backbone": "timm:test_resnet",
    "model__weights": "random",
    "privacy__mechanism": "dp-sgd",
    "privacy__metrics": "none",
    "training__batch_size": "",
}


class Killed(Probe):
    """Client N - 1 dies in round N, and is asked for the same round again when the others open the sum."""

    def __init__(self) -> None:
        super().__init__(number=-1, kind="", in_round=0)
        self.trained: dict[int, Message] = {}
        self.again: dict[int, list[Message]] = {}

    def __call__(self, number: int, message: Message) -> bool:
        kind, opened = kind_of(message), secure_round(message)
        if kind == "train" and number == round_of(message) - 1:
            self.trained[round_of(message)] = message
        if kind == "unmask" and opened not in self.again:
            # A process that was killed has nothing in memory when it goes on.
            self.grid._contexts.clear()
            train = self.trained[opened]
            self.again[opened] = [self.ask(train), self.ask(train)]
            self.codes[f"round {opened} with another model"] = code(self.ask(other_model(train)))
        # In round 2 the words had left, and the client is dead when it is asked to open their sum.
        return (kind, opened, number) == ("unmask", 2, 1)


def words_in(message: Message) -> bytes:
    return bytes(message.content.array_records["arrays"]["words"].data)


@pytest.mark.slow
def test_a_round_is_charged_once_wherever_a_client_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    homes = homes_of(tmp_path, 5)
    monkeypatch.setenv("BRACT_HOME", "")
    wards = secure_clients(tmp_path, homes, PRIVATE)
    save, commit, deaths, sent = SecretsFile.save, LedgerSession.commit, list[str](), list[Message]()

    def before_the_secrets_are_rewritten(file: SecretsFile, state: Any, sizes: Any) -> None:
        if (state.index, state.next_round) == (0, 2) and not deaths:
            deaths.append("after the commit of round 1")
            raise RuntimeError("killed")
        save(file, state, sizes)

    def before_the_commit(session: LedgerSession, agreed: Any, server_round: int, *args: Any, **more: Any) -> bytes:
        if (agreed.client, server_round) == ("ward-2", 3) and len(deaths) == 1:
            deaths.append("after the reservation of round 3")
            raise RuntimeError("killed")
        return commit(session, agreed, server_round, *args, **more)

    monkeypatch.setattr(SecretsFile, "save", before_the_secrets_are_rewritten)
    monkeypatch.setattr(LedgerSession, "commit", before_the_commit)
    output, probe = tmp_path / "run", Killed()
    config = secure_config(output, **SETTINGS)
    probe.grid = FailingGrid(wards, config, homes=homes, lost=probe)
    probe.grid._observer = sent.append

    state = federation.run_federation(probe.grid, config, lambda _: federation.RunContext())

    assert state.status == "complete"
    assert deaths == ["after the commit of round 1", "after the reservation of round 3"]
    assert [line["clients"] for line in lines(output)] == [4, 5, 4]
    assert probe.codes == {f"round {number} with another model": "POLICY" for number in (1, 2, 3)}
    for number, (first, second) in probe.again.items():
        assert (number, code(first), words_in(first)) == (number, "ok", words_in(second))
    left = [words_in(message) for message in sent if kind_of(message) == "train" and not message.has_error()]
    # What had left before the death of round 2 is what leaves after it. In the others nothing had left.
    assert [words_in(probe.again[number][0]) in left for number in (1, 2, 3)] == [False, True, False]
    for number, home in enumerate(homes):
        assert charged(home, output) == {f"ward-{number}": (3, 3)}
        with open_read_only(home / "holder" / "ledger.sqlite") as ledger:
            entries = [entry for entry in ledger.entries() if entry.kind in ("reserve", "commit")]
        assert Counter((entry.kind, entry.event["round"]) for entry in entries) == Counter(
            (kind, server_round) for kind in ("reserve", "commit") for server_round in (1, 2, 3)
        )


class AskedAgain(Probe):
    """Client 0 is asked for its sums again when the others open them, and for those of a second round."""

    def __init__(self) -> None:
        super().__init__(number=-1, kind="", in_round=0)
        self.first: list[Message] = []
        self.again: list[Message] = []

    def __call__(self, number: int, message: Message) -> bool:
        if kind_of(message) == "train" and number == 0:
            self.first.append(message)
        if kind_of(message) == "unmask" and not self.again:
            self.grid._contexts.clear()
            later = copy_of(self.first[0])
            config = later.content.config_records["config"]
            later.content["config"] = ConfigRecord(dict(config) | {"server-round": 2})
            self.again += [self.ask(self.first[0]), self.ask(self.first[0])]
            self.codes["a second round"] = code(self.ask(later))
            self.codes["another model"] = code(self.ask(other_model(self.first[0])))
        return False


@pytest.mark.slow
@pytest.mark.parametrize("mechanism", ["dp-statistics", "none"])
def test_real_clients_sum_their_features_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str) -> None:
    homes = homes_of(tmp_path, 5)
    monkeypatch.setenv("BRACT_HOME", "")
    policy = PRIVATE.replace('"dp-sgd"', '"dp-sgd", "dp-statistics"')
    wards, output, probe, sent = (
        secure_clients(tmp_path, homes, policy),
        tmp_path / "run",
        AskedAgain(),
        list[Message](),
    )
    settings = SETTINGS | {"privacy__mechanism": mechanism, "training__method": "statistics"}
    config = secure_config(output, **settings)
    probe.grid = FailingGrid(wards, config, homes=homes, lost=probe)
    probe.grid._observer = sent.append

    state = federation.run_federation(probe.grid, config, lambda _: federation.RunContext())

    assert (state.status, [line["clients"] for line in lines(output)]) == ("complete", [5])
    left = [words_in(message) for message in sent if kind_of(message) == "train" and not message.has_error()]
    assert len(set(left)) == 5
    assert {words_in(message) for message in probe.again} <= set(left)
    assert probe.codes == {"a second round": "MESSAGE", "another model": "POLICY"}
    if mechanism != "none":
        assert [charged(home, output) for home in homes] == [{f"ward-{number}": (1, 1)} for number in range(5)]
