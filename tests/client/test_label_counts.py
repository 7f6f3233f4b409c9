"""A client counts its labels once a run, charges the counts before it trains, and sends none of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.training.dp_sgd import FreshStreams
from client.training.trainer import Trainer
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.ledger.audit.audit import audit_ledger
from common.ledger.data_holder import own_holder
from common.ledger.registrations import charges_in
from common.ledger.transactions import LedgerSession
from common.privacy.events import merged
from tests.support.clients.own_clients import POLICY, SMALL, MakeConfig, OwnClient, code

pytestmark = pytest.mark.usefixtures("own_home")
BALANCED: dict[str, Scalar] = SMALL | {"training.class-weights": "balanced"}


@pytest.fixture(name="config")
def config_fixture(make_config: MakeConfig) -> RunConfig:
    return make_config(BALANCED)


@pytest.fixture(name="drawn")
def drawn_fixture(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The label counts that were drawn, in order."""
    found, real = list[np.ndarray](), FreshStreams.release_labels

    def release(self: FreshStreams, *args: Any) -> np.ndarray:
        found.append(real(self, *args))
        return found[-1]

    monkeypatch.setattr(FreshStreams, "release_labels", release)
    return found


@pytest.fixture(name="trained")
def trained_fixture(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """The label counts that each round was trained with."""
    found: list[np.ndarray] = []

    def train(_: Trainer, arrays: Any, *__: Any, label_counts: np.ndarray, **___: Any) -> Any:
        found.append(label_counts)
        return arrays

    monkeypatch.setattr(Trainer, "train", train)
    return found


def kinds() -> list[tuple[str, str]]:
    with own_holder().open_session() as session:
        return [(entry.kind, entry.event.get("release", "")) for entry in session.ledger.entries()]


def test_all_rounds_weigh_by_one_charged_draw(
    tmp_path: Path, images: Path, config: RunConfig, drawn: list[np.ndarray], trained: list[np.ndarray]
) -> None:
    client = OwnClient(tmp_path, images)
    replies = [client.ask(config, "train", run="r", server_round=number, fill=number) for number in (1, 2)]
    replies.append(client.ask(config, "evaluate", run="r", server_round=2))

    assert list(map(code, replies)) == ["ok"] * 3
    assert len(drawn) == 1
    assert [counts.tolist() for counts in trained] == [drawn[0].tolist()] * 2
    labels, rounds = [("reserve", "labels"), ("commit", "labels")], [("reserve", "train"), ("commit", "train")]
    closing = [("reserve", "closing"), ("commit", "closing")]
    assert kinds()[2:] == [*labels, *rounds, *rounds, *closing]
    with own_holder().open_session() as session:
        (charge,) = charges_in(session.ledger)
    assert merged(charge.released["training"]) == merged(charge.planned["training"])
    assert audit_ledger(own_holder().ledger_file).remarks.doubts == []


def test_no_message_holds_label_counts(
    tmp_path: Path, images: Path, make_config: MakeConfig, config: RunConfig
) -> None:
    plain = make_config(SMALL)
    client = OwnClient(tmp_path, images, POLICY.replace("5.0", "9.0"))

    def fields(wanted: RunConfig, kind: str, run: str) -> dict[str, list[str]]:
        reply = client.ask(wanted, kind, run=run)
        return {name: sorted(record) for name, record in reply.content.items()}

    for kind in ("query", "train", "evaluate"):
        assert fields(config, kind, "balanced") == fields(plain, kind, "plain")


def test_a_crash_before_the_counts_are_committed_leaves_their_charge_and_trains_nothing(
    tmp_path: Path,
    images: Path,
    config: RunConfig,
    drawn: list[np.ndarray],
    trained: list[np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = OwnClient(tmp_path, images)

    def killed(*_: Any, **__: Any) -> bytes:
        raise MemoryError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(LedgerSession, "commit", killed)
        assert code(client.ask(config, "train", run="r")) == "INTERNAL"
    assert (kinds()[2:], trained) == ([("reserve", "labels")], [])

    assert code(client.ask(config, "train", run="r")) == "ok"
    assert [entry for entry in kinds() if entry == ("reserve", "labels")] == [("reserve", "labels")]
    # What was drawn before the crash was used for nothing.
    assert trained[0].tolist() == drawn[1].tolist()


def test_counts_that_another_process_committed_first_are_the_runs(
    tmp_path: Path, images: Path, config: RunConfig, trained: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    client, real = OwnClient(tmp_path, images), FreshStreams.release_labels
    seen: list[list[int]] = []

    def while_another_is_faster(self: FreshStreams, *args: Any) -> np.ndarray:
        with monkeypatch.context() as patch:
            patch.setattr(FreshStreams, "release_labels", lambda *_: np.array([7, 9]))
            seen.append([len(seen)])
            if len(seen) == 1:
                client.ask(config, "train", run="r")
        return real(self, *args)

    monkeypatch.setattr(FreshStreams, "release_labels", while_another_is_faster)
    client.ask(config, "train", run="r")
    client.ask(config, "train", run="r", server_round=2)

    assert {tuple(counts.tolist()) for counts in trained} == {(7, 9)}


def test_a_run_that_does_not_weigh_by_labels_counts_none(
    tmp_path: Path, images: Path, make_config: Callable[..., RunConfig], drawn: list[np.ndarray]
) -> None:
    client = OwnClient(tmp_path, images)

    assert code(client.ask(make_config(SMALL), "train", run="r")) == "ok"
    assert (drawn, [release for _, release in kinds() if release == "labels"]) == ([], [])


def test_weights_that_begin_to_follow_from_labels_are_another_plan(
    tmp_path: Path, images: Path, make_config: MakeConfig, config: RunConfig, drawn: list[np.ndarray]
) -> None:
    client = OwnClient(tmp_path, images)

    assert code(client.ask(make_config(SMALL), "train", run="r")) == "ok"
    assert code(client.ask(config, "train", run="r", server_round=2)) == "POLICY"
    assert drawn == []
