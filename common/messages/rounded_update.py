"""Updates in 8 bits, rounded at random by a public stream.

The stream is public, so that rounding hides nothing and every engine sends the same bytes. Under `dp-sgd` it is applied
to the noised update, its scales included, which makes it post-processing of a release that is charged already.
"""

import math
from collections.abc import Mapping

import numpy as np

from common.arrays import Arrays
from common.messages.fields import CODES, SCALES, Releases
from common.models.linear_head import HEAD_WEIGHT
from common.randomness import public_stream
from common.statistics.sums import statistic_shapes

# Values that share a scale. Shorter runs follow the update more closely and cost 4 bytes each.
_RUN = 256
_LARGEST_CODE = 127


def leaving_shapes(travelling: Mapping[str, tuple[int, ...]], releases: Releases) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors in a reply to a training message.

    `travelling` are those of the model that travels, in a secure sum those of the masked words.
    """
    if releases.statistics is not None and not releases.secure:
        # Replies without tensors are checked as well.
        return statistic_shapes(releases.statistics, *travelling[HEAD_WEIGHT]) if travelling else {}
    if not releases.rounded:
        return dict(travelling)
    sizes = [math.prod(shape) for shape in travelling.values()]
    return {CODES: (sum(sizes),), SCALES: (sum(map(_num_runs, sizes)),)}


def update_bytes(travelling: Mapping[str, tuple[int, ...]], releases: Releases) -> int:
    """Return the bytes of the values that a client sends in a round.

    Names and headers are not in it. The vector of a secure sum has another size, see `SecureWords.num_bytes`.
    """
    shapes = leaving_shapes(travelling, releases)
    if releases.statistics is not None:
        return sum(8 * math.prod(shape) for shape in shapes.values())
    return sum(math.prod(shape) * (1 if releases.rounded and name == CODES else 4) for name, shape in shapes.items())


def leaving_arrays(
    trained: Arrays, incoming: Arrays, releases: Releases, *, seed: int, client: str, server_round: int
) -> Arrays:
    """Return the tensors of a client's reply, rounded if the run asks for it.

    `trained` holds the tensors of `incoming`, the model that the client received, after training. All other arguments
    are public, so the result is post-processing of `trained`.
    """
    if not releases.rounded:
        return trained
    rounded = round_update(trained, incoming, public_stream(seed, "rounding", client, server_round))
    # The server refuses scales that are not finite. Where it adds the noise, a refusal would tell that a client's
    # training diverged. Such an update counts as zero instead, as it does in 32 bits.
    if releases.mechanism.noise_at_server and not np.isfinite(rounded[SCALES]).all():
        return {name: np.zeros_like(array) for name, array in rounded.items()}
    return rounded


def round_update(trained: Arrays, incoming: Arrays, rng: np.random.Generator) -> Arrays:
    """Round the difference of two models at random to whole multiples of a scale.

    Guarantee: the expectation of each value over `rng` is the value, and its error is less than one scale. Up to `_RUN`
    neighbours in one tensor share a scale, which is 1/127 of their largest magnitude. Where a value is not finite, the
    scale of its run is not finite.

    Args:
        trained: Name -> float32 tensor.
        incoming: Tensors of the same names and shapes; their order is that of the result.
        rng: Gives one number for each value.

    Returns:
        `codes`, (values,) int8 from -127 to 127, and `scales`, (runs,) float32.

    Source: Alistarh et al. 2017, arXiv:1610.02132 (QSGD, here with the largest magnitude in place of the norm).
    """
    codes, scales = [np.zeros(0, dtype=np.int8)], [np.zeros(0, dtype=np.float32)]
    for name, before in incoming.items():
        if not before.size:
            continue
        update = trained[name].ravel().astype(np.float64) - before.ravel()
        of_runs = _scales(np.maximum.reduceat(np.abs(update), np.arange(0, update.size, _RUN)))
        scale = _spread(of_runs, update.size)
        whole = np.divide(update, scale, out=np.zeros_like(update), where=np.isfinite(scale) & (scale > 0))
        low = np.floor(whole)
        codes.append((low + (rng.random(update.size) < whole - low)).astype(np.int8))
        scales.append(of_runs)
    return {CODES: np.concatenate(codes), SCALES: np.concatenate(scales)}


def restore_model(rounded: Arrays, incoming: Arrays) -> Arrays:
    """Return the float32 model that a rounded update leads to.

    `incoming` is the model that was sent. `rounded` has the names and shapes of `leaving_shapes`. A large scale may
    give infinite values.
    """
    codes, scales = rounded[CODES], rounded[SCALES]
    restored, value, run = {}, 0, 0
    for name, before in incoming.items():
        next_value, next_run = value + before.size, run + _num_runs(before.size)
        scale = _spread(scales[run:next_run], before.size)
        with np.errstate(over="ignore"):
            after = (before.ravel() + codes[value:next_value] * scale).astype(np.float32)
        restored[name], value, run = after.reshape(before.shape), next_value, next_run
    return restored


def _num_runs(size: int) -> int:
    return -(-size // _RUN)


def _spread(scales: np.ndarray, size: int) -> np.ndarray:
    """Return the scale of each value of a tensor, (size,) float64."""
    return np.repeat(scales.astype(np.float64), _RUN)[:size]


def _scales(largest: np.ndarray) -> np.ndarray:
    """Return the smallest float32 scales with which no code exceeds `_LARGEST_CODE`."""
    scales = (largest / _LARGEST_CODE).astype(np.float32)
    short = scales.astype(np.float64) * _LARGEST_CODE < largest
    # A scale that was rounded down would need a larger code for the largest value, and cutting it off is a bias.
    return np.where(short, np.nextafter(scales, np.float32(np.inf)), scales)
