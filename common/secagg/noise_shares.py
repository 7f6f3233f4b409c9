"""Shares of Gaussian noise on a grid, as words of a power-of-two ring.

Each client adds its own share to what it sends into a sum. The shares of the least accounted number of honest clients
together have the declared noise. docs/privacy.md has the proof.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from common.errors import ConfigError, PrivacyError
from common.privacy.counts.discrete_gaussian import ByteStream
from common.privacy.gaussian_table import gaussian_integers, largest_integer
from common.privacy.noise import grid_step
from common.privacy.noise_error import check_draws
from common.privacy.plan import SENSITIVITY_SLACK, PrivacyPlan

_BYTE = 8
_MAX_BITS = 64


@dataclass(frozen=True)
class ShareScale:
    """The grid, noise and ring of one summed release, equal at all clients.

    Attributes:
        step: Grid step, a power of two.
        share_stddev: Standard deviation of one client's share of the noise, absolute.
        most_of_unit: The most by which one unit changes one value.
        bits: Length of a word. The sum over all clients, noise included, fits in one, with its sign.
    """

    step: float
    share_stddev: float
    most_of_unit: float
    bits: int

    @property
    def steps_of_share(self) -> Fraction:
        """The share's standard deviation in grid steps, exact."""
        return Fraction(self.share_stddev) / Fraction(self.step)

    def largest(self, num_units: int) -> int:
        """Return the most that one client's value may be, in grid steps."""
        return math.ceil(Fraction(num_units * self.most_of_unit) / Fraction(self.step))

    def check_rounding(self, num_values: int) -> None:
        """Refuse a grid on which rounding breaks the clip bound.

        Raises:
            PrivacyError: The grid is too coarse for so many values.
        """
        check_draws(num_values)
        # Two sums that differ in one unit may be rounded apart, by a step in each value. The clip bound is no bound on
        # what is sent unless this is small, and half of the slack is for it.
        if not self.step * math.sqrt(num_values) <= 0.5 * SENSITIVITY_SLACK * self.most_of_unit:
            raise PrivacyError("the grid of a secure sum is so coarse that rounding breaks the clip bound")


def gradient_scale(plan: PrivacyPlan, num_values: int, *, total_units: int, num_clients: int) -> ShareScale:
    """Return the scale of a sum of clipped gradients or updates.

    `total_units` is the declared number of units of all `num_clients` clients.

    Raises:
        ConfigError: No word is long enough for the sum.
        PrivacyError: The plan has no noise in shares.
    """
    share = _share(plan.noise_stddev, plan.noise_shares)
    step = grid_step(plan.max_grad_norm, num_values, share)
    return _with_ring(step, share, plan.max_grad_norm, total_units, num_clients)


def counts_scale(noise_stddev: float, noise_shares: int, *, total_units: int, num_clients: int) -> ShareScale:
    """Return the scale of a sum of counts.

    One unit changes a count by 1. Counts lie on the grid, so that rounding does not change them.

    Raises:
        ConfigError: No word is long enough for the sum.
        PrivacyError: The noise is not in shares.
    """
    share = _share(noise_stddev, noise_shares)
    step = min(1.0, 2.0 ** math.floor(math.log2(share * 2.0**-24)))
    return _with_ring(step, share, 1.0, total_units, num_clients)


def _share(noise_stddev: float, noise_shares: int) -> float:
    # Without this check a plan whose noise is drawn in one place would be noised by every client in full, or by none.
    if not (noise_shares >= 1 and noise_stddev > 0):
        raise PrivacyError("a plan without noise in shares cannot go into a secure sum")
    # Rounded up: t shares have at least the declared variance.
    return math.nextafter(noise_stddev / math.sqrt(noise_shares), math.inf)


def _with_ring(step: float, share: float, most: float, total_units: int, num_clients: int) -> ShareScale:
    scale = ShareScale(step, share, most, 0)
    # Every client may be at its bound at once, and rounding adds a step to each.
    largest = scale.largest(total_units) + num_clients * (1 + largest_integer(scale.steps_of_share))
    bits = -(-(largest.bit_length() + 1) // _BYTE) * _BYTE
    if bits > _MAX_BITS:
        raise ConfigError(
            f"a secure sum over {total_units:,} units needs words of {bits} bits, and there are at most {_MAX_BITS}: "
            "raise the noise, or train fewer values"
        )
    return ShareScale(step, share, most, bits)


def share_words(values: np.ndarray, scale: ShareScale, *, num_units: int, stream: ByteStream) -> np.ndarray:
    """Round one client's values to the grid and add its share of the noise.

    Guarantee: the values are rounded before the noise and never after. A unit that changes `values` by at most
    `most_of_unit` in L2 norm changes what is noised by at most that times 1 + `SENSITIVITY_SLACK`. The noise of any t
    clients' words together has a standard deviation of at least sqrt(t) shares, up to the error that
    `common.privacy.noise_error` charges.

    Args:
        values: One client's sum over its units, (d,) float64.
        scale: The release's scale.
        num_units: The client's declared number of units.
        stream: Fresh bytes, used for this noise only and never stored.

    Returns:
        Words below 2^bits, (d,) uint64, of which the sum modulo 2^bits may be released, and nothing else.

    Raises:
        PrivacyError: The grid is too coarse for so many values.
    """
    scale.check_rounding(values.size)
    # Cut to the public bound. That moves no two values apart, where a refusal would tell of the data.
    bound = float(scale.largest(num_units))
    whole = np.clip(np.rint(np.asarray(values, dtype=np.float64) / scale.step), -bound, bound)
    noise = gaussian_integers(values.size, stddev=scale.steps_of_share, stream=stream)
    return _to_ring(whole.astype(np.int64) + noise.astype(np.int64), scale.bits)


def values_of_sum(words: np.ndarray, scale: ShareScale) -> np.ndarray:
    """Return the noised sum that summed words stand for, (d,) float64."""
    shift = np.uint64(_MAX_BITS - scale.bits)
    # The sign is the word's first bit.
    signed = (words << shift).view(np.int64) >> np.int64(shift)
    return np.asarray(signed.astype(np.float64) * scale.step)


def _to_ring(whole: np.ndarray, bits: int) -> np.ndarray:
    return whole.view(np.uint64) & np.uint64((1 << bits) - 1)
