"""Cryptographic random streams for private noise and Poisson sampling.

Every stream is keyed by the operating system. There is no seed parameter anywhere. Tests pass another object with the
same methods.
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
        """Return uniform float64 in (0, 1) of 52 random bits, shape (size,)."""
        ...


class SecureStream:
    """Uniform numbers from AES-256-CTR under a fresh key from the operating system.

    Guarantee: two streams never share a key, and nothing can reproduce or restore a stream. Make one for sampling and
    another one for noise in each message.

    Source: NIST SP 800-38A (CTR mode).
    """

    def __init__(self) -> None:
        cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def random_bytes(self, size: int) -> bytes:
        """Return `size` random bytes."""
        if size <= len(_ZEROS):
            return self._encryptor.update(_ZEROS[:size])
        starts = range(0, size, len(_ZEROS))
        return b"".join(self._encryptor.update(_ZEROS[: min(len(_ZEROS), size - start)]) for start in starts)

    def uniforms(self, size: int) -> np.ndarray:
        """Return uniform float64 in (0, 1) of 52 random bits, shape (size,)."""
        bits = np.frombuffer(bytearray(self.random_bytes(8 * size)), dtype=np.uint64)
        # The 52 bits become the fraction of a number in [1, 2).
        bits >>= np.uint64(12)
        bits |= _ONE
        uniform = bits.view(np.float64)
        # Half a step more than 1 - 2^-52 moves the values off 0, whose logarithm would be infinite.
        uniform -= 1.0 - 2.0**-53
        return uniform


def poisson_batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
    """Draw a Poisson batch by including each row independently.

    Guarantee: each row's chance is `sample_rate`, in (0, 1], independent of the others. The indices are in increasing
    order; possibly none, possibly all. `stream` must be used for sampling only.
    """
    return np.flatnonzero(stream.uniforms(num_rows) < sample_rate)


def standard_normals(size: int, stream: UniformStream) -> np.ndarray:
    """Return standard normal noise from four uniforms a value, shape (size,), float64.

    Each value sums two Box-Muller draws. This mitigates the floating-point attack on single draws (arXiv:2107.10138). A
    draw's sine and cosine are both normal, and their sum is a shifted sine. So each value is as good as the sum of all
    four normals of two pairs, at half the price. `stream` must be used for noise only.

    Source: Box and Muller 1958; Holohan and Braghin 2021, arXiv:2107.10138 (sum of several draws).
    """
    uniform = stream.uniforms(4 * size)
    radius, angle = uniform[: 2 * size], uniform[2 * size :]
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle *= 2.0 * math.pi
    np.sin(angle, out=angle)
    angle *= radius
    # A sum of two standard normals has variance 2.
    return np.asarray((angle[:size] + angle[size:]) * math.sqrt(0.5))


def grid_step(max_grad_norm: float, num_values: int) -> float:
    """Return the largest grid step whose rounding the plan's noise covers.

    It is the largest power of two whose multiple by sqrt(d) is at most C / 10,000, for d values and clip bound C.
    Rounding every value of a clipped sum to this grid changes its L2 sensitivity by at most C / 10,000. A power of two
    makes every multiple exact in floating point.

    >>> grid_step(1.0, 12_800) == 2.0**-21
    True
    """
    return float(2.0 ** math.floor(math.log2(1e-4 * max_grad_norm / math.sqrt(num_values))))


def add_noise(
    clipped_sum: np.ndarray, *, noise_stddev: float, max_grad_norm: float, stream: UniformStream
) -> np.ndarray:
    """Add Gaussian noise to a clipped sum on a grid.

    The result, (d,) float64, is the only release of a private step. `clipped_sum` sums per-unit gradients of norm at
    most `max_grad_norm` each. `noise_stddev` is absolute. Every value is a multiple of `grid_step`. The grid is a
    mitigation of floating-point attacks (Mironov 2012), not a proof. `stream` must be used for noise only.
    """
    step = grid_step(max_grad_norm, clipped_sum.size)
    noise = noise_stddev * standard_normals(clipped_sum.size, stream)
    # Both parts are rounded to the grid, so the low bits of the result say nothing about the sum.
    return np.asarray((np.rint(clipped_sum / step) + np.rint(noise / step)) * step)
