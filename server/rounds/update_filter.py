"""Filter of updates that are far longer than honest training explains."""

import logging
import math
from collections.abc import Mapping

import numpy as np

from server.rounds.replies import AcceptedReplies

_log = logging.getLogger("bract.server")
OUTLIER = "NORM"
# Noise and sizes make honest clients differ by a factor of tens; broken or hostile ones differ by far more.
_TIMES_THE_MEDIAN = 1000.0
# Fewer updates have no useful median.
_MIN_TO_COMPARE = 3
_BLOCK = 1 << 14
# Bound that holds for any number of updates, in lengths of the model (or of 1 where the model is small).
_TIMES_THE_MODEL = 1e6


def update_norm(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> float:
    """Return an update's joint L2 norm in weight units, infinite if not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = sum(_square_sum(before[name].ravel(), after[name].ravel()) for name in before)
    return math.sqrt(total) if math.isfinite(total) else math.inf


def _square_sum(before: np.ndarray, after: np.ndarray) -> float:
    """Return the sum of squared differences of flat arrays, computed in float64."""
    total, differences = 0.0, np.empty(min(_BLOCK, before.size))
    # Block by block. Whole tensors in float64 would leave the processor's cache for each client.
    for first in range(0, before.size, _BLOCK):
        part = differences[: before.size - first]
        np.subtract(after[first : first + _BLOCK], before[first : first + _BLOCK], out=part, dtype=np.float64)
        total += float(part @ part)
    return total


def outlier_updates(norms: Mapping[str, float], *, max_update_norm: float | None, model_norm: float = 0.0) -> set[str]:
    """Return the names of clients whose updates are too long.

    It compares clients with each other, so it must not run before clipping and noise at the server, where a client may
    change only its own share. `max_update_norm` is the longest accepted update; None compares with the round's median
    alone. `model_norm` is that of the model that was sent.

    >>> sorted(outlier_updates({"a": 1.0, "b": 2.0, "c": 1.5, "d": 3e7}, max_update_norm=None))
    ['d']
    >>> sorted(outlier_updates({"a": 1.0, "b": 9.0}, max_update_norm=5.0))
    ['b']
    """
    longest = min(_TIMES_THE_MODEL * max(1.0, model_norm), math.inf if max_update_norm is None else max_update_norm)
    # "not <=" and not ">", because a norm that is not a number must be an outlier.
    outliers = {name for name, norm in norms.items() if not norm <= longest}
    rest = {name: norm for name, norm in norms.items() if name not in outliers}
    if len(rest) < _MIN_TO_COMPARE:
        return outliers
    bound = _TIMES_THE_MEDIAN * float(np.median(list(rest.values())))
    # A median of 0 says nothing: most clients may have had nothing to train on.
    return outliers | {name for name, norm in rest.items() if norm > bound > 0}


def drop_outliers(
    accepted: AcceptedReplies,
    failed: dict[str, str],
    norms: Mapping[str, float],
    before: Mapping[str, np.ndarray],
    *,
    max_update_norm: float | None,
) -> None:
    """Drop updates that are too long, under the conditions of `outlier_updates`.

    They are removed from `accepted` and added to `failed`. `norms` has the length of each accepted update, and may have
    those of others. `before` is the model that was sent.
    """
    of_accepted = {name: norms[name] for name in accepted}
    model_norm = update_norm({name: np.zeros_like(array) for name, array in before.items()}, before)
    for name in sorted(outlier_updates(of_accepted, max_update_norm=max_update_norm, model_norm=model_norm)):
        _log.error("left out: client %s sent an update of length %.3g", name, norms[name])
        reply, _ = accepted.pop(name)
        # As in a round that is over: nothing needs its tensors any more.
        reply.content.clear()
        failed[name] = OUTLIER
