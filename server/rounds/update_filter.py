"""Updates whose length no honest training explains: left out of their round."""

import math
from collections.abc import Mapping

import numpy as np

from common.messages.codec import record_to_arrays
from common.messages.fields import ARRAYS
from server.rounds.replies import AcceptedReplies, _log

# Noise and sizes make honest clients differ by tens; a broken or hostile one by orders of magnitude.
_TIMES_THE_MEDIAN = 1000.0
_LEAST_TO_COMPARE = 3
# However few there are: longer than so many times the model itself, or than this where the model is small.
_TIMES_THE_MODEL = 1e6


def update_norm(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> float:
    """Joint L2 length of an update over all tensors, in weight units; infinite where a value is not finite."""
    with np.errstate(over="ignore", invalid="ignore"):
        total = sum(float(np.square(after[name].astype(np.float64) - before[name]).sum()) for name in before)
    return math.sqrt(total) if math.isfinite(total) else math.inf


def absurd_updates(norms: Mapping[str, float], *, max_update_norm: float | None, model_norm: float = 0.0) -> set[str]:
    """Names of clients whose updates are too long to be meant.

    Compares clients with each other, so it must not stand before clipping and noise at the server, where one client
    may move nothing but its own share.

    Args:
        norms: Client name -> length of its update.
        model_norm: Length of the model that was sent.
        max_update_norm: The longest that is allowed; None compares with the round's median alone.

    >>> sorted(absurd_updates({"a": 1.0, "b": 2.0, "c": 1.5, "d": 3e7}, max_update_norm=None))
    ['d']
    >>> sorted(absurd_updates({"a": 1.0, "b": 9.0}, max_update_norm=5.0))
    ['b']
    """
    most = _TIMES_THE_MODEL * max(1.0, model_norm)
    found = {name for name, norm in norms.items() if not norm <= most}
    if max_update_norm is not None:
        found |= {name for name, norm in norms.items() if norm > max_update_norm}
    finite = {name: norm for name, norm in norms.items() if name not in found}
    if len(finite) < _LEAST_TO_COMPARE:
        return found
    bound = _TIMES_THE_MEDIAN * float(np.median(list(finite.values())))
    return found | {name for name, norm in finite.items() if norm > bound > 0}


OUTLIER = "NORM"


def drop_outliers(
    good: AcceptedReplies, failed: dict[str, str], before: Mapping[str, np.ndarray], *, max_update_norm: float | None
) -> None:
    """Leave out updates that are too long to be meant; not for a server that clips and noises itself.

    Args:
        good: Replies to a training message; changed.
        failed: Why others were left out; changed.
        before: The model that was sent.
        max_update_norm: See `absurd_updates`.
    """
    norms = {
        name: update_norm(before, record_to_arrays(reply.content.array_records[ARRAYS]))
        for name, (reply, _) in good.items()
    }
    sent = update_norm({name: np.zeros_like(array) for name, array in before.items()}, before)
    for name in sorted(absurd_updates(norms, max_update_norm=max_update_norm, model_norm=sent)):
        _log.error("left out: client %s sent an update of length %.3g", name, norms[name])
        del good[name]
        failed[name] = OUTLIER
