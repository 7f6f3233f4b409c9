"""Fixed-point contributions for a sum that the server cannot take apart."""

import math

import numpy as np

from common.errors import ConfigError
from common.secagg.primitives.fixed_point import FixedPoint, choose_scale
from common.secagg.refusals import SecureSumError
from common.statistics.head import PENALTY
from common.statistics.sums import StatisticsKind, scale_of

# The longest contribution that is summed, in declared images. A folder may have grown since its size was declared.
ROOM = 4
# Largest effect of the grid on the head, see `contribution_point`.
_LARGEST_ERROR = 1e-6


def contribution_point(
    kind: StatisticsKind, num_values: int, *, total_units: int, num_clients: int, word_bits: int
) -> FixedPoint:
    """Return the encoding of contributions whose sum over all clients fits the ring.

    Features have length 1, so a client of m images has a contribution of norm at most m. The encoding holds `ROOM`
    times that for each client. Every client cuts its values to the grid, so the sum is off by less than n steps in each
    value. The sums that follow are off by e = n x step x `scale_of(kind)` x sqrt(p) in Frobenius norm, all tensors
    together.

    Guarantee: e is at most 1e-6 of the ridge penalty r of the whole run. For `second-moments` the solution W of the
    ridge regression then moves by at most (1 + |W|) e / r, about a millionth of its length.

    Args:
        kind: What is summed.
        num_values: Values of a contribution, p.
        total_units: Declared number of images of all clients.
        num_clients: Clients that may be in one sum, n.
        word_bits: Bits of a word.

    Raises:
        ConfigError: No grid is that fine.
    """
    penalty = PENALTY * total_units
    coarsest = _LARGEST_ERROR * penalty / (num_clients * scale_of(kind) * math.sqrt(num_values))
    try:
        # Norms add up to no more than the norm of one vector of all images, whatever the clients' sizes are.
        return choose_scale(longest=float(ROOM * total_units), word_bits=word_bits, largest_step=coarsest)
    except SecureSumError:
        raise ConfigError(
            f"sums over features of {num_clients:,} clients do not fit in words of {word_bits} bits: take fewer "
            "clients, or privacy.aggregation=plain"
        ) from None


def fits(contribution: np.ndarray, num_units: int) -> bool:
    """Return whether a client's contribution is finite and within its room."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.linalg.norm(contribution) <= ROOM * num_units)
