"""Runs in which the server sees sums alone, over real clients whose network fails.

Drives `client.secure.exchange`, `client.secure.party`, `client.secure.secrets_file`, `common.messages.secure_messages`,
`server.state.secure_statement`, `server.rounds.secure_rounds`, `server.rounds.secure_setup`.
"""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

import client.app as client_app
from client.secure.secrets_file import SecretsFile
from common.errors import FederationError
from common.ledger.audit.audit import audit_ledger
from common.messages.codec import arrays_to_record
from common.messages.secure_words import SecureWords
from server import federation
from server.audit.audit import audit_run
from tests.support.clients.own_clients import code
from tests.support.clients.secure_clients import homes_of, secure_clients, secure_config
from tests.support.server.failing_federation import FIRST_NODE, FailingGrid, federate, lines, round_of

# Steps of 2^-34 at five clients, summed over them, and float32 rounding in both averages.
MODEL_BOUND = 5 * 2.0**-34 + 4 * 2.0**-24
# 48 bits, of which all must be uniform.
BYTES_OF_WORD = 6

# A second copy of the allow-list. The client's own list must not grow unnoticed.
MAY_LEAVE = {
    "query": {"client": {"name", "num-units", "classes", "input-shape", "backbone-hash", "bundle"}},
    "advertise": {
        "secure": {
            *("index", "channel-key", "mask-keys-digest", "seeds-digest", "signature"),
            *("mask-keys", "seed-commitments", "names", "identity-keys"),
        }
    },
    "deal": {"secure": {"members", "boxes"}},
    "train": {"arrays": {"words"}, "metrics": {"num-examples"}},
    "evaluate": {"arrays": {"words"}, "metrics": {"num-examples"}},
    "unmask": {"secure": {"index", "request", "shares"}},
}


@pytest.fixture(name="homes", scope="module")
def homes_fixture(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return homes_of(tmp_path_factory.mktemp("secure"), 5)


@pytest.fixture(name="wards", scope="module")
def wards_fixture(homes: list[Path], bract_home: Path) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BRACT_HOME", str(bract_home))
        return secure_clients(homes[0].parent, homes)


@pytest.fixture(autouse=True)
def home_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))


def model_of(output: Path) -> dict[str, np.ndarray]:
    return load_file(output / "model" / "model.safetensors")


def differences(output: Path, plain: Path) -> float:
    ours, theirs = model_of(output), model_of(plain)
    return max(float(np.abs(ours[name] - theirs[name]).max() / max(1.0, np.abs(theirs[name]).max())) for name in ours)


def kind_of(message: Message) -> str:
    return message.metadata.message_type.removeprefix("query.")


