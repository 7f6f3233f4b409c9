"""A server that asks for more than the policy allows, through real messages: it gets nothing beyond it."""

from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Message, RecordDict

import client.guard as guard_module
from client.guard import Guard
from client.training.trainer import Trainer
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.errors import LedgerError, PolicyError
from common.ledger.data_holder import own_holder
from common.ledger.transactions import LedgerSession
from common.messages.secure_messages import words_content
from common.messages.serialization import digest_of
from common.models.initialization import initial_arrays
from common.privacy.policy import ANYTHING
from tests.support.clients.own_clients import CLASSES, POLICY, SMALL, MakeConfig, OwnClient, code, write_images

pytestmark = pytest.mark.usefixtures("own_home")

HEAD: dict[str, Scalar] = {
    "model.backbone": "timm:test_resnet",
    "model.weights": "random",
    "data.image-size": 32,
    "model.tuning": "head",
}


def kinds() -> list[str]:
    with own_holder().open_session() as session:
        return [entry.kind for entry in session.ledger.entries()]


def refusals() -> list[str]:
    with own_holder().open_session() as session:
        return [entry.event["why"] for entry in session.ledger.entries("kind = 'refuse'")]


def arrays_of(reply: Message) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in reply.content.array_records["arrays"].items()}


WISHES: dict[str, tuple[dict[str, Scalar], str]] = {
    "hardly-any-noise": ({"privacy.noise-multiplier": 0.2, "privacy.target-epsilon": ""}, "noise multiplier"),
    "larger-epsilon": ({"privacy.target-epsilon": 8.0}, "epsilon would come to"),
    "larger-delta": ({"privacy.delta": 1e-3}, "delta 0.001"),
    "many-rounds": ({"num-rounds": 500, "privacy.noise-multiplier": 1.0, "privacy.target-epsilon": ""}, "epsilon 355"),
    "no-mechanism": ({"privacy.mechanism": "none"}, "privacy.mechanism='none'"),
    "exact-metrics": ({"privacy.metrics": "exact"}, "privacy.metrics='exact'"),
}


