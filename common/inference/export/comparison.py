"""Comparison of an exported file with the network that it came from."""

import time
from collections.abc import Callable

import numpy as np
import torch

from common.errors import ModelError
from common.inference.export.pixel_network import PixelNetwork
from common.randomness import public_stream

# From RGB pixels (n, side, side, 3) uint8 to logits (n, classes) float32.
Runner = Callable[[np.ndarray], np.ndarray]
# Largest difference of a logit that is allowed, as a share of the largest logit.
TOLERANCE = 1e-4
_BATCH = 32
_SECONDS = 1.0


def torch_runner(network: PixelNetwork) -> Runner:
    """Return a runner of the original network in float32."""

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(network(torch.from_numpy(pixels)).numpy())

    return run


def trial_pixels(side: int) -> np.ndarray:
    """Return noise, ramps and plain shades, (9, side, side, 3) uint8."""
    noise = public_stream(0, "export").integers(0, 256, (4, side, side, 3), dtype=np.uint8)
    ramp = np.linspace(0, 255, side).astype(np.uint8)
    across = np.broadcast_to(ramp[None, :, None], (side, side, 3))
    shades = [np.full((side, side, 3), shade, np.uint8) for shade in (0, 127, 255)]
    return np.stack([*noise, across, across.transpose(1, 0, 2), *shades])


def relative_error(logits: np.ndarray, original: np.ndarray) -> float:
    """Return the largest difference as a share of the largest original logit.

    >>> relative_error(np.array([[1.0, 2.0]]), np.array([[1.0, 4.0]]))
    0.5
    """
    largest = float(np.abs(original).max())
    difference = float(np.abs(logits - original).max())
    return difference / largest if largest else difference


def check_equal(run: Runner, original: Runner, side: int) -> float:
    """Compare two runners on trial images and return the relative error.

    Raises:
        ModelError: It is above `TOLERANCE`, or not a number.
    """
    pixels = trial_pixels(side)
    wanted = original(pixels)
    # Also one image alone, since the number of images in a batch is free.
    error = max(relative_error(run(pixels), wanted), relative_error(run(pixels[:1]), wanted[:1]))
    # Written so that NaN, which compares with nothing, is refused.
    if not error <= TOLERANCE:
        raise ModelError(
            f"the exported model differs from the original by {error:.1e} of the largest logit, allowed is "
            f"{TOLERANCE:g}: nothing was written"
        )
    return error


def images_a_second(run: Runner, side: int) -> float:
    """Measure the throughput of a runner on this machine in batches of 32."""
    pixels = np.resize(trial_pixels(side), (_BATCH, side, side, 3))
    run(pixels)
    fastest, begin = float("inf"), time.perf_counter()
    # The fastest batch is the one that other programs have disturbed least.
    while time.perf_counter() - begin < _SECONDS:
        start = time.perf_counter()
        run(pixels)
        fastest = min(fastest, time.perf_counter() - start)
    return _BATCH / fastest
