"""Clipping and noise at the server that protect whole clients.

Clients send exact updates, so each must trust the server with its own. What the server releases is the noised average.
Every client weighs the same, whatever its size.
"""

from collections.abc import Iterable

import numpy as np

from common.arrays import Arrays, from_vector, shapes_of, to_vector
from common.privacy.clipping import clipped_sum
from common.privacy.counts.discrete_gaussian import ByteStream
from common.privacy.noise import add_noise
from common.privacy.plan import PrivacyPlan


def noised_average(start: Arrays, ended: Iterable[Arrays], plan: PrivacyPlan, *, stream: ByteStream) -> Arrays:
    """Add the noised average of the clients' clipped updates to a model.

    Guarantee: adding or removing one client, or its update becoming zero, moves the sum by at most `plan.max_grad_norm`
    before noise of `plan.noise_stddev` is added. The release is one step of `plan.event()`, however many clients
    answered. An update that is not finite becomes zero. `stream` must be fresh and used for this noise only. The new
    arrays are float32, with the names and shapes of `start`.

    Source: McMahan et al. 2018, arXiv:1710.06963 (flat clipping, fixed divisor).
    """
    before = to_vector(start, start)
    total = np.zeros(before.size)
    for model in ended:
        # A hostile model may overflow here. The clipping turns such an update into zero.
        with np.errstate(over="ignore", invalid="ignore"):
            update = to_vector(model, start) - before
        total += clipped_sum(update[None], max_grad_norm=plan.max_grad_norm)
    noised = add_noise(total, noise_stddev=plan.noise_stddev, max_grad_norm=plan.max_grad_norm, stream=stream)
    # The planned size, not the number of updates: how many clients answered must not change the divisor.
    after = before + noised / plan.expected_batch_size
    return {name: part.astype(np.float32) for name, part in from_vector(after, shapes_of(start)).items()}
