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
# Longest step of a summed gradient under rule 1, in units of the clip bound.
_MAX_PLAIN_STEP = 60.0
# Momentum of the server's steps. Without it long steps swing, and a larger one is too slow for 60 rounds.
_MOMENTA = [percent / 100 for percent in range(70, 91)]
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
    version: int,
) -> tuple[float, float]:
    """Return learning rate and momentum of a server that steps along summed gradients.

    `noise_stddev` is that of the sum over all clients of the run, which is more than the accounted one if more clients
    are honest than were accounted. The final head has at most the noise `LOGIT_NOISE` in each weight. The step is the
    longest that does not swing, with the largest momentum under which the noise stays below that. Where even the
    least momentum leaves more, the step is shorter. All arguments are public constants, and the result is rounded to 3
    digits. `version` is that of the rule, see `training.step-rule`.
    """
    noise = noise_stddev / total_units
    if version == 1:
        # Runs that began under this rule go on with it. Its steps have no limit, so they swing in a run of few rounds.
        whole = LOGIT_NOISE / (noise * math.sqrt(num_rounds))
        momentum = float(f"{max(0.0, 1.0 - _MAX_PLAIN_STEP / (whole * max_grad_norm)):.3g}")
        rate = LOGIT_NOISE / (noise * _sum_of_rounds(momentum, num_rounds))
    else:
        longest = longest_step(num_rounds) / max_grad_norm
        quiet = [m for m in _MOMENTA if longest * noise * _sum_of_rounds(m, num_rounds) <= LOGIT_NOISE]
        momentum = max(quiet, default=_MOMENTA[0])
        rate = min(longest, LOGIT_NOISE / (noise * _sum_of_rounds(momentum, num_rounds)))
    return float(f"{rate:.3g}"), momentum


def longest_step(num_rounds: int) -> float:
    """Return the longest step of a summed gradient, in units of the clip bound.

    A longer one swings along the mean of the features. The rounds that follow undo that, so more rounds bear longer
    steps.

    >>> longest_step(3), longest_step(30), longest_step(100)
    (60.0, 100.0, 150.0)
    """
    return min(MAX_STEP, max(60.0, 40.0 + 2.0 * num_rounds))


def _sum_of_rounds(momentum: float, num_rounds: int) -> float:
    """Return the final head's noise where rate and each round's noise are 1."""
    # A gradient of k rounds before the end has moved the head by 1 + m + ... + m^(k - 1).
    moved = [(1 - momentum**rounds) / (1 - momentum) for rounds in range(1, num_rounds + 1)]
    return math.sqrt(sum(factor * factor for factor in moved))
