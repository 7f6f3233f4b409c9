"""What a client of a secure sum refuses, whatever its server asks: through the handlers that answer messages."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import Message, RecordDict

import client.app as client_app
from client.admission import admit
from client.secure.exchange import MaskedReply
from client.secure.secrets_file import SecretsFile
from client.training.dp_sgd import FRESH_STREAMS
from common.errors import FederationError, PolicyError
from common.messages.fields import Releases
from common.messages.secure_words import SecureWords
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.roster import Identity
from server import federation
from tests.support.clients.own_clients import code
from tests.support.clients.secure_clients import Wards, secure_config
from tests.support.secagg.federation import Federation, roster_of
from tests.support.server.failing_federation import FailingGrid, lines, round_of
from tests.support.server.secure_probes import Probe, changed, kind_of, other_model, secrets_of, secure_round, wrong_run

SLOW = pytest.mark.slow
_ADVERT = ("index", "channel-key", "mask-keys-digest", "seeds-digest", "signature")


@pytest.fixture(autouse=True)
def home_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))


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


def test_a_client_refuses_what_would_show_its_update(wards: Wards, tmp_path: Path) -> None:
    probe = BetweenExchanges(number=0, kind="unmask", in_round=2)
    config = secure_config(tmp_path / "run")
    probe.grid = FailingGrid(wards.folders, config, homes=wards.homes, lost=probe)

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


class FirstSetUp(Probe):
    """Another run of the same clients, stopped when shares have been dealt."""

    def __call__(self, number: int, message: Message) -> bool:
        super().__call__(number, message)
        if (number, kind_of(message)) == (0, "accept"):
            raise KeyboardInterrupt
        return False


class DuringSetUp(Probe):
    """Each exchange of the set-up at client 0, and the opening of round 1. `other` is what another run asked it."""

    def __init__(self, other: dict[tuple[str, int], Message]) -> None:
        super().__init__(number=0, kind="", in_round=0)
        self._other, self._done = other, set[str]()

    def __call__(self, number: int, message: Message) -> bool:
        super().__call__(number, message)
        kind = kind_of(message)
        lies = {"advertise": self._advertise, "deal": self._deal, "accept": self._accept, "unmask": self._unmask}
        if number == 0 and kind in lies and kind not in self._done:
            self._done.add(kind)
            self.grid._contexts.clear()
            lies[kind](message)
        return False

    def _try(self, message: Message, lies: dict[str, dict[str, Any]]) -> None:
        for name, values in lies.items():
            self.codes[name] = code(self.ask(changed(message, **values)))

    def _advertise(self, message: Message) -> None:
        names, sizes = (list(message.content["secure"][key]) for key in ("names", "sizes"))
        self._try(
            message,
            {
                "a set-up with a client that is not on the roster": {"names": [*names, "w"], "sizes": [*sizes, 9]},
                "a set-up without this client": {"names": names[1:], "sizes": sizes[1:]},
                "a set-up with another weight for it": {"sizes": [sizes[0] + 1, *sizes[1:]]},
            },
        )

    def _deal(self, message: Message) -> None:
        right, other = dict(message.content["secure"]), dict(self._other["deal", 0].content["secure"])

        def put(key: str, place: int, value: Any) -> list[Any]:
            return [*right[key][:place], value, *right[key][place + 1 :]]

        invented = {key: [*right[key], right[key][1]] for key in _ADVERT}
        strangers = [Identity(bytes([number]) * 32) for number in (3, 4)]
        signed = [*right["signature"][:3], *(stranger.sign(b"advert") for stranger in strangers)]
        first = {key: right[key][:1] for key in _ADVERT}
        self._try(
            message,
            {
                "an invented client": invented | {"index": [*right["index"], 5]},
                "invented clients in place of honest ones": {
                    "channel-key": [*right["channel-key"][:3], b"3" * 32, b"4" * 32],
                    "signature": signed,
                },
                "a substituted channel key": {"channel-key": put("channel-key", 1, b"k" * 32)},
                "substituted mask keys": {"mask-keys": put("mask-keys", 0, right["mask-keys"][1])},
                "another client's advert as its own": {"index": put("index", 0, 1)},
                "a forged advert of its own": {"signature": put("signature", 0, right["signature"][1])},
                "fewer clients than must be honest": {key: right[key][:3] for key in _ADVERT}
                | {key: right[key][:2] for key in ("neighbours", "mask-keys")},
                "another run's set-up": other,
                "another run's adverts of all others": {key: first[key] + list(other[key])[1:] for key in _ADVERT}
                | {"mask-keys": other["mask-keys"]},
            },
        )

    def _accept(self, message: Message) -> None:
        right, other = dict(message.content["secure"]), dict(self._other["accept", 0].content["secure"])
        self._try(
            message,
            {
                "another run's shares": other,
                "shares of another client": {"boxes": [right["boxes"][1], *right["boxes"][1:]]},
                "shares of some clients": {key: right[key][1:] for key in ("members", "boxes")},
            },
        )

    def _unmask(self, message: Message) -> None:
        assert self.grid._homes is not None
        (secrets,) = secrets_of(self.grid._homes[0], message)
        copied = secrets.read_bytes()
        self._try(message, {"a sum without client 4": {"survivors": [0, 1, 2, 3]}})
        # Its mask key is on the way to being opened. Its seed, too, would show its own words.
        self._try(message, {"client 4, dropped and then revived": {}})
        self._try(message, {"client 4, revived, with other responders": {"responders": [0, 1, 2, 3]}})
        secrets.write_bytes(copied)
        self._try(message, {"client 4, revived after the secrets were restored": {}})
        self._try(message, {"a sum without client 4, again": {"survivors": [0, 1, 2, 3]}})


def test_a_client_refuses_a_set_up_that_is_not_the_rosters(wards: Wards, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"num_rounds": 2, "privacy__metrics": "none"}
    first, config = FirstSetUp(number=0, kind="", in_round=0), secure_config(tmp_path / "first", **settings)
    first.grid = FailingGrid(wards.folders, config, homes=wards.homes, lost=first)
    federation.run_federation(first.grid, config, lambda _: federation.RunContext())
    probe, config = DuringSetUp(first.asked), secure_config(tmp_path / "run", **settings)
    probe.grid = FailingGrid(wards.folders, config, homes=wards.homes, lost=probe)

    state = federation.run_federation(probe.grid, config, lambda _: federation.RunContext())

    assert {name: found for name, found in probe.codes.items() if found != "PRIVACY"} == {
        "a set-up with a client that is not on the roster": "MESSAGE",
        "a set-up without this client": "MESSAGE",
        "a set-up with another weight for it": "MESSAGE",
        "a sum without client 4": "ok",
        "client 4, revived after the secrets were restored": "POLICY",  # by the marker in the ledger
        "a sum without client 4, again": "ok",
    }
    assert len(probe.codes) == 20
    # What is refused changes nothing. The sum of all was refused, so the others have opened it without client 0.
    assert state.status == "complete"
    assert [(line["clients"], line.get("lost_after", {})) for line in lines(tmp_path / "run")] == [
        (5, {"ward-0": "PRIVACY"}),
        (5, {}),
    ]


def test_no_words_leave_in_a_sum_of_fewer_honest_clients_than_were_agreed_on(wards: Wards, tmp_path: Path) -> None:
    """Each share of noise is for three honest clients. A set-up for two would open sums with too little of it."""
    config = secure_config(tmp_path / "run", num_rounds=1, privacy__metrics="none", privacy__secure_honest=2)
    grid = FailingGrid(wards.folders, config, homes=wards.homes)
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


@pytest.mark.parametrize(
    ("mechanism", "strict", "refused"), [("none", True, 1), ("none", False, 0), ("dp-sgd", True, 0)]
)
def test_a_client_refuses_exact_sums_under_strict_rows_whatever_its_classes(
    wards: Wards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mechanism: str, strict: bool, refused: int
) -> None:
    monkeypatch.setenv("BRACT_HOME", str(wards.homes[0]))
    more: dict[str, Any] = {"privacy__strict_rows": strict, "privacy__mechanism": mechanism}
    more |= {"privacy__metrics": "none", "training__batch_size": ""}
    config = secure_config(tmp_path / "run", **more)
    place, why = str(wards.folders[0]), list[str]()

    try:
        admit(config, place, "", f"run {mechanism} {strict}", "query")
    except PolicyError as error:
        why.append(str(error))

    assert why == ["privacy.strict-rows refuses secure sums without noise over real clients"] * refused


def masked_afresh(attempt: int) -> list[np.ndarray]:
    """What a client sends for round 1 of zero gradients, twice under one set-up: as if it was killed in between."""
    private = {"privacy__mechanism": "dp-sgd", "model__backbone": "timm:test_resnet", "training__batch_size": ""}
    config = secure_config(Path("run"), privacy__metrics="none", **private)
    weight, sizes = {"head.weight": (2, 500)}, dict.fromkeys(roster_of(5).names, 20)
    words = SecureWords(weight, 2, Releases.of(config), sizes, 5, config.plan(20))
    assert config.secure is not None
    terms = words.terms(config.secure, roster_of(5), run="run", attempt=attempt, num_rounds=config.num_rounds)
    state, sent = Federation.copied(terms).clients[0].to_bytes(), []
    for _ in range(2):
        session = SimpleNamespace(
            trainer=SimpleNamespace(config=config, classes=("a", "b")),
            secrets=lambda _: SimpleNamespace(load=lambda: (ClientState.from_bytes(state), sizes)),
            party=SimpleNamespace(roster=roster_of(5)),
            rows=SimpleNamespace(num_units=20),
            name=roster_of(5).names[0],
            travelling=weight,
            plan=words.plan,
            streams=FRESH_STREAMS,
        )
        reply = MaskedReply(session, "run", RecordDict())  # type: ignore[arg-type]
        content = reply.gradient(np.zeros(1000), None, server_round=1)
        sent.append(terms.ring.unpacked(content.array_records["arrays"]["words"].numpy()))
    return [terms.ring.signed(one) for one in (sent[0], sent[1], terms.ring.reduced(sent[0] - sent[1]))]


def test_a_round_that_is_masked_again_has_fresh_noise() -> None:
    """Equal noise under two set-ups, in two sums that differ by one client, would show that client's vector."""
    first, _, steps = masked_afresh(0)
    other, _, _ = masked_afresh(1)

    # One set-up has one mask a round, so what differs is the noise. The first of them never left.
    assert np.count_nonzero(steps) == len(steps)
    assert np.abs(steps).max() < 2**36
    assert np.abs(first - other).max() > 2**38


