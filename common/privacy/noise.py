"""Cryptographic streams for private noise and Poisson sampling, and the noise itself.

Every stream is keyed by the operating system; there is no seed parameter
anywhere. Tests inject another object with the same two methods.
"""

import math
import os
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

_ZEROS = bytes(1 << 16)
_ONE = np.uint64(0x3FF << 52)


class UniformStream(Protocol):
    """A source of uniform numbers for one purpose in one message."""

    def uniforms(self, size: int) -> np.ndarray:
        """(size,) float64 in (0, 1), 52 random bits each."""
        ...


class SecureStream:
    """Uniform numbers from AES-256-CTR under a fresh key from the operating system.

    Guarantee: two streams never share a key, so make one for sampling and one
    for noise in each message; nothing can reproduce or restore a stream.

    Source: NIST SP 800-38A (CTR mode).
    """

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def random_bytes(self, size: int) -> bytes:
        """So many random bytes."""
        if size <= len(_ZEROS):
            return self._encryptor.update(_ZEROS[:size])
        blocks = [self._encryptor.update(_ZEROS[: min(len(_ZEROS), size - at)]) for at in range(0, size, len(_ZEROS))]
        return b"".join(blocks)

    def uniforms(self, size: int) -> np.ndarray:
        """(size,) float64 in (0, 1), 52 random bits each."""
        bits = np.frombuffer(bytearray(self.random_bytes(8 * size)), dtype=np.uint64)
        bits >>= np.uint64(12)
        bits |= _ONE  # the fraction of a number in [1, 2)
        uniform = bits.view(np.float64)
        uniform -= 1.0 - 2.0**-53
        return uniform


def poisson_batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
    """Include each row on its own with the same chance.

    Args:
        num_rows: Rows to draw from; may be 0.
        sample_rate: Chance of each row, in (0, 1].
        stream: A stream used for sampling only.

    Returns:
        Indices in increasing order; possibly none, possibly all.
    """
    return np.flatnonzero(stream.uniforms(num_rows) < sample_rate)


def standard_normals(size: int, stream: UniformStream) -> np.ndarray:
    """(size,) float64 of standard normal noise, from four uniforms each.

    Two radii and two angles stand behind each value: the sum hides the holes that
    floating-point Box-Muller leaves in the image of one draw. Sine and cosine of
    one angle are both normal, and their sum is a shifted sine: so this is the sum
    of all four normals of two pairs, at half the price.

    Args:
        size: How many.
        stream: Used for noise only.

    Source: Box and Muller 1958; Holohan and Braghin 2021, arXiv:2107.10138 (sum
    of several draws).
    """
    uniform = stream.uniforms(4 * size)
    radius, angle = uniform[: 2 * size], uniform[2 * size :]
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * math.pi
    np.sin(angle, out=angle)
    angle *= radius
    return np.asarray((angle[:size] + angle[size:]) * math.sqrt(0.5))


def grid_step(max_grad_norm: float, num_values: int) -> float:
    """Largest power of two whose square-root-of-d multiple is at most C / 10,000.

    Rounding every value of a clipped sum to this grid moves its L2 sensitivity
    by at most that much, which the plan's noise accounts for. A power of two makes
    every multiple exact in floating point.

    >>> grid_step(1.0, 12_800) == 2.0**-21
    True
    """
    return float(2.0 ** math.floor(math.log2(1e-4 * max_grad_norm / math.sqrt(num_values))))


def add_noise(
    clipped_sum: np.ndarray, *, noise_stddev: float, max_grad_norm: float, stream: UniformStream
) -> np.ndarray:
    """Add Gaussian noise on a grid: the one release of a private step.

    Args:
        clipped_sum: (d,) float64, sum of per-unit gradients of norm at most
            `max_grad_norm` each.
        noise_stddev: Standard deviation of each value's noise, absolute.
        max_grad_norm: The clip bound, which sets the grid.
        stream: A stream used for noise only.

    Returns:
        (d,) float64, every value a multiple of `grid_step`. The grid is a
        mitigation of floating-point attacks (Mironov 2012), not a proof.
    """
    step = grid_step(max_grad_norm, clipped_sum.size)
    noise = noise_stddev * standard_normals(clipped_sum.size, stream)
    return np.asarray((np.rint(clipped_sum / step) + np.rint(noise / step)) * step)
