"""Training of a whole network: Opacus against one-by-one gradients, and the private step."""

import numpy as np
import pytest
import torch

from client.network_training import network_logits, per_example_gradients, train_network, train_network_privately
from client.private_training import PrivateStreams
from client.training import LocalSettings
from common.models.cnn import initial_cnn, load_cnn, to_pixels
from common.privacy.plan import PrivacyPlan
from common.streams import public_stream

SETTINGS = LocalSettings(0.01, 0.5, 2, 16)


def images(rows: int, side: int = 8, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    return rng.integers(0, 256, (rows, side, side, channels), dtype=np.uint8), rng.integers(0, 4, rows)


def start(side: int = 8, channels: int = 1) -> dict[str, np.ndarray]:
    return initial_cnn((side, side, channels), 4, public_stream(0, "weights"))


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (13, 3)])
def test_per_example_gradients_equal_one_by_one_gradients(side: int, channels: int) -> None:
    arrays, (pixels, labels) = start(side, channels), images(6, side, channels)
    flat = np.concatenate([array.ravel() for array in arrays.values()]).astype(np.float64)

    ours = per_example_gradients(arrays, pixels.shape[1:])(flat, pixels, labels)

    for row in range(6):
        network = load_cnn(arrays, pixels.shape[1:])
        loss = torch.nn.functional.cross_entropy(
            network(to_pixels(pixels[row : row + 1])), torch.from_numpy(labels[row : row + 1])
        )
        loss.backward()  # type: ignore[no-untyped-call]
        parameters = dict(network.named_parameters())
        gradients = [parameters[name].grad for name in arrays]
        expected = torch.cat([gradient.ravel() for gradient in gradients if gradient is not None]).numpy()
        assert np.linalg.norm(ours[row] - expected) <= 1e-5 * np.linalg.norm(expected)


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