@pytest.mark.parametrize("wish", WISHES)
@pytest.mark.parametrize("kind", ["query", "train", "evaluate"])
def test_a_wish_beyond_the_policy_gets_a_bare_code_and_nothing_is_computed(
    tmp_path: Path, images: Path, make_config: MakeConfig, wish: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("something was computed")

    monkeypatch.setattr(Trainer, "train", never)
    monkeypatch.setattr(Trainer, "evaluate", never)
    settings, why = WISHES[wish]
    client = OwnClient(tmp_path, images)

    reply = client.ask(make_config(SMALL | settings), kind, run="greedy")

    assert vars(reply.error) == {"_code": 1006, "_reason": "POLICY"}
    assert not reply.has_content()
    assert set(kinds()) == {"genesis", "refuse"}
    assert why in refusals()[0]


@pytest.mark.parametrize("kind", ["query", "train"])
def test_noise_at_the_server_is_refused_by_a_policy_that_trusts_nobody(
    tmp_path: Path, images: Path, make_config: MakeConfig, kind: str
) -> None:
    central = make_config(SMALL | {"privacy.mechanism": "client-dp", "num-clients": 5})

    assert code(OwnClient(tmp_path, images).ask(central, kind, run="greedy")) == "POLICY"
    assert "privacy.mechanism='client-dp'" in refusals()[0]


def test_noise_zero_is_no_setting_at_all(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    config = make_config(SMALL)
    client = OwnClient(tmp_path, images)
    hostile = config.model_copy(update={"privacy": config.privacy.model_copy(update={"noise_multiplier": 0.0})})

    assert code(client.ask(hostile, "train", run="greedy")) == "CONFIG"
    assert kinds() == ["genesis"]


def test_all_layers_instead_of_the_head_are_refused_by_a_policy_that_says_head(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, images, POLICY.replace('"full"', '"head"'))

    allowed = client.ask(make_config(SMALL | HEAD), "query", run="modest")
    refused = client.ask(make_config(SMALL | HEAD | {"model.tuning": "full"}), "query", run="greedy")

    assert (code(allowed), code(refused)) == ("ok", "POLICY")
    assert "model.tuning='full'" in refusals()[0]


@pytest.mark.parametrize("extra", [{"seed": 7}, {"noise-seed": 7}, {"lr": 1e6}, {"policy": "x"}, {"max-epsilon": 99.0}])
def test_a_message_cannot_bring_a_seed_or_any_other_setting(
    tmp_path: Path, images: Path, make_config: MakeConfig, extra: dict[str, Scalar]
) -> None:
    client = OwnClient(tmp_path, images)

    assert code(client.ask(make_config(SMALL), "train", run="first", **extra)) == "MESSAGE"
    assert kinds() == ["genesis"]


def test_a_seed_in_the_configuration_reaches_no_noise(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    config = make_config(SMALL | {"seed": 5})
    clients = [OwnClient(tmp_path, write_images(tmp_path / f"set{n}", range(n, n + 40))) for n in (1000, 2000)]

    first, second = (client.ask(config, "train", run="first") for client in clients)
    start = initial_arrays(config, (8, 8, 3), CLASSES)["conv1.weight"]
    steps = [(arrays_of(reply)["conv1.weight"] - start).ravel() for reply in (first, second)]

    assert abs(np.corrcoef(*steps)[0, 1]) < 5 / np.sqrt(start.size)


def test_the_same_request_gets_the_same_bytes_and_trains_once(
    tmp_path: Path, images: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, client = make_config(SMALL), OwnClient(tmp_path, images)
    trained: list[int] = []
    real = Trainer.train

    def counting(self: Trainer, *arguments: object, **named: object) -> object:
        trained.append(1)
        return real(self, *arguments, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(Trainer, "train", counting)

    first, again = (client.ask(config, "train", run="first") for _ in range(2))

    assert all(np.array_equal(a, b) for a, b in zip(arrays_of(first).values(), arrays_of(again).values(), strict=True))
    assert first.content["metrics"] == again.content["metrics"]
    assert len(trained) == 1
    assert kinds().count("reserve") == kinds().count("commit") == 1


def test_the_same_round_with_another_model_is_refused(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    config, client = make_config(SMALL), OwnClient(tmp_path, images)
    client.ask(config, "train", run="first")

    assert code(client.ask(config, "train", run="first", fill=0.5)) == "POLICY"
    assert kinds().count("reserve") == 1


def test_rounds_beyond_the_plan_and_a_second_closing_are_refused(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    config, client = make_config(SMALL), OwnClient(tmp_path, images)

    answers = [code(client.ask(config, "train", run="first", server_round=n)) for n in (1, 2, 3)]
    closings = [code(client.ask(config, "evaluate", run="first", server_round=n)) for n in (2, 1)]

    assert answers == ["ok", "ok", "MESSAGE"]
    assert closings == ["ok", "POLICY"]


def test_a_closed_run_answers_nothing_more(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    config, client = make_config(SMALL), OwnClient(tmp_path, images)
    client.ask(config, "train", run="first")

    assert code(client.ask(config, "query.close", run="first")) == "ok"
    assert code(client.ask(config, "train", run="first")) == "POLICY"
    assert code(client.ask(config, "train", run="first", server_round=2)) == "POLICY"


def test_a_run_cannot_change_its_plan_under_way(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    client = OwnClient(tmp_path, images)
    client.ask(make_config(SMALL), "query", run="first")

    looser = make_config(SMALL | {"privacy.target-epsilon": 4.5})

    assert code(client.ask(looser, "train", run="first")) == "POLICY"
    assert "another plan" in refusals()[0]


def test_nothing_leaves_when_the_ledger_cannot_be_written(
    tmp_path: Path, images: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise LedgerError("no space left on device, /data/patients")

    monkeypatch.setattr(LedgerSession, "commit", full)
    client = OwnClient(tmp_path, images)

    reply = client.ask(make_config(SMALL), "train", run="first")

    assert vars(reply.error) == {"_code": 1007, "_reason": "LEDGER"}
    assert kinds().count("reserve") == 1


def test_a_round_that_failed_after_it_was_reserved_is_computed_under_the_same_reservation(
    tmp_path: Path, images: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, client = make_config(SMALL), OwnClient(tmp_path, images)
    with monkeypatch.context() as patch:
        patch.setattr(guard_module, "pack", lambda _: 1 / 0)
        assert code(client.ask(config, "train", run="first")) == "INTERNAL"

    assert code(client.ask(config, "train", run="first")) == "ok"
    assert kinds().count("reserve") == kinds().count("commit") == 1


def test_an_older_copy_of_the_ledger_is_refused_whatever_is_asked(
    tmp_path: Path, images: Path, make_config: MakeConfig, own_home: Path
) -> None:
    config, client = make_config(SMALL), OwnClient(tmp_path, images)
    client.ask(config, "query", run="first")
    backup = (own_home / "holder" / "ledger.sqlite").read_bytes()
    client.ask(config, "train", run="first")
    for file in (own_home / "holder").glob("ledger.sqlite*"):
        file.unlink()
    (own_home / "holder" / "ledger.sqlite").write_bytes(backup)

    assert code(client.ask(config, "train", run="first", server_round=2)) == "LEDGER"


def test_exact_metrics_that_a_policy_allows_are_noted_and_come_without_a_loss(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, images, POLICY.replace('"private"', '"private", "exact"'))
    config = make_config(SMALL | {"privacy.metrics": "exact"})

    train, closing = (client.ask(config, kind, run="first") for kind in ("train", "evaluate"))

    assert set(train.content["metrics"]) == set(closing.content["metrics"]) == {"num-examples", "confusion"}
    with own_holder().open_session() as session:
        notes = [entry.event["note"] for entry in session.ledger.entries("kind = 'note'")]
    assert notes == ["exact counts of held-out images left"]


def test_a_mechanism_that_trusts_others_is_noted_where_a_policy_allows_it(
    tmp_path: Path, images: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, images, POLICY + 'mechanisms = ["dp-sgd", "client-dp", "none"]\n')
    for mechanism in ("none", "client-dp"):
        settings: dict[str, Scalar] = {"privacy.mechanism": mechanism, "num-clients": 5, "privacy.metrics": ""}
        policy_metrics = client.folder / "policy.toml"
        policy_metrics.write_text(policy_metrics.read_text().replace('"private"]', '"private", "exact"]'))
        assert code(client.ask(make_config(SMALL | settings), "query", run=mechanism)) == "ok"

    with own_holder().open_session() as session:
        notes = [entry.event["note"] for entry in session.ledger.entries("kind = 'note'")]
    assert [("none" in notes[0]), ("client-dp" in notes[1])] == [True, True]


def test_an_expired_policy_refuses_everything(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    client = OwnClient(tmp_path, images, POLICY + "expires = 2020-01-01\n")

    assert code(client.ask(make_config(SMALL), "query", run="first")) == "POLICY"
    assert "ended on 2020-01-01" in refusals()[0]


def test_a_broken_policy_file_refuses_everything(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    client = OwnClient(tmp_path, images)
    (client.folder / "policy.toml").write_text("max-epsilon = 'a lot'\n")

    assert code(client.ask(make_config(SMALL), "train", run="first")) == "CONFIG"


def test_heads_move_on_with_every_reply(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    config: RunConfig = make_config(SMALL)
    client = OwnClient(tmp_path, images)

    replies = [client.ask(config, "query", run="first"), client.ask(config, "train", run="first")]
    seqs = [reply.content.config_records["ledger"]["seq"] for reply in replies]

    assert seqs == [2, 4]


def test_masked_closing_counts_leave_once_whatever_round_the_server_names(make_config: MakeConfig) -> None:
    """A killed client still holds the masks, and a second vector under them would say more than one sum."""
    secure: dict[str, Scalar] = {"privacy.mechanism": "none", "privacy.aggregation": "secure", "round-retries": 0}
    config = make_config(secure | {"num-clients": 5})
    guard = Guard(config, "a", ANYTHING, own_holder(), None, (None, None))  # type: ignore[arg-type]
    run, masked = "ab" * 16, words_content(np.zeros(3, dtype=np.uint64), 9)

    def asked(server_round: int) -> RecordDict:
        return RecordDict({"config": ConfigRecord({"server-round": server_round})})

    first, _ = guard.answer(run, 3, "closing", asked(3), lambda *_: masked)
    again, _ = guard.answer(run, 3, "closing", asked(3), lambda *_: pytest.fail("computed"))

    assert digest_of(first) == digest_of(again)
    with pytest.raises(PolicyError, match="again with another model"):
        guard.answer(run, 4, "closing", asked(4), lambda *_: pytest.fail("computed"))


@pytest.mark.parametrize(("num_survivors", "allowed"), [(5, True), (4, False)])
def test_no_sum_over_fewer_clients_than_the_policy_wants_is_opened(
    make_config: MakeConfig, num_survivors: int, allowed: bool
) -> None:
    """The server promises five in its settings, and the protocol's own least number is four."""
    secure: dict[str, Scalar] = {"privacy.mechanism": "none", "privacy.aggregation": "secure", "round-retries": 0}
    config = make_config(secure | {"num-clients": 5, "min-clients": 5})
    policy = ANYTHING.model_copy(update={"min_cohort": 5})
    guard = Guard(config, "a", policy, own_holder(), None, (None, None))  # type: ignore[arg-type]

    if allowed:
        guard.open_sum("ab" * 16, 1, b"survivors", num_survivors=num_survivors)
    else:
        with pytest.raises(PolicyError, match="min-cohort"):
            guard.open_sum("ab" * 16, 1, b"survivors", num_survivors=num_survivors)
    assert kinds() == (["genesis", "note"] if allowed else ["genesis", "refuse"])
