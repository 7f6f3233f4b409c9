"""What leaves a client, as real messages in bytes.

Drives `client.evaluation.evaluate`, `client.evaluation.private_counts`.
"""

import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

import client.app as client_app
from client.training.trainer import Trainer
from common.config.loading import resolved
from common.config.schema import RunConfig
from common.data.client_dataset import shard
from common.data.partitioning.assignment import load_or_make_partition
from common.data.preprocessing import Prepared, prepare
from common.errors import ClientFailure
from common.messages.codec import PROTOCOL_VERSION, arrays_to_record
from common.models.linear_head import HEAD_WEIGHT, initial_head

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(autouse=True)
def flower_identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


def ask(config: RunConfig, kind: str, content: RecordDict, partition: int = 0) -> Message:
    context = Context(
        1, 2, {"partition-id": partition, "num-partitions": 5, "bract-simulation": True}, RecordDict(), resolved(config)
    )
    return client_app.app(Message(content, 2, kind), context)


def train_content(
    arrays: dict[str, np.ndarray] | None = None, server_round: int = 1, run: str | None = None
) -> RecordDict:
    weights = arrays or initial_head(1280, 10)
    settings = ConfigRecord({"server-round": server_round, "run-id": run or secrets.token_hex(16)})
    return RecordDict({"arrays": arrays_to_record(weights), "config": settings})


def query_content() -> RecordDict:
    return RecordDict({"config": ConfigRecord({"run-id": secrets.token_hex(16), "protocol": PROTOCOL_VERSION})})


def test_train_under_dp_sends_arrays_the_declared_size_noised_counts_and_the_head_only(
    digits: Prepared, make_config: MakeConfig
) -> None:
    reply = ask(make_config(), "train", train_content())

    assert set(reply.content) == {"arrays", "metrics", "ledger"}
    assert set(reply.content["arrays"]) == {HEAD_WEIGHT}
    assert set(reply.content["metrics"]) == {"num-examples", "noised-correct", "noised-wrong"}
    assert set(reply.content["ledger"]) == {"ledger-id", "seq", "head", "public-key", "signature"}


def test_train_under_dp_differs_each_time_and_without_dp_repeats(digits: Prepared, make_config: MakeConfig) -> None:
    open_run = make_config({"privacy.mechanism": "none"})

    def weights(config: RunConfig) -> np.ndarray:
        return ask(config, "train", train_content()).content.array_records["arrays"][HEAD_WEIGHT].numpy()

    assert not np.array_equal(weights(make_config()), weights(make_config()))
    assert np.array_equal(weights(open_run), weights(open_run))


@pytest.mark.parametrize("mechanism", ["dp-sgd", "none"])
def test_only_counted_rounds_send_counts(digits: Prepared, make_config: MakeConfig, mechanism: str) -> None:
    config = make_config({"evaluation.every": 2, "privacy.mechanism": mechanism})

    first, second = (ask(config, "train", train_content(server_round=number)) for number in (1, 2))

    assert set(first.content["metrics"]) == {"num-examples"}
    counts = {"noised-correct", "noised-wrong"} if mechanism == "dp-sgd" else {"confusion", "loss-sum"}
    assert set(second.content["metrics"]) == {"num-examples"} | counts


def test_evaluate_is_refused_where_no_counts_may_leave(digits: Prepared, make_config: MakeConfig) -> None:
    reply = ask(make_config({"privacy.metrics": "none"}), "evaluate", train_content())

    assert reply.has_error()
    assert (reply.error.code, reply.error.reason) == (int(ClientFailure.PRIVACY), "PRIVACY")


def test_query_sends_declared_constants_only(digits: Prepared, make_config: MakeConfig) -> None:
    reply = ask(make_config(), "query", query_content())

    assert set(reply.content) == {"client", "ledger"}
    assert set(reply.content["client"]) == {"name", "num-units", "classes", "input-shape", "backbone-hash", "bundle"}


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        train_content({HEAD_WEIGHT: np.zeros((10, 3), dtype=np.float32)}),
        train_content({"secret.weight": np.zeros((2, 2), dtype=np.float32)}),
        train_content(server_round=0),
        RecordDict(dict(train_content()) | {"more": ConfigRecord({"text": "x" * 100_000})}),
    ],
)
def test_train_answers_a_hostile_message_with_a_bare_code(
    digits: Prepared, make_config: MakeConfig, content: RecordDict
) -> None:
    reply = ask(make_config(), "train", content)

    assert reply.has_error()
    assert reply.error.reason in ClientFailure.__members__


