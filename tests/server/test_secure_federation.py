"""Runs in which the server sees sums alone, over real clients whose network fails.

Drives `client.secure.exchange`, `client.secure.party`, `client.secure.secrets_file`, `common.messages.secure_messages`,
`server.state.secure_statement`, `server.rounds.secure_rounds`, `server.rounds.secure_setup`.
"""

import json
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from common.errors import FederationError
from common.ledger.audit.audit import audit_ledger
from common.messages.secure_words import SecureWords
from server import federation
from server.audit.audit import audit_run
from tests.support.clients.secure_clients import Wards, secure_config
from tests.support.server.failing_federation import FIRST_NODE, FailingGrid, federate, lines
from tests.support.server.secure_probes import folder_of, kind_of, secrets_of, secure_round, unless

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


@pytest.fixture(autouse=True)
def home_of_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))


def model_of(output: Path) -> dict[str, np.ndarray]:
    return load_file(output / "model" / "model.safetensors")


def differences(output: Path, plain: Path) -> float:
    ours, theirs = model_of(output), model_of(plain)
    return max(float(np.abs(ours[name] - theirs[name]).max() / max(1.0, np.abs(theirs[name]).max())) for name in ours)


def test_a_secure_run_equals_the_plain_one(wards: Wards, tmp_path: Path) -> None:
    sent: list[Message] = []
    asked, sizes, modes = list[Message](), list[int](), set[tuple[int, int]]()

    def look(number: int, message: Message) -> bool:
        asked.append(message)
        for file in secrets_of(wards.homes[0], message):
            modes.add((stat.S_IMODE(file.stat().st_mode), stat.S_IMODE(file.parent.stat().st_mode)))
            if number == 0 and kind_of(message) == "train":
                sizes.append(file.stat().st_size)
        return False

    config = secure_config(tmp_path / "secure")
    grid = FailingGrid(wards.folders, config, homes=wards.homes, lost=look)
    grid._observer = sent.append
    state = federation.run_federation(grid, config, lambda _: federation.RunContext())
    federate(wards.folders, secure_config(tmp_path / "plain", privacy__aggregation="plain"), homes=wards.homes)

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
    check_statement(tmp_path / "secure", roster=(wards.folders[0] / "policy.toml").read_text())
    assert "aggregation" not in json.loads((tmp_path / "plain" / "privacy.json").read_text())
    assert modes == {(0o600, 0o700)}
    # Each round has erased its own secrets.
    assert (len(sizes), sizes) == (3, sorted(set(sizes), reverse=True))
    last = asked[-1]
    for home in wards.homes:
        assert audit_ledger(home / "holder" / "ledger.sqlite").remarks.doubts == []
        assert not folder_of(home, last).exists()  # erased at the end


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
    wards: Wards,
    tmp_path: Path,
    kind: str,
    clients: tuple[int, ...],
    counted: list[int],
    refused: dict[str, str],
    lost: str,
) -> None:
    output, fails = tmp_path / "run", unless(kind, *clients)
    state, grid = federate(wards.folders, secure_config(output), homes=wards.homes, **{lost: fails})

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
        federate(wards.folders, secure_config(same, privacy__aggregation="plain"), homes=wards.homes, **plain)
        assert differences(output, same) <= MODEL_BOUND


def test_a_set_up_with_too_few_clients_sums_nothing(wards: Wards, tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"needs 4 of 5 clients .*ward-3 \(LATE\), ward-4 \(LATE\)"):
        federate(wards.folders, secure_config(tmp_path / "run"), homes=wards.homes, lost=unless("advertise", 3, 4))


class OtherSettings(FailingGrid):
    """A server that lets all clients but one make no step, so that the sum would be the update of that one."""

    def _new_context(self, node: int) -> Any:
        context = super()._new_context(node)
        if node > FIRST_NODE:
            context.run_config["training.learning-rate"] = 1e-9
        return context


def test_a_sum_of_clients_with_other_settings_says_nothing(wards: Wards, tmp_path: Path) -> None:
    config = secure_config(tmp_path / "run", num_rounds=1, privacy__metrics="none")
    grid = OtherSettings(wards.folders, config, homes=wards.homes)

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


def test_a_client_that_answers_as_another_is_left_out_itself(wards: Wards, tmp_path: Path) -> None:
    def lies(message: Message) -> None:
        if kind_of(message) == "unmask" and message.metadata.src_node_id == FIRST_NODE:
            message.content.config_records["secure"]["index"] = 1

    config = secure_config(tmp_path / "run", num_rounds=1, privacy__metrics="none")
    grid = FailingGrid(wards.folders, config, homes=wards.homes)
    grid._observer = lies
    federation.run_federation(grid, config, lambda _: federation.RunContext())

    # Its masked update had come, so the model has it.
    assert [(line["clients"], line["lost_after"]) for line in lines(tmp_path / "run")] == [(5, {"ward-0": "MESSAGE"})]


@SLOW
def test_a_resumed_run_goes_on_with_the_masks_that_are_left(wards: Wards, tmp_path: Path) -> None:
    sent: list[Message] = []

    def stopped(number: int, message: Message) -> bool:
        if kind_of(message) == "unmask" and secure_round(message) == 2 and number == 3:
            raise KeyboardInterrupt
        return False

    output = tmp_path / "run"
    for more in ({}, {"resume": True}):
        config = secure_config(output, **more)
        grid = FailingGrid(wards.folders, config, homes=wards.homes, **({} if more else {"lost": stopped}))
        grid._observer = sent.append
        state = federation.run_federation(grid, config, lambda _: federation.RunContext())
        assert state.status == ("complete" if more else "interrupted")
    federate(wards.folders, secure_config(tmp_path / "plain", privacy__aggregation="plain"), homes=wards.homes)

    assert [line["clients"] for line in lines(output)] == [5, 5, 5]
    assert differences(output, tmp_path / "plain") <= MODEL_BOUND
    words = [
        message.content.array_records["arrays"]["words"].data
        for message in sent
        if message.metadata.message_type in ("train", "evaluate")
    ]
    # Round 2 was asked for twice, and gave the same bytes; all others were masked once.
    assert (len(words), len(set(words))) == (25, 20)
