"""Personal tensors: trained at the client, kept between rounds, never sent.

Drives `simulations.pooled_evaluator`.
"""

import io
import json
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from rich.console import Console
from safetensors.numpy import load_file

import client.app as client_app
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.data.client_dataset import Shard, shard
from common.data.partitioning.assignment import load_or_make_partition
from common.data.preprocessing import Prepared, prepare
from common.messages.codec import arrays_to_record, record_to_arrays
from common.models.initialization import initial_arrays
from server.reporting.summary_view import print_summary
from simulations.pooled_evaluator import PooledEvaluator
from simulations.simulate import run_job

MakeConfig = Callable[..., RunConfig]
TINY: dict[str, Scalar] = {
    "model.backbone": "timm:test_resnet",
    "model.weights": "random",
    "model.tuning": "norm",
    "model.personal": "head",
    "data.image-size": 32,
    "data.partitioner": "iid",
    "num-clients": 12,
    "num-rounds": 2,
    "training.local-epochs": 1,
    "training.batch-size": 32,
}
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none"}
HEAD = {"head.weight"}
NORM: dict[str, Scalar] = {"model.personal": "batchnorm-affine"}
WITH_LOSS: dict[str, Scalar] = {"strategy.name": "QFedAvg"}


@pytest.fixture(autouse=True)
def flower_identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


@pytest.fixture(scope="module")
def pixels(make_config: MakeConfig) -> Prepared:
    return prepare(make_config(TINY))


class OneClient:
    """A client of one run, asked as a server would, with Flower's own context."""

    def __init__(self, config: RunConfig, prepared: Prepared, partition: int = 0) -> None:
        self.config = config
        self.trainer = Trainer(config, prepared.inputs.shape[1:], prepared.scan.classes)
        self.rows: Shard = shard(
            prepared, load_or_make_partition(config, prepared), partition, private=config.is_local_dp
        )
        self.start = initial_arrays(config, self.trainer.input_shape, prepared.scan.classes)
        self.travelling = {name: array for name, array in self.start.items() if name not in self.trainer.personal}
        node = {"partition-id": partition, "num-partitions": config.num_clients, "bract-simulation": True}
        self.context = Context(1, 2, node, RecordDict(), resolved(config))
        self.run = secrets.token_hex(16)

    def ask(self, kind: str, arrays: Arrays, server_round: int = 1) -> Message:
        settings = ConfigRecord({"server-round": server_round, "run-id": self.run})
        content = RecordDict({"arrays": arrays_to_record(arrays), "config": settings})
        return client_app.app(Message(content, 2, kind), self.context)

    def sent(self, reply: Message) -> Arrays:
        assert not reply.has_error(), reply.error
        return record_to_arrays(reply.content.array_records["arrays"])

    @property
    def own(self) -> Arrays:
        kept = self.kept()
        assert kept is not None
        return kept

    def kept(self) -> Arrays | None:
        return (
            client_app.SESSIONS.open(self.config, int(self.context.node_config["partition-id"]), "")
            .personal(self.run)
            .before(10**6)
        )

    def accuracy_counts(self, arrays: Arrays) -> list[int]:
        counts = self.trainer.evaluate(arrays, self.rows.test_inputs, self.rows.test_labels)
        return [int(n) for n in counts.confusion.ravel()]


@pytest.mark.parametrize("settings", [OPEN, OPEN | NORM, {}], ids=["head", "batchnorm", "head-dp"])
def test_train_keeps_personal_tensors_and_sends_the_others(
    pixels: Prepared, make_config: MakeConfig, settings: dict[str, Scalar]
) -> None:
    who = OneClient(make_config(TINY | settings), pixels)

    sent = who.sent(who.ask("train", who.travelling))

    assert set(sent) | set(who.own) == set(who.start)
    assert not set(sent) & set(who.own)
    assert set(who.own) == who.trainer.personal
    assert list(sent) == list(who.travelling)
    assert any(not np.array_equal(array, who.start[name]) for name, array in sent.items())
    assert any(not np.array_equal(array, who.start[name]) for name, array in who.own.items())


