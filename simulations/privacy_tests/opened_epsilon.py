"""Privacy test T2 of secure sums, their epsilon against an independent accountant."""

from collections.abc import Iterator, Sequence

import numpy as np
from dp_accounting import GaussianDpEvent, NeighboringRelation, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from scipy import stats

from common.privacy.accounting import spent_by
from common.privacy.counts.counts_plan import CountsPlan
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.noise_scale import ALARM

# Discretization of two accountants, as a part of epsilon.
_BELOW = 1e-5


def epsilon_checks(harness: ClientHarness, honest: int, scaled: np.ndarray) -> Iterator[Check]:
    """Check the epsilon by the measured noise and by the declared noise.

    Args:
        harness: A configuration with noise in shares.
        honest: Number of clients that are honest.
        scaled: Noise of sums over its declared standard deviation.
    """
    config, plan = harness.config, harness.plan
    # Rounds, delta and target are those of the settings: a plan that is too cheap must not test itself.
    steps = (1 if config.takes_statistics else config.participations) * plan.steps_per_round
    delta, target = config.privacy.delta, config.privacy.target_epsilon
    energy, size = float((scaled**2).sum()), scaled.size
    # The largest noise that may have given so little energy by chance: what it costs is a lower bound.
    most = float(np.sqrt(energy / stats.chi2.ppf(ALARM, size)))
    measured, least, declared = (
        _epsilon([(plan.noise_multiplier * factor, steps)], delta)
        for factor in (float(np.sqrt(energy / size)), most, 1.0)
    )
    stated = spent_by(plan.training_events(), delta=plan.delta, fresh=True).pld
    seen = f"epsilon {measured:.4g} by the measured noise, at least {least:.4g}, {stated:.4g} by the plan"
    yield Check(f"{honest} honest clients give the epsilon of the plan", least <= stated, seen)
    yield from _stated("sums", declared, stated, target)
    if plan.counts is not None:
        counts = _epsilon(_counts(plan.counts), delta)
        yield from _stated("counts", counts, spent_by(plan.counts_events(), delta=plan.delta, fresh=True).pld, target)


def _stated(name: str, independent: float, stated: float, target: float | None) -> Iterator[Check]:
    seen = f"epsilon {independent:.5f} independently, {stated:.5f} by the plan"
    fine = independent <= stated * (1 + _BELOW)
    yield Check(f"the plan's epsilon of {name} is not below an independent one", fine, seen)
    if target is not None:
        fine = independent <= target * (1 + _BELOW)
        yield Check(f"the epsilon of {name} is not above the target", fine, f"{seen}, target {target:g}")


def _counts(counts: CountsPlan) -> list[tuple[float, int]]:
    """Return noise and number of votes of one unit in each kind of counts."""
    votes = [
        (counts.noise_stddev, counts.num_rounds),
        (counts.closing_noise_stddev, 1),
        (counts.scores_noise_stddev, counts.num_classes or 0),
        (counts.calibration_noise_stddev, 1),
        (counts.subgroups_noise_stddev, 1),
    ]
    return [(stddev, number) for stddev, number in votes if stddev is not None and number]


def _epsilon(noises: Sequence[tuple[float, int]], delta: float) -> float:
    """Return the epsilon of Gaussian releases of sensitivity 1, (noise, number) each."""
    accounting = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-4)
    for noise, number in noises:
        accounting.compose(SelfComposedDpEvent(GaussianDpEvent(noise), number))
    return float(accounting.get_epsilon(delta))