def test_an_exception_with_a_secret_sends_a_bare_code(
    digits: Prepared, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ValueError("patient-4711 has shape (3, 17)")

    monkeypatch.setattr(Trainer, "train", fail)

    reply = ask(make_config(), "train", train_content())

    assert vars(reply.error) == {"_code": 1000, "_reason": "INTERNAL"}


def test_head_client_needs_neither_torch_nor_timm(make_config: Callable[..., RunConfig], bract_home: Path) -> None:
    # As the server leaves it, and as another test that looks at the digits with its own classes may not.
    load_or_make_partition(make_config(), prepare(make_config()))
    script = """
import sys
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
from client.app import app
from common.config.loading import defaults, override, parse, resolved
from tests.client.test_app import train_content
config = resolved(parse(override(defaults(), {"privacy.mechanism": "none"})))
context = Context(1, 2, {"partition-id": 0, "num-partitions": 5, "bract-simulation": True}, RecordDict(), config)
assert not app(Message(train_content(), 2, "train"), context).has_error()
heavy = {"torch", "torchvision", "timm", "datasets", "flwr_datasets", "sklearn", "pandas", "opacus", "matplotlib"}
print(sorted(heavy & set(sys.modules)))
"""
    script = script.replace("from tests.client.test_app import train_content\n", _TRAIN_CONTENT)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


_TRAIN_CONTENT = """
import numpy as np
from flwr.app import ConfigRecord
from common.models.linear_head import initial_head
from common.messages.codec import arrays_to_record
def train_content():
    settings = ConfigRecord({"server-round": 1, "run-id": "a1" * 16})
    return RecordDict({"arrays": arrays_to_record(initial_head(1280, 10)), "config": settings})
"""


def test_train_under_dp_answers_no_more_rounds_than_planned_and_the_same_request_with_the_same_bytes(
    digits: Prepared, make_config: MakeConfig
) -> None:
    config, run = make_config({"num-rounds": 2}), secrets.token_hex(16)

    def answer(server_round: int, **arrays: np.ndarray) -> np.ndarray | None:
        reply = ask(config, "train", train_content(arrays or None, server_round, run))
        return None if reply.has_error() else reply.content.array_records["arrays"][HEAD_WEIGHT].numpy()

    answers = [answer(number) for number in (1, 1, 3, 2, 2, 10**15)]

    assert [found is not None for found in answers] == [True, True, False, True, True, False]
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[3], answers[4])
    assert answer(2, **{HEAD_WEIGHT: np.ones((10, 1280), dtype=np.float32)}) is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_train_refuses_a_model_that_is_not_finite(digits: Prepared, make_config: MakeConfig, value: float) -> None:
    reply = ask(make_config(), "train", train_content({HEAD_WEIGHT: np.full((10, 1280), value, dtype=np.float32)}))

    assert reply.error.reason == "MESSAGE"


@pytest.mark.parametrize("classes", [9, 11])
def test_train_refuses_a_wrong_number_of_classes_whatever_labels_it_holds(
    digits: Prepared, make_config: MakeConfig, classes: int
) -> None:
    reply = ask(make_config(), "train", train_content({HEAD_WEIGHT: np.zeros((classes, 1280), dtype=np.float32)}))

    assert reply.error.reason == "MESSAGE"


def test_a_node_outside_a_simulation_is_refused(digits: Prepared, make_config: MakeConfig) -> None:
    context = Context(1, 2, {}, RecordDict(), resolved(make_config()))

    reply = client_app.app(Message(train_content(), 2, "train"), context)

    assert reply.error.reason == "CONFIG"


def test_train_for_qfedavg_sends_the_mean_loss_of_the_incoming_model_on_training_images(
    digits: Prepared, make_config: MakeConfig
) -> None:
    config = make_config({"privacy.mechanism": "none", "strategy.name": "QFedAvg"})
    weight = np.random.default_rng(0).normal(size=(10, 1280)).astype(np.float32)
    rows = shard(digits, load_or_make_partition(config, digits), 0, private=False)

    metrics = ask(config, "train", train_content({HEAD_WEIGHT: weight})).content.metric_records["metrics"]

    logits = rows.train_inputs.astype(np.float64) @ weight.T
    picked = logits[np.arange(len(logits)), rows.train_labels]
    assert np.isclose(metrics["train-loss"], (np.log(np.exp(logits).sum(axis=1)) - picked).mean(), rtol=1e-5)
    assert set(metrics) == {"num-examples", "confusion", "loss-sum", "train-loss"}


@pytest.mark.parametrize("name", ["FedAvg", "FedProx", "Krum"])
def test_train_for_other_strategies_sends_no_training_loss(
    digits: Prepared, make_config: MakeConfig, name: str
) -> None:
    reply = ask(make_config({"privacy.mechanism": "none", "strategy.name": name}), "train", train_content())

    assert set(reply.content["metrics"]) == {"num-examples", "confusion", "loss-sum"}
    assert "bract-personal" not in reply.content


def test_train_takes_fedprox_factor_from_its_own_configuration(digits: Prepared, make_config: MakeConfig) -> None:
    def weights(said: float, own: float) -> np.ndarray:
        settings = {"privacy.mechanism": "none", "strategy.name": "FedProx", "strategy.proximal-mu": own}
        content = train_content()
        content.config_records["config"]["proximal-mu"] = said
        reply = ask(make_config(settings), "train", content)
        return reply.content.array_records["arrays"][HEAD_WEIGHT].numpy()

    assert np.array_equal(weights(said=5.0, own=0.1), weights(said=0.1, own=0.1))
    assert not np.array_equal(weights(said=0.1, own=0.0), weights(said=0.1, own=0.1))


def test_a_copy_of_the_app_in_one_process_shares_its_open_sessions() -> None:
    """Ray sends a copy with each message. A cache in the copy would open the images anew each time."""
    cloudpickle = pytest.importorskip("ray.cloudpickle")

    assert cloudpickle.loads(cloudpickle.dumps(client_app.SESSIONS)) is client_app.SESSIONS
    assert cloudpickle.loads(cloudpickle.dumps(client_app.app)) is not client_app.app
