"""Public rules for the learning rate, steps and clip bound of private heads.

One unit's features have length 1, so a logit of the final model carries as much noise as one weight. The rule makes
that noise equal in every run. docs/privacy.md has the fit.
"""

import math

# Standard deviation of the noise in each weight of the final head, in logits. Fitted on digits and CIFAR-10.
LOGIT_NOISE = 1.4
# Longest step in units of the clip bound. Beyond it plain SGD swings on the sets of the fit, with or without noise.
MAX_STEP = 150.0
# A round's total step, in units of the clip bound, that one step can make. More is divided among several steps.
_ONE_STEP = 20.0
_MAX_STEPS = 4
# Longest step of a summed gradient without momentum, in units of the clip bound. Longer steps swing on the digits.
_MAX_PLAIN_STEP = 60.0
# Largest clip bound of one client's update. Updates at the default learning rate are 9 to 15 long in the fit.
MAX_UPDATE = 10.0


def steps_in_round(noise_of_one: float, *, num_units: int, num_rounds: int, cohort_size: int) -> int:
    """Return in how many full batches a client divides its round, 1 to 4.

    `noise_of_one` is the noise multiplier that the run's target would ask of a single step with every unit in it. Full
    batches compose like one Gaussian, so the total step of the run hardly depends on their number.
    """
    total = LOGIT_NOISE * num_units * math.sqrt(cohort_size) / noise_of_one
    return max(1, min(_MAX_STEPS, math.ceil(total / num_rounds / _ONE_STEP)))


def head_learning_rate(
    *,
    noise_multiplier: float,
    max_grad_norm: float,
    expected_batch_size: float,
    steps_per_round: int,
    num_rounds: int,
    cohort_size: int,
    momentum: float,
) -> float:
    """Return the learning rate that leaves `LOGIT_NOISE` in each weight of the final head.

    All arguments are public constants. The client takes the other clients of its cohort for as large as itself: their
    sizes are theirs. The rate is rounded to 3 digits, so that it reads well in a plan.

    Source: the linear growth of the total step with epsilon, Panda et al. 2022, arXiv:2212.04486.
    """
    # The noise of one step in the average over a cohort, for a learning rate of 1.
    noise = noise_multiplier * max_grad_norm / (expected_batch_size * math.sqrt(cohort_size))
    rate = min(LOGIT_NOISE / (noise * math.sqrt(steps_per_round * num_rounds)), MAX_STEP / max_grad_norm)
    return float(f"{rate * (1 - momentum):.3g}")


def head_clipping_norm(*, noise_multiplier: float, num_rounds: int, cohort_size: int) -> float:
    """Return the update's clip bound that leaves `LOGIT_NOISE` in the final head's weights.

    All arguments are public constants. The bound is rounded to 3 digits, so that it reads well in a plan.
    """
    # The noise of one round's average, for a bound of 1.
    noise = noise_multiplier / cohort_size
    return float(f"{min(LOGIT_NOISE / (noise * math.sqrt(num_rounds)), MAX_UPDATE):.3g}")


def summed_steps(
    *,
    noise_stddev: float,
    max_grad_norm: float,
    total_units: int,
    num_rounds: int,
) -> tuple[float, float]:
    """Return learning rate and momentum of a server that steps along summed gradients.

    `noise_stddev` is that of the sum over all clients of the run, which is more than the accounted one if more clients
    are honest than were accounted. Momentum replaces steps that are too long: rate / (1 - momentum) is what one
    gradient moves the head by in the end. The final head has the noise `LOGIT_NOISE` in each weight. All arguments are
    public constants, and the result is rounded to 3 digits.
    """
    noise = noise_stddev / total_units
    whole = LOGIT_NOISE / (noise * math.sqrt(num_rounds))
    momentum = float(f"{max(0.0, 1.0 - _MAX_PLAIN_STEP / (whole * max_grad_norm)):.3g}")
    # A gradient of k rounds before the end has moved the head by rate x (1 + m + ... + m^(k - 1)).
    moved = [(1 - momentum**rounds) / (1 - momentum) for rounds in range(1, num_rounds + 1)]
    rate = LOGIT_NOISE / (noise * math.sqrt(sum(factor * factor for factor in moved)))
    return float(f"{rate:.3g}"), momentum