class AfterDeath(Probe):
    """Round 2 at client 0, which was killed after its ledger was written, and before its secrets were."""

    stage = ""
    next_rounds: tuple[int, ...] = ()

    def __call__(self, number: int, message: Message) -> bool:
        super().__call__(number, message)
        masked = {"train": 2, "evaluate": 4}.get(self.stage)
        if number == 1 and kind_of(message) == "unmask" and secure_round(message) == masked and not self.codes:
            words = next(asked for (kind, of), asked in self.asked.items() if kind == self.stage and of >= 2)
            self.codes = {"other": code(self.ask(other_model(words)))}
            before = self._next_round(words)
            self.codes["again"] = code(self.ask(words))
            # The words have left now, and with them goes what masked them.
            self.next_rounds = (before, self._next_round(words))
        if number == 0 and kind_of(message) == "train" and round_of(message) == 3 and self.stage == "unmask":
            opened = self.asked["unmask", 2]
            second = changed(opened, survivors=[0, 1, 2, 3])
            self.codes = {"other": code(self.ask(second)), "again": code(self.ask(opened))}
        return False

    def _next_round(self, message: Message) -> int:
        assert self.grid._homes is not None
        (secrets,) = secrets_of(self.grid._homes[0], message)
        return SecretsFile(secrets, durable=False).load()[0].next_round

    def probe(self) -> None:
        pass