def test_a_secure_run_equals_the_plain_one(wards: list[Path], homes: list[Path], tmp_path: Path) -> None:
    sent: list[Message] = []
    asked, sizes, modes = list[Message](), list[int](), set[tuple[int, int]]()

    def look(number: int, message: Message) -> bool:
        asked.append(message)
        for file in secrets_of(homes[0], message):
            modes.add((stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)))
            if number == 0 and kind_of(message) == "train":
                sizes.append(file.stat().st_size)
        return False

    config = secure_config(tmp_path / "secure")
    grid = FailingGrid(wards, config, homes=homes, lost=look)
    grid._observer = sent.append
    state = federation.run_federation(grid, config, lambda _: federation.RunContext())
    federate(wards, secure_config(tmp_path / "plain", privacy__aggregation="plain"), homes=homes)

    assert state.status == "complete"
    assert differences(tmp_path / "secure", tmp_path / "plain") <= MODEL_BOUND
    for ours, theirs in zip(lines(tmp_path / "secure"), lines(tmp_path / "plain"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-6)
        assert {key: ours[key] for key in ("clients", "failures", "examples", "accuracy", "macro_f1")} == {
            key: theirs[key] for key in ("clients", "failures", "examples", "accuracy", "macro_f1")
        }
    ours, theirs = (json.loads((tmp_path / name / "counts.json").read_text())["exact"] for name in ("secure", "plain"))
    assert ours["confusion"] == theirs["confusion"]
    assert (ours["clients"], len(theirs["clients"])) == ({}, 5)
    check_what_left(sent)
    check_statement(tmp_path / "secure", roster=(wards[0] / "policy.toml").read_text())
    assert "aggregation" not in json.loads((tmp_path / "plain" / "privacy.json").read_text())
    assert modes == {(0o600, 0o700)}
    # Each round has erased its own secrets.
    assert (len(sizes), sizes) == (3, sorted(set(sizes), reverse=True))
    last = asked[-1]
    for home in homes:
        assert audit_ledger(home / "holder" / "ledger.sqlite").remarks.doubts == []
        assert not secrets_of(home, last)  # erased at the end


def check_statement(output: Path, *, roster: str) -> None:
    stated = json.loads((output / "privacy.json").read_text())
    assert stated["statement"].startswith("NOT PRIVATE: exact sums of the clients' updates and counts left")
    found = stated["aggregation"]
    assert {key: found[key] for key in ("kind", "num_clients", "colluding", "honest", "min_survivors", "protocol")} == {
        "kind": "secure",
        "num_clients": 5,
        "colluding": 1,
        "honest": 3,
        "min_survivors": 4,
        "protocol": "bract secure sum 1",
    }
    assert f'roster = "{found["roster"]}"' in roster
    assert found["present"] == [f"ward-{number}" for number in range(5)]
    assert any("backups" in gap for gap in found["not_protected"])
    assert audit_run(output).remarks.doubts == []


def check_what_left(sent: list[Message]) -> None:
    for message in sent:
        kind = kind_of(message)
        assert {name: set(record) for name, record in message.content.items()} == MAY_LEAVE.get(kind, {}), kind
    masked = [message for message in sent if message.metadata.message_type in ("train", "evaluate")]
    assert len(masked) == 4 * 5
    words = []
    for message in masked:
        words.append(message.content.array_records["arrays"]["words"].numpy())
    for vector in words:
        counted = np.bincount(vector, minlength=256)
        expected = vector.size / 256
        # 255 degrees of freedom: 6 standard deviations above the mean.
        assert ((counted - expected) ** 2 / expected).sum() < 255 + 6 * (2 * 255) ** 0.5
    # No word of a mask comes twice, over clients and rounds.
    together = np.concatenate(words).reshape(-1, BYTES_OF_WORD)
    assert len(np.unique(together, axis=0)) == len(together)


def unless(kind: str, *clients: int, in_round: int = 2) -> Callable[[int, Message], bool]:
    def fails(number: int, message: Message) -> bool:
        if kind_of(message) != kind or number not in clients:
            return False
        if kind == "train":
            return round_of(message) == in_round
        if kind == "unmask":
            return message.content.config_records["secure"]["round"] == in_round
        return True

    return fails


SLOW = pytest.mark.slow
GONE = {"client ward-4": "LATE"}


@pytest.mark.parametrize(
    ("kind", "clients", "counted", "refused", "lost"),
    [
        ("unmask", (1,), [5, 5, 5], {}, "lost"),
        pytest.param("advertise", (4,), [4, 4, 4], GONE, "lost", marks=SLOW),
        pytest.param("deal", (4,), [4, 4, 4], GONE, "unheard", marks=SLOW),
        pytest.param("accept", (4,), [5, 5, 5], {}, "lost", marks=SLOW),
        pytest.param("train", (1,), [5, 4, 5], {}, "lost", marks=SLOW),
        pytest.param("train", (1,), [5, 4, 5], {}, "unheard", marks=SLOW),
        pytest.param("train", (1, 2), [5, 3, 5], {}, "lost", marks=SLOW),
        pytest.param("unmask", (1, 2), [5, 5, 5], {}, "unheard", marks=SLOW),
    ],
)
def test_clients_that_are_gone_at_one_stage(
    wards: list[Path],
    homes: list[Path],
    tmp_path: Path,
    kind: str,
    clients: tuple[int, ...],
    counted: list[int],
    refused: dict[str, str],
    lost: str,
) -> None:
    output, fails = tmp_path / "run", unless(kind, *clients)
    state, grid = federate(wards, secure_config(output), homes=homes, **{lost: fails})

    assert state.status == "complete"
    assert state.refusals == refused
    assert [line["clients"] for line in lines(output)] == counted
    # Whoever is lost after its words is in the sum, and so not missing from the model. A client that has not taken the
    # others' shares sends words, too, and cannot help to open them.
    ones = {f"ward-{number}" for number in clients}
    second = lines(output)[1]
    after = kind == "accept" or (kind == "unmask" and len(clients) == 1)
    assert {*second.get("lost_after", {})} == (ones if after else set())
    assert {*second["failures"]} == (ones if kind == "train" or counted[1] == 4 else set())
    # Of five with one colluding, four must be in a sum, and four must open it.
    aborted = len(clients) == 2
    assert [line.get("skipped", False) for line in lines(output)] == [False, aborted, False]
    asked = [n for n, what, _ in grid.asked if what == "query.unmask"]
    opened = {("train", 2): 5 + 0 + 5 + 5, ("unmask", 2): 5 + 5 + 5 + 5}.get((kind, len(clients)))
    assert opened is None or len(asked) == opened
    if kind in ("train", "unmask") and lost == "lost" and not aborted:
        same = tmp_path / "plain"
        plain = {lost: fails} if kind == "train" else {}
        federate(wards, secure_config(same, privacy__aggregation="plain"), homes=homes, **plain)
        assert differences(output, same) <= MODEL_BOUND


def test_a_set_up_with_too_few_clients_sums_nothing(wards: list[Path], homes: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"needs 4 of 5 clients .*ward-3 \(LATE\), ward-4 \(LATE\)"):
        federate(wards, secure_config(tmp_path / "run"), homes=homes, lost=unless("advertise", 3, 4))


class Probe:
    """A server that asks more than it may, in the middle of a round, before it goes on as it should."""

    def __init__(self, *, number: int, kind: str, in_round: int) -> None:
        self._wanted, self._fails = number, unless(kind, number, in_round=in_round)
        self.asked: dict[tuple[str, int], Message] = {}
        self.grid: FailingGrid
        self.codes: dict[str, str] = {}

    def __call__(self, number: int, message: Message) -> bool:
        if number == self._wanted:
            self.asked[kind_of(message), max(round_of(message), secure_round(message))] = copy_of(message)
            if self._fails(number, message) and not self.codes:
                # A process that is killed here has nothing in memory when it goes on.
                self.grid._contexts.clear()
                self.probe()
        return False

    def probe(self) -> None:
        raise NotImplementedError

    def ask(self, message: Message) -> Message:
        client_app.SESSIONS.clear()
        assert self.grid._homes is not None
        os.environ["BRACT_HOME"] = str(self.grid._homes[message.metadata.dst_node_id - FIRST_NODE])
        return client_app.app(copy_of(message), self.grid._new_context(message.metadata.dst_node_id))


def secrets_of(home: Path, message: Message) -> list[Path]:
    """The file of mask secrets of a message's run; earlier runs that were never closed have left theirs."""
    run = str(message.content.config_records["config"]["run-id"])
    return list((home / "holder" / "secure-sums" / run).glob("*"))


def secure_round(message: Message) -> int:
    secure = message.content.config_records.get("secure")
    return int(secure.get("round", 0)) if secure is not None else 0


def copy_of(message: Message) -> Message:
    return Message(message.content.copy(), message.metadata.dst_node_id, message.metadata.message_type)


def changed(message: Message, **values: Any) -> Message:
    other = copy_of(message)
    other.content["secure"] = type(message.content["secure"])(dict(message.content["secure"]) | values)
    return other


class BetweenExchanges(Probe):
    """Round 2 at client 0, whose words have left and whose shares have not."""

    def probe(self) -> None:
        train, opened = self.asked["train", 2], self.asked["unmask", 2]
        before = self.ask(train).content.array_records["arrays"]["words"].data
        again = self.ask(train).content.array_records["arrays"]["words"].data
        second = changed(opened, survivors=[0, 1, 2, 3])
        assert self.grid._homes is not None
        (secrets,) = secrets_of(self.grid._homes[0], train)
        copied = secrets.read_bytes()
        self.codes = {
            "the same round again": "same bytes" if before == again else "other bytes",
            "the same round with another model": code(self.ask(other_model(train))),
            "an earlier round": code(self.ask(self.asked["train", 1])),
            "another set-up": code(self.ask(changed(self.asked["advertise", 0], attempt=7))),
            "the same set-up": code(self.ask(self.asked["advertise", 0])),
            "shares dealt twice": code(self.ask(self.asked["deal", 0])),
            "a sum of itself and the colluding one": code(self.ask(changed(opened, survivors=[0, 1]))),
            "a sum of t clients, one of them colluding": code(self.ask(changed(opened, survivors=[0, 1, 2]))),
            "a client that is not on the roster": code(self.ask(changed(opened, survivors=[0, 1, 2, 9]))),
            "a later round": code(self.ask(changed(opened, round=3, survivors=[0, 1, 2]))),
            "too few responders": code(self.ask(changed(opened, responders=[0, 1, 2]))),
            "the sum of all": code(self.ask(opened)),
            "the sum of all, with other responders": code(self.ask(changed(opened, responders=[0, 1, 2, 3]))),
            "a second set of survivors": code(self.ask(second)),
            "words without a set-up": code(self.ask(wrong_run(train))),
        }
        secrets.unlink()
        self.codes["another set-up, after its secrets were deleted"] = code(
            self.ask(changed(self.asked["advertise", 0], attempt=8))
        )
        secrets.write_bytes(copied)
        self.codes["a second set, after its secrets were restored"] = code(self.ask(second))
        self.codes["the sum of all, after its secrets were restored"] = code(self.ask(opened))


def other_model(message: Message) -> Message:
    other = copy_of(message)
    record = other.content.array_records["arrays"]
    other.content["arrays"] = arrays_to_record({name: array.numpy() + np.float32(1) for name, array in record.items()})
    return other


def wrong_run(message: Message) -> Message:
    other = copy_of(message)
    other.content["config"] = type(message.content["config"])(dict(message.content["config"]) | {"run-id": "ab" * 16})
    return other


def test_a_client_refuses_what_would_show_its_update(wards: list[Path], homes: list[Path], tmp_path: Path) -> None:
    probe = BetweenExchanges(number=0, kind="unmask", in_round=2)
    config = secure_config(tmp_path / "run")
    probe.grid = FailingGrid(wards, config, homes=homes, lost=probe)

    state = federation.run_federation(probe.grid, config, lambda _: federation.RunContext())

    assert probe.codes == {
        "the same round again": "same bytes",
        "the same round with another model": "POLICY",
        "an earlier round": "ok",  # its stored bytes
        "another set-up": "POLICY",
        "the same set-up": "POLICY",
        "shares dealt twice": "PRIVACY",
        "a sum of itself and the colluding one": "PRIVACY",
        "a sum of t clients, one of them colluding": "PRIVACY",
        "a client that is not on the roster": "PRIVACY",
        "a later round": "PRIVACY",
        "too few responders": "PRIVACY",
        "the sum of all": "ok",
        "the sum of all, with other responders": "ok",
        "a second set of survivors": "PRIVACY",
        "another set-up, after its secrets were deleted": "POLICY",  # by the marker in the ledger
        "a second set, after its secrets were restored": "POLICY",  # by the marker in the ledger
        "the sum of all, after its secrets were restored": "ok",
        "words without a set-up": "MESSAGE",
    }
    # None of it has spoilt the run.
    assert state.status == "complete"
    assert [line["clients"] for line in lines(tmp_path / "run")] == [5, 5, 5]
    assert not any(line["failures"] for line in lines(tmp_path / "run"))


class OtherSettings(FailingGrid):
    """A server that lets all clients but one make no step, so that the sum would be the update of that one."""

    def _new_context(self, node: int) -> Any:
        context = super()._new_context(node)
        if node > FIRST_NODE:
            context.run_config["training.learning-rate"] = 1e-9
        return context


def test_a_sum_of_clients_with_other_settings_says_nothing(
    wards: list[Path], homes: list[Path], tmp_path: Path
) -> None:
    config = secure_config(tmp_path / "run", num_rounds=1, privacy__metrics="none")
    grid = OtherSettings(wards, config, homes=homes)

    with pytest.MonkeyPatch.context() as patch:
        opened: list[float] = []
        average = SecureWords.average_update

        def looked_at(words: SecureWords, summed: Any, survivors: Any) -> Any:
            update = average(words, summed, survivors)
            opened.append(min(float(np.abs(part).max()) for part in update.values()))
            return update

        patch.setattr(SecureWords, "average_update", looked_at)
        federation.run_federation(grid, config, lambda _: federation.RunContext())

    # Masks that do not cancel leave uniform words, which are of the size of the longest update.
    assert len(opened) == 1
    assert opened[0] > 100


def test_no_words_leave_in_a_sum_of_fewer_honest_clients_than_were_agreed_on(
    wards: list[Path], homes: list[Path], tmp_path: Path
) -> None:
    """Each share of noise is for three honest clients. A set-up for two would open sums with too little of it."""
    config = secure_config(tmp_path / "run", num_rounds=1, privacy__metrics="none", privacy__secure_honest=2)
    grid = FailingGrid(wards, config, homes=homes)
    answers: list[Message] = []
    grid._observer = answers.append

    def asked(message: Message, context: Any) -> Message:
        honest = 2 if kind_of(message) in ("advertise", "deal", "accept", "unmask") else 3
        context.run_config["privacy.secure-honest"] = honest
        return client_app.app(message, context)

    grid._client_app = asked
    with pytest.raises(FederationError):
        federation.run_federation(grid, config, lambda _: federation.RunContext())

    assert {code(answer) for answer in answers if kind_of(answer) == "deal"} == {"ok"}
    assert {code(answer) for answer in answers if kind_of(answer) == "train"} == {"POLICY"}


def test_a_client_that_answers_as_another_is_left_out_itself(
    wards: list[Path], homes: list[Path], tmp_path: Path
) -> None:
    def lies(message: Message) -> None:
        if kind_of(message) == "unmask" and message.metadata.src_node_id == FIRST_NODE:
            message.content.config_records["secure"]["index"] = 1

    config = secure_config(tmp_path / "run", num_rounds=1, privacy__metrics="none")
    grid = FailingGrid(wards, config, homes=homes)
    grid._observer = lies
    federation.run_federation(grid, config, lambda _: federation.RunContext())

    # Its masked update had come, so the model has it.
    assert [(line["clients"], line["lost_after"]) for line in lines(tmp_path / "run")] == [(5, {"ward-0": "MESSAGE"})]


class AfterDeath(Probe):
    """Round 2 at client 0, which was killed after its ledger was written, and before its secrets were."""

    stage = ""

    def __call__(self, number: int, message: Message) -> bool:
        super().__call__(number, message)
        if number == 1 and kind_of(message) == "unmask" and secure_round(message) == 2 and self.stage == "train":
            train = self.asked["train", 2]
            self.codes = {"other": code(self.ask(other_model(train))), "again": code(self.ask(train))}
        if number == 0 and kind_of(message) == "train" and round_of(message) == 3 and self.stage == "unmask":
            opened = self.asked["unmask", 2]
            second = changed(opened, survivors=[0, 1, 2, 3])
            self.codes = {"other": code(self.ask(second)), "again": code(self.ask(opened))}
        return False

    def probe(self) -> None:
        pass


@pytest.mark.parametrize(("stage", "counted"), [("train", [5, 4, 5]), pytest.param("unmask", [5, 5, 5], marks=SLOW)])
def test_a_client_killed_before_its_secrets_are_rewritten_answers_nothing_else(
    wards: list[Path],
    homes: list[Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    counted: list[int],
) -> None:
    genuine, killed = SecretsFile.save, list[int]()

    def killed_once(file: SecretsFile, state: Any, sizes: Any) -> None:
        reached = {"train": state.next_round == 3, "unmask": 2 in state._answered}[stage]
        if reached and state.index == 0 and not killed:
            killed.append(1)
            raise RuntimeError("killed")
        genuine(file, state, sizes)

    monkeypatch.setattr(SecretsFile, "save", killed_once)
    probe, config = AfterDeath(number=0, kind="", in_round=0), secure_config(tmp_path / "run")
    probe.stage, probe.grid = stage, FailingGrid(wards, config, homes=homes, lost=probe)

    federation.run_federation(probe.grid, config, lambda _: federation.RunContext())

    assert killed
    assert probe.codes == {"again": "ok", "other": "POLICY"}
    assert [line["clients"] for line in lines(tmp_path / "run")] == counted


@SLOW
def test_a_resumed_run_goes_on_with_the_masks_that_are_left(
    wards: list[Path], homes: list[Path], tmp_path: Path
) -> None:
    sent: list[Message] = []

    def stopped(number: int, message: Message) -> bool:
        if kind_of(message) == "unmask" and secure_round(message) == 2 and number == 3:
            raise KeyboardInterrupt
        return False

    output = tmp_path / "run"
    for more in ({}, {"resume": True}):
        config = secure_config(output, **more)
        grid = FailingGrid(wards, config, homes=homes, **({} if more else {"lost": stopped}))
        grid._observer = sent.append
        state = federation.run_federation(grid, config, lambda _: federation.RunContext())
        assert state.status == ("complete" if more else "interrupted")
    federate(wards, secure_config(tmp_path / "plain", privacy__aggregation="plain"), homes=homes)

    assert [line["clients"] for line in lines(output)] == [5, 5, 5]
    assert differences(output, tmp_path / "plain") <= MODEL_BOUND
    words = [
        message.content.array_records["arrays"]["words"].data
        for message in sent
        if message.metadata.message_type in ("train", "evaluate")
    ]
    # Round 2 was asked for twice, and gave the same bytes; all others were masked once.
    assert (len(words), len(set(words))) == (25, 20)
