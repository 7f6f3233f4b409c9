"""Facts about Flower and Opacus that the design rests on; a change here is news, not a nuisance."""

from importlib.metadata import version

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg
from flwr.serverapp.strategy.strategy_utils import aggregate_metricrecords
from flwr.supercore.task_identity import TaskIdentity
from opacus import GradSampleModule

from common.models.small_cnn import initial_cnn, to_pixels
from common.randomness import public_stream
from tests.support.clients.networks import load_cnn

pytestmark = pytest.mark.numerical


def test_flower_is_a_minor_version_that_was_read() -> None:
    assert version("flwr").startswith(("1.41.", "1.42."))


def test_flower_messages_need_a_process_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TaskIdentity, "_run_id", None)

    with pytest.raises(RuntimeError, match="run_id"):
        Message(RecordDict(), 2, "query")


def test_flower_averages_lists_of_metrics() -> None:
    replies = [RecordDict({"m": MetricRecord({"num-examples": 1, "counts": [0, 4]})}) for _ in range(2)]

    averaged = aggregate_metricrecords(replies, "num-examples")

    assert averaged["counts"] == [0.0, 4.0]  # a sum would be 8


def test_flower_averages_integer_buffers_to_floats() -> None:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    query = Message(RecordDict(), 2, "train")
    content = RecordDict(
        {
            "arrays": ArrayRecord({"n": Array(np.array([3], dtype=np.int64))}),
            "metrics": MetricRecord({"num-examples": 1}),
        }
    )

    arrays, _ = FedAvg().aggregate_train(1, [Message(content, reply_to=query)])

    assert arrays is not None
    assert arrays["n"].numpy().dtype == np.float64


def test_opacus_loses_a_convolution_behind_one_channel_images() -> None:
    """Why per-example gradients of a network are taken one image at a time.

    With one channel torch lays activations out channels-last, and Opacus 1.6's hook
    then gives zeros for the second convolution, without a warning.
    """
    arrays = initial_cnn((8, 8, 1), 4, public_stream(0, "weights"))
    module = GradSampleModule(load_cnn(arrays, (8, 8, 1)), loss_reduction="sum")
    pixels = np.random.default_rng(2).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)

    logits = module(to_pixels(pixels))
    torch.nn.functional.cross_entropy(logits, torch.arange(6) % 4, reduction="sum").backward()

    second = dict(module._module.named_parameters())["conv2.weight"]
    assert torch.linalg.norm(second.grad) > 1
    assert torch.linalg.norm(second.grad_sample.sum(dim=0) - second.grad) > 0.5 * torch.linalg.norm(second.grad)
