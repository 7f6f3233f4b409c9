"""Upper bounds on the signal-to-noise ratio of private training.

They follow from public constants, before any training. Both ratios compare L2 norms over all trained parameters. The
signal is the largest that clipping allows, with every gradient at the clip bound and all in one direction. Real
gradients disagree and shrink as training goes on. The noise's norm is its root mean square, which is its standard
deviation times the square root of the number of parameters.
"""

import math
from collections.abc import Sequence

from common.privacy.plan import PrivacyPlan


def step_ratio(plan: PrivacyPlan, num_parameters: int) -> float:
    """Return the largest signal-to-noise ratio of one step's noised sum.

    The signal is the expected batch's: `expected_batch_size * max_grad_norm`. The noise is `noise_stddev *
    sqrt(num_parameters)`. Under `client-dp` the plan's units are the cohort's clients, and its step is a whole round.
    """
    signal = plan.expected_batch_size * plan.max_grad_norm
    return signal / (plan.noise_stddev * math.sqrt(num_parameters))


def round_ratio(plans: Sequence[tuple[PrivacyPlan, int]], cohort_size: float, num_parameters: int) -> float:
    """Return the largest signal-to-noise ratio of one round's global update.

    The clients run `dp-sgd`, and `plans` says how many of them have each plan. Over a client's steps the signal grows
    with their number, the noise with its square root. Averaging clients by size keeps the signal and lowers the noise.
    The ratio is exact for plain SGD at a constant learning rate under FedAvg, and for a cohort that mixes sizes as
    `plans` do.
    """
    signal = variance = 0.0
    for plan, count in plans:
        signal += count * plan.num_units * plan.steps_per_round * plan.max_grad_norm
        # The noise of one step, weighted by the client's size.
        noise = plan.num_units * plan.noise_stddev / plan.expected_batch_size
        variance += count * plan.steps_per_round * noise**2
    num_clients = sum(count for _, count in plans)
    return signal / math.sqrt(variance * num_parameters) * math.sqrt(cohort_size / num_clients)