@pytest.mark.parametrize(
    ("stage", "counted", "next_rounds"),
    [
        ("train", [5, 4, 5], (2, 3)),
        pytest.param("evaluate", [5, 5, 5], (4, 5), marks=SLOW),
        pytest.param("unmask", [5, 5, 5], (), marks=SLOW),
    ],
)
def test_a_client_killed_before_its_secrets_are_rewritten_answers_nothing_else(
    wards: Wards,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    counted: list[int],
    next_rounds: tuple[int, ...],
) -> None:
    genuine, killed = SecretsFile.save, list[int]()

    def killed_once(file: SecretsFile, state: Any, sizes: Any) -> None:
        reached = {"train": state.next_round == 3, "evaluate": state.next_round == 5, "unmask": 2 in state._answered}[
            stage
        ]
        if reached and state.index == 0 and not killed:
            killed.append(1)
            raise RuntimeError("killed")
        genuine(file, state, sizes)

    monkeypatch.setattr(SecretsFile, "save", killed_once)
    probe, config = AfterDeath(number=0, kind="", in_round=0), secure_config(tmp_path / "run")
    probe.stage, probe.grid = stage, FailingGrid(wards.folders, config, homes=wards.homes, lost=probe)

    federation.run_federation(probe.grid, config, lambda _: federation.RunContext())

    assert killed
    assert probe.codes == {"again": "ok", "other": "POLICY"}
    assert probe.next_rounds == next_rounds
    assert [line["clients"] for line in lines(tmp_path / "run")] == counted