def test_a_round_that_is_run_again_starts_from_where_it_did_before(pixels: Prepared, make_config: MakeConfig) -> None:
    who = OneClient(make_config(TINY | OPEN), pixels)
    incoming = who.sent(who.ask("train", who.travelling))
    first = who.sent(who.ask("train", incoming, 2))
    after = who.own

    again = who.sent(who.ask("train", incoming, 2))

    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert all(np.array_equal(after[name], who.own[name]) for name in HEAD)


def test_personal_head_is_the_head_and_personal_batchnorm_is_not(pixels: Prepared, make_config: MakeConfig) -> None:
    head, norm = (OneClient(make_config(TINY | OPEN | more), pixels).trainer.personal for more in ({}, NORM))

    assert head == HEAD
    assert norm
    assert not norm & HEAD


def test_train_equals_training_all_tensors_together_round_after_round(
    pixels: Prepared, make_config: MakeConfig
) -> None:
    who = OneClient(make_config(TINY | OPEN), pixels)
    arrays, sent = dict(who.start), who.travelling

    for number in (1, 2):
        arrays = who.trainer.train(arrays, who.rows, name="00000", server_round=number, plan=None)
        travelling = {name: arrays[name] for name in who.travelling}
        sent = who.sent(who.ask("train", sent, number))
        assert all(np.array_equal(sent[name], travelling[name]) for name in travelling)
        assert all(np.array_equal(who.own[name], arrays[name]) for name in HEAD)


def test_train_counts_the_global_model_and_the_own_one_apart(pixels: Prepared, make_config: MakeConfig) -> None:
    who = OneClient(make_config(TINY | OPEN), pixels)
    incoming = who.sent(who.ask("train", who.travelling))
    before = who.own

    for kind in ("evaluate", "train"):
        metrics = who.ask(kind, incoming, 2).content.metric_records["metrics"]

        assert set(metrics) == {
            "num-examples", "confusion", "loss-sum", "personal-confusion", "personal-loss-sum",
        }  # fmt: skip
        assert metrics["confusion"] == who.accuracy_counts(who.start | incoming)
        assert metrics["personal-confusion"] == who.accuracy_counts(incoming | before)
        assert metrics["personal-confusion"] != metrics["confusion"]


def test_evaluate_does_not_change_what_a_client_keeps(pixels: Prepared, make_config: MakeConfig) -> None:
    who = OneClient(make_config(TINY | OPEN), pixels)

    reply = who.ask("evaluate", who.travelling)

    assert who.kept() is None
    metrics = reply.content.metric_records["metrics"]
    assert metrics["personal-confusion"] == metrics["confusion"]


def test_personal_tensors_belong_to_one_client_in_one_run(pixels: Prepared, make_config: MakeConfig) -> None:
    config = make_config(TINY | OPEN)
    first, second, again = OneClient(config, pixels), OneClient(config, pixels, 1), OneClient(config, pixels)
    first.ask("train", first.travelling)
    second.ask("train", second.travelling)
    again.ask("train", again.travelling)

    assert all(np.array_equal(first.own[name], again.own[name]) for name in HEAD)
    assert any(not np.array_equal(first.own[name], second.own[name]) for name in HEAD)


@pytest.mark.parametrize("settings", [OPEN, {}], ids=["none", "dp"])
def test_train_refuses_a_server_that_sends_personal_tensors(
    pixels: Prepared, make_config: MakeConfig, settings: dict[str, Scalar]
) -> None:
    who = OneClient(make_config(TINY | settings), pixels)

    assert who.ask("train", who.start).error.reason == "MESSAGE"
    assert who.kept() is None


def test_train_under_dp_lets_nothing_more_leave_and_noises_what_stays(
    pixels: Prepared, make_config: MakeConfig
) -> None:
    config = make_config(TINY)
    first, again = OneClient(config, pixels), OneClient(config, pixels)

    reply = first.ask("train", first.travelling)
    again.ask("train", again.travelling)

    assert {name: set(record) for name, record in reply.content.items()} == {
        "arrays": set(first.travelling),
        "metrics": {"num-examples", "noised-correct", "noised-wrong"},
        "ledger": {"ledger-id", "seq", "head", "public-key", "signature"},
    }
    assert all(not np.array_equal(first.own[name], again.own[name]) for name in HEAD)


