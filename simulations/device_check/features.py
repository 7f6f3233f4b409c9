"""The check of the pass through the frozen backbone."""

import copy
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from common.config.loading import defaults, override, parse
from common.data.feature_extraction import FeatureExtractor, Progress
from common.models.classifier import Network, feature_network
from common.models.engines.acceleration import accelerated
from common.models.engines.feature_engine import CHUNK
from simulations.device_check.findings import Finding, Sizes
from simulations.device_check.memory import forget_peak, peak_mb

_PART = "features"
_AGREEMENT = 1e-3
# In a shorter format a device may round at other places than PyTorch's own layers on the processor, but not much more.
_MORE_ROUNDING = 3.0


class _Rows(dict[bytes, np.ndarray]):
    """Rows in memory, by key."""

    def append(self, keys: Sequence[bytes], rows: np.ndarray, /) -> None:
        self.update(zip(keys, rows, strict=True))


def check_features(settings: dict[str, Any], device: str, sizes: Sizes) -> Iterator[Finding]:
    """Compare a device's features with those of the processor.

    Both passes are timed. The settings say which backbone computes the features.
    """
    config = parse(override(defaults(), settings))
    network = feature_network(config.model, config.backbone_spec)
    fast, dtype = accelerated(copy.deepcopy(network), device)
    chunk = made_up_images(CHUNK, _side(network))
    right = features_of(network, chunk, "cpu")
    exact = features_of(copy.deepcopy(network), chunk, device)
    yield Finding(_PART, "distance in float32", _worst(exact, right), _AGREEMENT)
    if dtype != "float32":
        rounding = _worst(features_of(network, chunk, "cpu", dtype), right)
        found = _worst(features_of(fast, chunk, device, dtype), right)
        yield Finding(_PART, f"distance in {dtype}", found, _MORE_ROUNDING * rounding + _AGREEMENT, rounding)
    yield Finding(_PART, "images moved by other images", _dependent(fast, chunk, device, dtype), 0)
    forget_peak(device)
    many = made_up_images(sizes.images, _side(network))
    rates = [
        _rate(fast, many, device, dtype),
        _rate(*_on_processor(network, many[: max(sizes.images // 8, 3 * CHUNK)])),
    ]
    yield Finding(_PART, f"images/s in {dtype}", rates[0], processor=rates[1])
    peak = peak_mb(device)
    if peak is not None:
        yield Finding(_PART, "peak MB of the device", peak)


def made_up_images(number: int, side: int) -> np.ndarray:
    """Return smooth images with some noise, (number, side, side, 3) uint8, all different."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (number, -(-side // 16), -(-side // 16), 3))
    smooth = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :side, :side]
    return np.asarray((smooth + rng.integers(-12, 13, smooth.shape)).clip(0, 255), dtype=np.uint8)


def features_of(
    network: Network, images: np.ndarray, device: str, dtype: str = "float32", progress: Progress = lambda _: None
) -> np.ndarray:
    """Return the features of images, as a preparation computes them, (n, d) float32.

    The network is moved to the device.
    """
    rows, side = _Rows(), images.shape[1]
    names = [place.to_bytes(32, "big") for place in range(len(images))]
    with FeatureExtractor(
        network, rows, side=side, interpolation="bicubic", device=device, progress=progress, dtype=dtype
    ) as extractor:
        for pixels, name in zip(images, names, strict=True):
            extractor.push_pixels(pixels, name)
    return np.stack([rows[name] for name in names])


def _dependent(network: Network, chunk: np.ndarray, device: str, dtype: str) -> int:
    """Return how many images change a bit at another place among other images."""
    half = CHUNK // 2
    others = chunk[::-1].copy()
    others[:half] = 0
    rows, moved = (features_of(network, images, device, dtype) for images in (chunk, others))
    return int(np.any(rows[:half] != moved[::-1][:half], axis=1).sum())


def _on_processor(network: Network, images: np.ndarray) -> tuple[Network, np.ndarray, str, str]:
    fast, dtype = accelerated(network, "cpu")
    return fast, images, "cpu", dtype


def _rate(network: Network, images: np.ndarray, device: str, dtype: str) -> float:
    """Return images a second from pixels to features, once the first ones are stored.

    A thread's first pass on a GPU takes seconds, because cuDNN chooses its kernels.
    """
    stored: list[tuple[float, int]] = []

    def note(amount: int) -> None:
        stored.append((time.perf_counter(), amount))

    features_of(network, images, device, dtype, note)
    return sum(amount for _, amount in stored[1:]) / (stored[-1][0] - stored[0][0])


def _side(network: Network) -> int:
    return 128 if network.body is None else network.body.preprocessing.image_size


def _worst(rows: np.ndarray, right: np.ndarray) -> float:
    """Return the largest relative distance of a row to the right one."""
    return float(np.max(np.linalg.norm(rows - right, axis=1) / np.linalg.norm(right, axis=1)))
