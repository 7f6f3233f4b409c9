"""Runs in which the server sees sums alone, over real clients whose network fails.

Drives `client.secure.exchange`, `client.secure.party`, `client.secure.secrets_file`, `common.messages.secure_messages`,
`server.rounds.secure_rounds`, `server.rounds.secure_setup`.
"""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file

from common.errors import FederationError
from common.ledger.audit.audit import audit_ledger
from server import federation
from tests.support.clients.secure_clients import homes_of, secure_clients, secure_config
from tests.support.server.failing_federation import FailingGrid, federate, lines, round_of

# Steps of 2^-44 at five clients, summed over them, and float32 rounding in both averages.
MODEL_BOUND = 5 * 2.0**-44 + 4 * 2.0**-24


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
    grid = FailingGrid(wards, config := secure_config(tmp_path / "secure"), homes=homes)
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
    for home in homes:
        assert audit_ledger(home / "holder" / "ledger.sqlite").remarks.doubts == []
        assert not list((home / "holder" / "secure-sums").glob("*/*"))  # erased at the end


def check_what_left(sent: list[Message]) -> None:
    masked = [message for message in sent if message.metadata.message_type in ("train", "evaluate")]
    assert len(masked) == 4 * 5
    words = []
    for message in masked:
        assert set(message.content) == {"arrays", "metrics"}
        assert set(message.content.metric_records["metrics"]) == {"num-examples"}
        assert list(message.content.array_records["arrays"]) == ["words"]
        words.append(message.content.array_records["arrays"]["words"].numpy())
    for vector in words:
        counted = np.bincount(vector.view(np.uint8), minlength=256)
        expected = 8 * vector.size / 256
        # 255 degrees of freedom: 6 standard deviations above the mean.
        assert ((counted - expected) ** 2 / expected).sum() < 255 + 6 * (2 * 255) ** 0.5
    # No word of a mask comes twice, over clients and rounds.
    together = np.concatenate(words)
    assert len(np.unique(together)) == len(together)


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


@pytest.mark.parametrize(
    ("kind", "clients", "counted", "refused"),
    [
        ("advertise", (4,), [4, 4, 4], {"client ward-4": "LATE"}),
        ("deal", (4,), [4, 4, 4], {"client ward-4": "LATE"}),
        ("accept", (4,), [5, 5, 5], {}),
        ("train", (1,), [5, 4, 5], {}),
        ("unmask", (1,), [5, 5, 5], {}),
        ("train", (1, 2), [5, 3, 5], {}),
        ("unmask", (1, 2), [5, 5, 5], {}),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple | list) else str(value)[:9],
)
@pytest.mark.parametrize("lost", ["lost", "unheard"])
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
