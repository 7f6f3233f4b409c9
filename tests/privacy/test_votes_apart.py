"""One image more or less moves one vote by one, whatever model a server sends: what the noise of counts is made for."""

import numpy as np
import pytest
import torch

from client.training.network_sgd import network_logits
from client.training.round_settings import settings_of
from client.training.trainer import Trainer
from common.models.classifier import build_network
from common.models.linear_head import HEAD_WEIGHT, head_logits

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


def test_votes_of_a_head_do_not_depend_on_other_images(features: np.ndarray, make_config) -> None:  # type: ignore[no-untyped-def]
    names = tuple(str(number) for number in range(CLASSES))
    trainer = Trainer(make_config(), (DIMENSIONS,), names)
    rng, moved = np.random.default_rng(0), 0
    for _ in range(20):
        arrays = {HEAD_WEIGHT: hostile_head(rng)}
        whole = trainer.logits(arrays, features, apart=True).argmax(axis=1)
        together = head_logits(features, arrays[HEAD_WEIGHT]).argmax(axis=1)
        for left_out in (0, 50, NUM - 1):
            rest = np.delete(features, left_out, axis=0)
            assert np.array_equal(trainer.logits(arrays, rest, apart=True).argmax(1), np.delete(whole, left_out))
            moved += int((head_logits(rest, arrays[HEAD_WEIGHT]).argmax(1) != np.delete(together, left_out)).sum())

    assert moved  # one product over all rows does move others' votes: this test can fail


def test_votes_of_a_network_do_not_depend_on_other_images(make_config) -> None:  # type: ignore[no-untyped-def]
    config = make_config({"model.backbone": "cnn", "data.image-size": 8})
    network = build_network(config, (8, 8, 3), 4)
    arrays = {name: value.detach().numpy().copy() for name, value in network.named_parameters() if value.requires_grad}
    images = np.random.default_rng(2).integers(0, 256, (70, 8, 8, 3)).astype(np.uint8)
    settings = settings_of(config, server_round=1)

    whole = network_logits(network, arrays, images, settings, apart=True)
    rest = network_logits(network, arrays, images[3:], settings, apart=True)

    assert torch.equal(torch.from_numpy(whole[3:]), torch.from_numpy(rest))
