"""Small networks, rows and streams that the tests of network training share."""

from collections.abc import Callable

import numpy as np
import torch

from client.training.dp_sgd import PrivateStreams
from client.training.network_sgd import TrainingSet
from client.training.round_settings import LocalSettings
from common.arrays import Arrays
from common.config.schema import RunConfig
from common.models.classifier import AnyNetwork, CnnNetwork, build_network
from common.models.initialization import initial_arrays
from common.models.small_cnn import SmallCnn, initial_cnn
from common.randomness import public_stream

MakeConfig = Callable[..., RunConfig]
SETTINGS = LocalSettings(0.01, 0.5, 2, 16)


class Repeating:
    """The same values in every stream: what is left of a difference is the data's."""

    def __init__(self) -> None:
        self._rng = np.random.default_rng(0)

    def uniforms(self, size: int) -> np.ndarray:
        return self._rng.uniform(1e-12, 1.0, size)

    def random_bytes(self, size: int) -> bytes:
        return self._rng.bytes(size)


def repeating() -> PrivateStreams:
    return PrivateStreams(Repeating(), Repeating())


def rows_of(number: int, side: int = 8, channels: int = 1, classes: int = 4) -> TrainingSet:
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (64, side, side, channels), dtype=np.uint8)[:number]
    labels, digests = rng.integers(0, classes, 64)[:number], rng.integers(0, 256, (64, 32), dtype=np.uint8)[:number]
    return TrainingSet(images, labels, digests)


def start(side: int = 8, channels: int = 1) -> Arrays:
    return initial_cnn((side, side, channels), 4, public_stream(0, "weights"))


def cnn(side: int = 8, channels: int = 1) -> CnnNetwork:
    return CnnNetwork(side, channels, 4)


def tuned_network(make_config: MakeConfig) -> tuple[AnyNetwork, Arrays]:
    """A small backbone with BatchNorm, its affine parts and a head being trained."""
    config = make_config(
        {
            "model.backbone": "timm:mobilenetv3_small_050",
            "model.weights": "random",
            "model.tuning": "norm",
            "data.image-size": 32,
        }
    )
    arrays = initial_arrays(config, (32, 32, 3), ("a", "b", "c", "d"))
    rng = np.random.default_rng(0)
    arrays = {name: (a + 0.1 * rng.standard_normal(a.shape)).astype(np.float32) for name, a in arrays.items()}
    return build_network(config, (32, 32, 3), 4), arrays


def flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([array.ravel() for array in arrays.values()]).astype(np.float64)


def load_cnn(arrays: Arrays, input_shape: tuple[int, ...]) -> SmallCnn:
    """A network that holds these weights, by torch's own means."""
    network = SmallCnn(input_shape[0], input_shape[2], len(arrays["output.bias"]))
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in arrays.items()})
    return network
