"""Weighted mean of the clients' models, to the bit that of Flower's strategies."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from flwr.app import Array
from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy

from common.arrays import Arrays
from common.messages.fields import NUM_EXAMPLES
from common.messages.held_array import values_of
from common.strategies import UNIFORM_STRATEGIES

# So many values of the mean stay in a core's cache while those of all clients are added.
_BLOCK = 1 << 16
# Models that are in memory together, where they lie in a file.
_GROUP_BYTES = 1 << 26


def takes_a_mean(strategy: Strategy) -> bool:
    """Return True if a strategy uses only the weighted mean of the replies.

    The weight is `num-examples`. Then the strategy may get the mean as one reply. Subclasses of Flower's strategies may
    use more, so they get all replies.
    """
    name = type(strategy).__name__
    if name not in UNIFORM_STRATEGIES or type(strategy) is not getattr(flower_strategies, name):
        return False
    return bool(getattr(strategy, "weighted_by_key", None) == NUM_EXAMPLES)


def weighted_mean(records: Sequence[Mapping[str, Array]], weights: Sequence[int]) -> Arrays:
    """Return the mean of tensors, weighted.

    Guarantee: the same bytes as the average of Flower's strategies. Each value is multiplied and added in the same
    order and type as there. Only memory is read in another order, block by block, and no more than a few records that
    lie in a file are in memory at a time.

    Args:
        records: Each client's tensors, of the same names and shapes.
        weights: Each client's weight; their sum is above 0.
    """
    total = sum(weights)
    factors = [weight / total for weight in weights]
    mean: Arrays = {}
    first = 0
    for group in _groups(records):
        for name in records[0]:
            _add(mean, name, [model[name] for model in group], factors[first : first + len(group)])
        first += len(group)
    return mean


def _groups(records: Sequence[Mapping[str, Array]]) -> Iterator[list[Arrays]]:
    group: list[Arrays] = []
    size = 0
    for record in records:
        group.append({name: values_of(array) for name, array in record.items()})
        size += sum(array.nbytes for array in group[-1].values())
        if size >= _GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group


def _add(mean: Arrays, name: str, tensors: Sequence[np.ndarray], factors: Sequence[float]) -> None:
    """Add scaled tensors to that of the mean."""
    is_first = name not in mean
    if is_first:
        mean[name] = np.empty(tensors[0].shape, np.result_type(tensors[0], factors[0]))
    sums = mean[name].reshape(-1)
    flat = [tensor.reshape(-1) for tensor in tensors]
    scaled = np.empty(min(_BLOCK, sums.size), sums.dtype)
    for start in range(0, sums.size, _BLOCK):
        part = sums[start : start + _BLOCK]
        for index, (values, factor) in enumerate(zip(flat, factors, strict=True)):
            # The first product is no sum with 0, which would change the sign of a negative zero.
            if is_first and index == 0:
                np.multiply(values[start : start + _BLOCK], factor, out=part)
                continue
            part += np.multiply(values[start : start + _BLOCK], factor, out=scaled[: part.size])
