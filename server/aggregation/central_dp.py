"""Client-level privacy at the server: clip each client's update, add noise to their sum, divide by the plan's size.

Clients send exact updates and must trust the server with them; what it releases is
the noised average. A client's share is the same whatever its size.
"""

from collections.abc import Sequence

import numpy as np

from common.arrays import Arrays
from common.privacy.clipping import clipped_sum
from common.privacy.noise import UniformStream, add_noise
from common.privacy.plan import PrivacyPlan


def noised_average(start: Arrays, ended: Sequence[Arrays], plan: PrivacyPlan, *, stream: UniformStream) -> Arrays:
    """The model after a round: the one before it, plus the noised average of the clients' clipped updates.

    Guarantee: adding or removing one client, or its update becoming zero, moves the sum by at most
    `plan.max_grad_norm` before noise of `plan.noise_stddev` is added: the release is one step of
    `plan.event()`, however many clients answered. The divisor is the cohort's planned size. An
    update that is not finite becomes zero.

    Args:
        start: Name -> array, the model that was sent.
        ended: The models that came back, one a client.
        plan: Clip bound, noise, divisor.
        stream: A fresh stream used for this noise only.

    Returns:
        Name -> float32 array, same names and shapes.

    Source: McMahan et al. 2018, arXiv:1710.06963 (flat clipping, fixed divisor).
    """
    before = _flat(start)
    total = np.zeros(before.size)
    for model in ended:
        with np.errstate(over="ignore", invalid="ignore"):
            update = _flat({name: model[name] for name in start}) - before
        total += clipped_sum(update[None], max_grad_norm=plan.max_grad_norm)
    noised = add_noise(total, noise_stddev=plan.noise_stddev, max_grad_norm=plan.max_grad_norm, stream=stream)
    after = before + noised / plan.expected_batch_size
    out: Arrays = {}
    at = 0
    for name, array in start.items():
        out[name] = after[at : at + array.size].reshape(array.shape).astype(np.float32)
        at += array.size
    return out


def _flat(arrays: Arrays) -> np.ndarray:
    return np.concatenate([np.asarray(array, dtype=np.float64).ravel() for array in arrays.values()])
