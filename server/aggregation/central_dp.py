"""Clipping and noise at the server that protect whole clients.

Clients send exact updates, so each must trust the server with its own. What the server releases is the noised average.
Every client weighs the same, whatever its size.
"""

from collections.abc import Sequence

import numpy as np

from common.arrays import Arrays
from common.privacy.clipping import clipped_sum
from common.privacy.counts.discrete_gaussian import ByteStream
from common.privacy.noise import add_noise
from common.privacy.plan import PrivacyPlan


def noised_average(start: Arrays, ended: Sequence[Arrays], plan: PrivacyPlan, *, stream: ByteStream) -> Arrays:
    """Add the noised average of the clients' clipped updates to a model.

    Guarantee: adding or removing one client, or its update becoming zero, moves the sum by at most `plan.max_grad_norm`
    before noise of `plan.noise_stddev` is added. The release is one step of `plan.event()`, however many clients
    answered. An update that is not finite becomes zero. `stream` must be fresh and used for this noise only. The new
    arrays are float32, with the names and shapes of `start`.

    Source: McMahan et al. 2018, arXiv:1710.06963 (flat clipping, fixed divisor).
    """
    before = _flat(start)
    total = np.zeros(before.size)
    for model in ended:
        # A hostile model may overflow here. The clipping turns such an update into zero.
        with np.errstate(over="ignore", invalid="ignore"):
            update = _flat({name: model[name] for name in start}) - before
        total += clipped_sum(update[None], max_grad_norm=plan.max_grad_norm)
    noised = add_noise(total, noise_stddev=plan.noise_stddev, max_grad_norm=plan.max_grad_norm, stream=stream)
    # The planned size, not len(ended): how many clients answered must not change the divisor.
    after = before + noised / plan.expected_batch_size
    ends = np.cumsum([array.size for array in start.values()])[:-1]
    parts = zip(start.items(), np.split(after, ends), strict=True)
    return {name: part.reshape(array.shape).astype(np.float32) for (name, array), part in parts}


def _flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.asarray(array, dtype=np.float64).ravel() for array in arrays.values()])
