"""One image more or less moves one vote by one, whatever model a server sends: what the noise of counts is made for."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

import client.training.trainer as trainer_module
from client.training.network_sgd import network_logits
from client.training.round_settings import settings_of
from client.training.trainer import Trainer
from common.config.schema import RunConfig
from common.models.classifier import network_for
from common.models.linear_head import HEAD_WEIGHT

pytestmark = pytest.mark.numerical
MakeConfig = Callable[..., RunConfig]
NUM, DIMENSIONS, CLASSES = 98, 1280, 8


def hostile_head(rng: np.random.Generator) -> np.ndarray:
    """Classes that differ in the last bit: rounding alone decides between them."""
    base = rng.normal(size=DIMENSIONS).astype(np.float32) * np.float32(1e3)
    ends = rng.choice([-1e30, 1e30], size=(CLASSES, DIMENSIONS)).astype(np.float32)
    return np.nextafter(base, ends)


@pytest.fixture
def features() -> np.ndarray:
    rows = np.random.default_rng(1).normal(size=(NUM, DIMENSIONS)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def votes_moved(trainer: Trainer, features: np.ndarray) -> int:
    """Count the votes of other images that change when one image is left out, over many hostile heads."""
    rng, moved = np.random.default_rng(0), 0
    for _ in range(20):
        arrays = {HEAD_WEIGHT: hostile_head(rng)}
        whole = trainer.logits(arrays, features, apart=True).argmax(axis=1)
        for left_out in (0, 50, NUM - 1):
            rest = trainer.logits(arrays, np.delete(features, left_out, axis=0), apart=True).argmax(axis=1)
            moved += int((rest != np.delete(whole, left_out)).sum())
    return moved


def logits_in_an_order_by_size(features: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Sum forwards or backwards by the number of rows, as a batched kernel may choose its order by the size."""
    step = 1 if len(features) % 2 else -1
    # A running sum is taken one term after the other, so its rounding is the same on every processor.
    return np.cumsum(features[:, None, ::step] * weight[:, ::step], axis=2)[:, :, -1]


@pytest.fixture
def head_trainer(make_config: MakeConfig) -> Trainer:
    return Trainer(make_config(), (DIMENSIONS,), tuple(str(number) for number in range(CLASSES)))


def test_votes_of_a_head_do_not_depend_on_other_images(head_trainer: Trainer, features: np.ndarray) -> None:
    assert votes_moved(head_trainer, features) == 0


def test_votes_move_where_a_product_depends_on_the_number_of_rows(
    head_trainer: Trainer, features: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above can fail. A real product over all rows would show it too, but not on every processor."""
    monkeypatch.setattr(trainer_module, "head_logits_row_by_row", logits_in_an_order_by_size)

    assert votes_moved(head_trainer, features) > 0


def test_votes_of_a_network_do_not_depend_on_other_images(make_config: MakeConfig) -> None:
    config = make_config({"model.backbone": "cnn", "data.image-size": 8})
    network = network_for(config, (8, 8, 3), 4)
    arrays = {name: value.detach().numpy().copy() for name, value in network.named_parameters() if value.requires_grad}
    images = np.random.default_rng(2).integers(0, 256, (70, 8, 8, 3)).astype(np.uint8)
    settings = settings_of(config, server_round=1)

    whole = network_logits(network, arrays, images, settings, apart=True)
    rest = network_logits(network, arrays, images[3:], settings, apart=True)

    assert torch.equal(torch.from_numpy(whole[3:]), torch.from_numpy(rest))
