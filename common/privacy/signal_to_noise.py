"""How long the signal can be against the noise: an upper bound from public constants, before any training.

Both ratios compare lengths (L2) of what all trained parameters move together. The signal is the
longest that clipping allows: every gradient at full length, all in one direction. Real gradients
disagree, shrink as training goes on, and held-out units have none. The noise's length is its root
mean square, its standard deviation times the square root of the number of parameters.
"""

import math
from collections.abc import Sequence

from common.privacy.plan import PrivacyPlan


def step_ratio(plan: PrivacyPlan, num_parameters: int) -> float:
    """Signal over noise, at most, in the noised sum of one step.

    The signal is the expected batch's: `expected_batch_size * max_grad_norm`. The noise
    is `noise_stddev * sqrt(num_parameters)`.

    Args:
        plan: Of one client; under `client-dp` of the server, whose units are the
            cohort's clients and whose step is a whole round.
        num_parameters: How many values are noised, at least 1.
    """
    signal = plan.expected_batch_size * plan.max_grad_norm
    return signal / (plan.noise_stddev * math.sqrt(num_parameters))


def round_ratio(plans: Sequence[tuple[PrivacyPlan, int]], cohort_size: float, num_parameters: int) -> float:
    """Signal over noise, at most, in what one round of `dp-sgd` adds to the global model.

    A client's steps add up by their number where they agree, their noise by its square
    root; averaging clients by size keeps what they agree on and lowers the noise. Exact
    for plain SGD at a constant learning rate under FedAvg, and for a cohort that mixes
    sizes as `plans` do.

    Args:
        plans: The plan of each size of client, and how many clients have it.
        cohort_size: Clients a round.
        num_parameters: As for `step_ratio`.
    """
    signal = variance = 0.0
    for plan, count in plans:
        signal += count * plan.num_units * plan.steps_per_round * plan.max_grad_norm
        noise = plan.num_units * plan.noise_stddev / plan.expected_batch_size  # of one step, weighted by size
        variance += count * plan.steps_per_round * noise**2
    known = sum(count for _, count in plans)
    return signal / math.sqrt(variance * num_parameters) * math.sqrt(cohort_size / known)