def test_train_for_qfedavg_sends_the_own_models_mean_training_loss(pixels: Prepared, make_config: MakeConfig) -> None:
    who = OneClient(make_config(TINY | OPEN | WITH_LOSS), pixels)
    incoming = who.sent(who.ask("train", who.travelling))
    model = incoming | who.own

    metrics = who.ask("train", incoming, 2).content.metric_records["metrics"]

    logits = who.trainer.logits(model, who.rows.train_inputs).astype(np.float64)
    picked = logits[np.arange(len(logits)), who.rows.train_labels]
    assert np.isclose(metrics["train-loss"], (np.log(np.exp(logits).sum(axis=1)) - picked).mean())
    assert "train-loss" not in who.ask("evaluate", incoming, 2).content.metric_records["metrics"]


def test_pooled_evaluator_scores_with_the_common_start_unless_a_model_brings_its_own(
    pixels: Prepared, make_config: MakeConfig
) -> None:
    who = OneClient(make_config(TINY | OPEN), pixels)
    evaluator = PooledEvaluator(who.trainer, pixels, load_or_make_partition(who.config, pixels))
    sent = who.sent(who.ask("train", who.travelling))

    assert evaluator.pooled(sent).loss_sum == evaluator.pooled(who.start | sent).loss_sum
    assert evaluator.pooled(sent | who.own).loss_sum != evaluator.pooled(sent).loss_sum
    assert evaluator.by_client(sent)["00000"].confusion.ravel().tolist() == who.accuracy_counts(who.start | sent)


def run(config: RunConfig) -> tuple[dict[str, Any], Path, str]:
    console = Console(file=io.StringIO(), record=True, width=400)
    summary, folder = run_job(config, engine="in-process", baselines=False, console=Console(quiet=True))
    print_summary(summary, folder, console)
    return summary, folder, console.export_text()


def test_run_reports_global_and_personal_accuracy_side_by_side(
    tmp_path: Path, pixels: Prepared, make_config: MakeConfig
) -> None:
    settings: dict[str, Scalar] = {"output-dir": str(tmp_path / "run"), "client-fraction": 0.75}
    summary, folder, shown = run(make_config(TINY | OPEN | settings))

    assert summary["status"] == "complete"
    assert summary["personal"]["part"] == "head"
    assert summary["personal"]["spread_over_clients"]["accuracy"]["max"] <= 1
    assert "which nobody trained" in summary["personal"]["note"]
    lines = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    assert all({"accuracy", "personal_accuracy"} <= set(line) for line in lines)
    # The losses show that the models differ. On some processors the accuracies of so few images may be equal.
    assert lines[-1]["personal_loss"] != lines[-1]["loss"]
    assert f"{summary['accuracy']:.4f}" in shown
    assert f"{summary['personal']['accuracy']:.4f} of clients' own models" in shown
    assert not set(load_file(folder / "model" / "model.safetensors")) & HEAD
    card = json.loads((folder / "model" / "card.json").read_text())
    assert (card["personal"], card["head"], card["weights"]) == ("head", "linear", "random")


def test_run_under_dp_says_that_personal_accuracy_is_not_released(
    tmp_path: Path, pixels: Prepared, make_config: MakeConfig
) -> None:
    settings: dict[str, Scalar] = {"output-dir": str(tmp_path / "run"), "num-rounds": 1, "client-fraction": 0.1}
    summary, folder, shown = run(make_config(TINY | settings))

    assert summary["personal"]["accuracy"] is None
    assert summary["personal"]["note"].endswith("personal accuracy is not released under dp-sgd")
    assert "personal_accuracy" not in (folder / "rounds.jsonl").read_text()
    assert "not released under dp-sgd" in shown


def test_run_without_personal_tensors_says_nothing_of_them(
    tmp_path: Path, digits: Prepared, make_config: MakeConfig
) -> None:
    summary, _, shown = run(make_config(OPEN | {"output-dir": str(tmp_path / "run"), "num-rounds": 1}))

    assert summary["personal"] is None
    assert "personalised" not in shown
    assert "personal accuracy" not in shown
