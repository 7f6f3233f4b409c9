"""Cryptographic random streams for private noise and Poisson sampling.

Every stream is keyed by the operating system. There is no seed parameter anywhere. Tests pass another object with the
same methods.
"""

import math
import os
from fractions import Fraction
from typing import Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from common.privacy.counts.discrete_gaussian import ByteStream
from common.privacy.gaussian_table import gaussian_integers
from common.privacy.noise_error import check_draws
from common.privacy.plan import SENSITIVITY_SLACK

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

    Guarantee: each row's chance is `sample_rate`, in (0, 1], rounded down to a multiple of 2^-52 and independent of the
    others. The indices are in increasing order; possibly none, possibly all. `stream` must be used for sampling only.
    """
    # A uniform number stands for an interval around it. Only an interval that ends within the rate counts, because a
    # chance above the rate would cost more than the event says.
    return np.flatnonzero(stream.uniforms(num_rows) + 2.0**-53 <= sample_rate)


def grid_step(max_grad_norm: float, num_values: int, noise_stddev: float) -> float:
    """Return the grid step of a noised sum, a power of two.

    Its multiple by sqrt(d) is at most C / 20,000, for d values and clip bound C. Rounding every value of a clipped sum
    to this grid changes its L2 sensitivity by at most that. The plan's noise covers twice as much, and the other half
    is for the rounding of the sum itself in float64. The step is at most a 2^24th of the noise, so that the noise has
    its declared standard deviation to 0.01 %. A power of two makes every multiple exact in floating point.

    >>> grid_step(1.0, 12_800, 10.0) == 2.0**-22
    True
    """
    largest = min(0.5 * SENSITIVITY_SLACK * max_grad_norm / math.sqrt(num_values), noise_stddev * 2.0**-24)
    return float(2.0 ** math.floor(math.log2(largest)))


def add_noise(clipped_sum: np.ndarray, *, noise_stddev: float, max_grad_norm: float, stream: ByteStream) -> np.ndarray:
    """Add Gaussian noise to a clipped sum on a grid.

    The result, (d,) float64, is the only release of a private step. `clipped_sum` sums per-unit gradients of norm at
    most `max_grad_norm` each. `noise_stddev` is absolute. Every value is a multiple of `grid_step`. Guarantee: the
    noise is that of a normal of at least this standard deviation, rounded to the grid, up to the error that
    `common.privacy.noise_error` states for `CURRENT_SAMPLER`. `stream` must be used for noise only.

    Raises:
        ConfigError: The noise is too wide for the grid.
        PrivacyError: There are more values than the events of this sampler charge.

    Source: Mironov 2012, doi:10.1145/2382196.2382264 (why the grid is needed).
    """
    check_draws(clipped_sum.size)
    step = grid_step(max_grad_norm, clipped_sum.size, noise_stddev)
    # Exact: a float is a fraction, and the step is a power of two.
    noise = gaussian_integers(clipped_sum.size, stddev=Fraction(noise_stddev) / Fraction(step), stream=stream)
    noised: np.ndarray = np.divide(clipped_sum, step, dtype=np.float64)
    # Both parts are whole numbers, so the low bits of the result say nothing about the sum.
    np.rint(noised, out=noised)
    noised += noise
    noised *= step
    return noised
