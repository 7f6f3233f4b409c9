"""Training of a whole network: Opacus against one-by-one gradients, and the private step."""

import numpy as np
import pytest
import torch
from opacus import GradSampleModule

from client.network_training import example_gradient, network_logits, train_network, train_network_privately
from client.private_training import PrivateStreams
from client.training import LocalSettings
from common.models.cnn import initial_cnn, load_cnn, to_pixels
from common.privacy.plan import PrivacyPlan
from common.streams import public_stream

SETTINGS = LocalSettings(0.01, 0.5, 2, 16)


class Repeating:
    """The same uniforms in every stream: what is left of a difference is the data's."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def uniforms(self, size: int) -> np.ndarray:
        return self._rng.uniform(1e-12, 1.0, size)


def images(rows: int, side: int = 8, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.integers(0, 256, (rows, side, side, channels), dtype=np.uint8), rng.integers(0, 4, rows)


def start(side: int = 8, channels: int = 1) -> dict[str, np.ndarray]:
    return initial_cnn((side, side, channels), 4, public_stream(0, "weights"))


def test_example_gradient_equals_opacus_per_example_gradients() -> None:
    arrays, (pixels, labels) = start(13, 3), images(6, 13, 3)
    network = load_cnn(arrays, pixels.shape[1:])
    oracle = GradSampleModule(load_cnn(arrays, pixels.shape[1:]), loss_reduction="sum")

    logits = oracle(to_pixels(pixels))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels), reduction="sum").backward()

    expected = torch.cat([p.grad_sample.reshape(6, -1) for p in oracle.parameters()], dim=1).numpy()
    for row in range(6):
        ours = example_gradient(network, pixels[row], int(labels[row]))
        assert np.linalg.norm(ours - expected[row]) <= 1e-5 * np.linalg.norm(expected[row])


def test_arrays_keep_the_order_of_the_networks_parameters() -> None:
    assert list(start()) == [name for name, _ in load_cnn(start(), (8, 8, 1)).named_parameters()]


def test_private_training_moves_by_at_most_the_bound_when_one_image_joins() -> None:
    arrays, (pixels, labels) = start(), images(12)
    plan, local = PrivacyPlan(40, 1.0, 1, 1, 0.5, 1.0, 1e-5), LocalSettings(40.0, 0.0, 1, 16)

    def release(rows: int) -> np.ndarray:
        streams = PrivateStreams(Repeating(), Repeating())
        after = train_network_privately(arrays, pixels[:rows], labels[:rows], plan, local, streams)
        return np.concatenate([array.ravel() for array in after.values()]).astype(np.float64)

    assert 0.1 < np.linalg.norm(release(12) - release(11)) <= 0.5 * (1 + 1e-4) + 1e-4


def test_train_network_lowers_the_loss_and_repeats() -> None:
    arrays, (pixels, labels) = start(), images(64)

    runs = [train_network(arrays, pixels, labels, SETTINGS, public_stream(0, "batches")) for _ in range(2)]

    def loss(weights: dict[str, np.ndarray]) -> float:
        logits = torch.from_numpy(network_logits(weights, pixels))
        return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels)))

    assert loss(runs[0]) < loss(arrays)
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in arrays)


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_train_network_privately_keeps_names_and_shapes_for_any_number_of_rows(rows: int) -> None:
    arrays, (pixels, labels) = start(), images(rows)
    plan = PrivacyPlan(40, 0.5, 2, 1, 1.0, 1.0, 1e-5)

    after = train_network_privately(arrays, pixels, labels, plan, SETTINGS, PrivateStreams.fresh())

    assert {name: array.shape for name, array in after.items()} == {name: array.shape for name, array in arrays.items()}
    assert all(not np.array_equal(after[name], arrays[name]) for name in arrays)
