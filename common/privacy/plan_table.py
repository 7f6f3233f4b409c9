"""The table of a private run's cost and noise for each client size.

It is computed before the run, from public constants.

Its signal-to-noise ratios are upper bounds. Both ratios compare L2 norms over all trained parameters. The signal is
the largest that clipping allows, with every gradient at the clip bound and all in one direction. Real gradients
disagree and shrink as training goes on. The noise's norm is its root mean square, which is its standard deviation times
the square root of the number of parameters.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION, Spent, spent_by
from common.privacy.calibration import calibrate
from common.privacy.plan import PrivacyPlan
from common.system.progress import ProgressFactory, no_progress

MAX_SHOWN = 5
_MORE_EPSILON = 1.0
_MORE_NOISE = 1.1
_FIELDS = (
    "noise_multiplier",
    "noise_stddev",
    "sample_rate",
    "expected_batch_size",
    "steps_per_round",
    "num_rounds",
    "learning_rate",
    "label_noise_stddev",
)


@dataclass(frozen=True)
class Alternative:
    """A variant of a plan with a larger target or with more noise.

    If the run has a target epsilon, the target is larger by 1. If the noise was set, it is larger by 10 %.
    `noise_change` is relative, such as -0.1 for a tenth less. `epsilon` is the larger target, or what the whole plan
    costs if the noise was set. `epsilon_change` is its difference to the plan's.
    """

    noise_multiplier: float
    noise_change: float
    epsilon: float
    epsilon_change: float


@dataclass(frozen=True)
class SizePlan:
    """The plan that all clients of one size share.

    Under `client-dp` it is the server's plan, and there is no other. `spent` is the whole plan's cost for its worst-off
    unit. `signal_to_noise` is the largest ratio of one step, None if the number of parameters is unknown.
    `after_rounds` maps the number of rounds that a client took part in to its cost. Sizes that are not shown have no
    `after_rounds` and no `alternative`. `alone` is the whole plan's cost if all other clients collude, which differs
    from `spent` under noise in shares.
    """

    num_clients: int
    plan: PrivacyPlan
    spent: Spent
    signal_to_noise: float | None
    after_rounds: dict[int, Spent]
    alternative: Alternative | None
    alone: Spent


@dataclass(frozen=True)
class PlanTable:
    """The contents of the table that `bract plan` shows.

    The smallest size comes first. `num_sizes` clients' sizes are known; under `dp-sgd` the others are assumed to have
    similar sizes. `num_parameters` values carry noise, and `signal_to_noise_a_round` is the largest ratio of
    one round; both are None if unknown.
    """

    config: RunConfig
    rows: tuple[SizePlan, ...]
    num_sizes: int
    num_parameters: int | None
    signal_to_noise_a_round: float | None

    @property
    def shown(self) -> tuple[SizePlan, ...]:
        """The rows with figures for single rounds, at most `MAX_SHOWN`."""
        return tuple(row for row in self.rows if row.after_rounds)


def milestones(last: int) -> tuple[int, ...]:
    """Return the rounds 1, 2, 5, 10, 20, 50 and further to the last.

    >>> milestones(30), milestones(1)
    ((1, 2, 5, 10, 20, 30), (1,))
    """
    steps = (lead * 10**power for power in range(len(str(last))) for lead in (1, 2, 5))
    return (*(step for step in steps if step < last), last)


def every_round(last: int) -> tuple[int, ...]:
    """Return all rounds from 1 to the last."""
    return tuple(range(1, last + 1))


def make_table(
    config: RunConfig,
    sizes: Sequence[int],
    *,
    num_parameters: int | None = None,
    rounds: Callable[[int], Sequence[int]] = milestones,
    progress: ProgressFactory = no_progress,
) -> PlanTable:
    """Make a plan for every client size and compute its cost.

    `sizes` are clients' declared sizes in units, as far as they are known; `client-dp` ignores them. `num_parameters`
    values are trained; None leaves out the signal-to-noise ratios. `rounds` maps a plan's number of rounds to those
    after which epsilon is wanted, the last one included. `progress` counts the figures; the first time a figure is
    computed it takes up to a second.

    Raises:
        ConfigError: The run is not private, delta is too large for a client, or no noise meets the target.
    """
    if not config.private:
        raise ConfigError(
            "privacy.mechanism='none' adds no noise and promises nothing, so there is nothing to plan: use "
            "privacy.mechanism=dp-sgd (protects images) or client-dp (protects whole clients)"
        )
    central = config.plan(config.cohort_size) if config.mechanism.clips_clients else None
    counted = Counter(map(int, sizes)) if central is None else Counter({central.num_units: config.num_clients})
    shown = _spread(sorted(counted))
    moments = tuple(rounds(config.participations))
    advance = progress(len(counted) + len(shown) * (1 + len(moments)), "Computing epsilon")
    rows: list[SizePlan] = []
    # The largest size comes first, because a delta that is too large for any client is too large for this one.
    for size in sorted(counted, reverse=True):
        plan, wanted = central or config.plan(size), moments if size in shown else ()
        rows.append(_row(plan, counted[size], config.privacy.target_epsilon, num_parameters, wanted, advance))
    rows.reverse()
    ratio = None
    if num_parameters is not None and central is not None:
        # One step of the server is a whole round of the cohort.
        ratio = step_ratio(central, num_parameters)
        if central.noise_shares:
            # All clients' shares are in a secure sum, and the plan's noise is that of the honest ones alone.
            ratio *= math.sqrt(central.noise_shares / config.num_clients)
    elif num_parameters is not None:
        ratio = round_ratio([(row.plan, row.num_clients) for row in rows], config.cohort_size, num_parameters)
    return PlanTable(config, tuple(rows), len(sizes), num_parameters, ratio)


def _spread(sizes: Sequence[int]) -> set[int]:
    """Pick at most `MAX_SHOWN` sizes, with the smallest and the largest."""
    picked = np.linspace(0, len(sizes) - 1, min(MAX_SHOWN, len(sizes))).round().astype(int)
    return {sizes[index] for index in picked}


def _row(
    plan: PrivacyPlan,
    num_clients: int,
    target: float | None,
    num_parameters: int | None,
    moments: Sequence[int],
    advance: Callable[[int], None],
) -> SizePlan:
    spent = plan.spent()
    advance(1)
    after = {}
    for moment in moments:
        after[moment] = plan.spent(moment, closing=moment == plan.num_rounds)
        advance(1)
    alternative = _alternative(plan, target, spent) if moments else None
    advance(1 if moments else 0)
    # Shares are added to a sum over all clients, and no client's own sum has any noise that it could be compared with.
    ratio = None if num_parameters is None or plan.noise_shares else step_ratio(plan, num_parameters)
    return SizePlan(num_clients, plan, spent, ratio, after, alternative, plan.spent_alone())


def _alternative(plan: PrivacyPlan, target: float | None, spent: Spent) -> Alternative:
    if target is None:
        noisier = replace(plan, noise_multiplier=_MORE_NOISE * plan.noise_multiplier)
        epsilon = noisier.epsilon()
        return Alternative(noisier.noise_multiplier, _MORE_NOISE - 1, epsilon, epsilon - spent.pld)
    # With label counts as noisy as now. They cost little, and a run with the larger target would draw them with less.
    steps = plan.event().steps
    noise = calibrate(plan.sample_rate, steps, target + _MORE_EPSILON, plan.delta, plan.label_events())
    return Alternative(noise, noise / plan.noise_multiplier - 1, target + _MORE_EPSILON, _MORE_EPSILON)


def as_json(table: PlanTable) -> dict[str, Any]:
    """Return the table as plain JSON values."""
    config, plan = table.config, table.rows[0].plan
    return {
        "mechanism": plan.mechanism,
        "privacy_unit": plan.privacy_unit,
        "neighboring_relation": NEIGHBORING_RELATION,
        "accountant": ACCOUNTANT,
        "delta": plan.delta,
        "target_epsilon": config.privacy.target_epsilon,
        "max_grad_norm": plan.max_grad_norm,
        "num_clients": config.num_clients,
        "num_clients_of_known_size": table.num_sizes,
        "cohort_size": config.cohort_size,
        ("noised_values" if config.takes_statistics else "trained_parameters"): table.num_parameters,
        "signal_to_noise_a_round": table.signal_to_noise_a_round,
        "held_out_units": held_out(table),
        "sizes": [_row_json(row) for row in table.rows],
        "config": resolved(config),
    }


def held_out(table: PlanTable) -> dict[str, float] | None:
    """Return the noise and the cost of held-out units' counts.

    They are equal for every size. None if no counts leave.
    """
    plan = table.rows[0].plan
    if plan.counts is None:
        return None
    spent = spent_by(plan.counts_events(), delta=plan.delta)
    return {
        "counts_noise_stddev": plan.counts.noise_stddev,
        "closing_noise_stddev": plan.counts.closing_noise_stddev,
        **{
            name: noise
            for name in ("scores_noise_stddev", "calibration_noise_stddev", "subgroups_noise_stddev")
            if (noise := getattr(plan.counts, name)) is not None
        },
        "epsilon": spent.pld,
        "epsilon_rdp": spent.rdp,
    }


def _row_json(row: SizePlan) -> dict[str, Any]:
    plan = row.plan
    return {
        "num_units": plan.num_units,
        "num_clients": row.num_clients,
        **{name: getattr(plan, name) for name in _FIELDS},
        "epsilon": row.spent.pld,
        "epsilon_rdp": row.spent.rdp,
        **shares_facts(plan, row.alone),
        "signal_to_noise_a_step": row.signal_to_noise,
        "after_rounds": [
            {"num_rounds": number, "epsilon": spent.pld, "epsilon_rdp": spent.rdp}
            for number, spent in row.after_rounds.items()
        ],
        "alternative": None if row.alternative is None else asdict(row.alternative),
    }


def shares_facts(plan: PrivacyPlan, alone: Spent) -> dict[str, Any]:
    """Return what a plan's noise in shares rests on, as plain JSON values.

    `alone` is the whole plan's cost if all other clients collude. The result is empty without noise in shares.
    """
    if not plan.noise_shares:
        return {}
    return {
        "noise_shares": plan.noise_shares,
        "client_noise_stddev": plan.client_noise_stddev,
        "epsilon_alone": alone.pld if math.isfinite(alone.pld) else None,
    }


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
        noise = plan.num_units * plan.client_noise_stddev / plan.expected_batch_size
        variance += count * plan.steps_per_round * noise**2
    num_clients = sum(count for _, count in plans)
    return signal / math.sqrt(variance * num_parameters) * math.sqrt(cohort_size / num_clients)
