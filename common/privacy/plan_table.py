"""What a private run would cost and how much noise it would add, for each size of client, before it runs."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION, Spent, spent_by
from common.privacy.plan import PrivacyPlan
from common.privacy.signal_to_noise import round_ratio, step_ratio
from common.system.progress import ProgressFactory, no_progress

MOST_SHOWN = 5
_MORE_EPSILON = 1.0
_MORE_NOISE = 1.1


@dataclass(frozen=True)
class Alternative:
    """The same plan with one more point of epsilon; where noise was set, with 10 % more noise.

    Attributes:
        noise_multiplier: Of the alternative.
        noise_change: Relative to the plan's, such as -0.1 for a tenth less.
        epsilon: What the alternative's whole plan may cost, or does.
        epsilon_change: The same minus the plan's target, or the plan's cost.
    """

    noise_multiplier: float
    noise_change: float
    epsilon: float
    epsilon_change: float


@dataclass(frozen=True)
class SizePlan:
    """The plan of all clients of one size; under `client-dp` the one plan of the server.

    Attributes:
        num_clients: How many clients have this size.
        plan: Sampler, noise and events.
        spent: What the whole plan costs its worst-off unit.
        signal_to_noise: Of one step, see `common.privacy.signal_to_noise`; None if the number of parameters is unknown.
        after_rounds: Number of rounds taken part in -> spent by then; empty for sizes that are not shown.
        alternative: What more epsilon or more noise buys; None for sizes that are not shown.
    """

    num_clients: int
    plan: PrivacyPlan
    spent: Spent
    signal_to_noise: float | None
    after_rounds: dict[int, Spent]
    alternative: Alternative | None


@dataclass(frozen=True)
class PlanTable:
    """All that `bract plan` shows.

    Attributes:
        config: The run.
        rows: By size, smallest first.
        num_sizes: How many clients' sizes are known; under `dp-sgd` the others are taken to be like them.
        num_parameters: How many values are trained and noised; None if unknown.
        signal_to_noise_a_round: See `common.privacy.signal_to_noise`; None if the number of parameters is unknown.
    """

    config: RunConfig
    rows: tuple[SizePlan, ...]
    num_sizes: int
    num_parameters: int | None
    signal_to_noise_a_round: float | None

    @property
    def shown(self) -> tuple[SizePlan, ...]:
        """The rows with figures for single rounds: at most `MOST_SHOWN`, from smallest to largest."""
        return tuple(row for row in self.rows if row.after_rounds)


def milestones(last: int) -> tuple[int, ...]:
    """1, 2, 5, 10, 20, 50, ... and the last.

    >>> milestones(30), milestones(1)
    ((1, 2, 5, 10, 20, 30), (1,))
    """
    steps = (lead * 10**power for power in range(len(str(last))) for lead in (1, 2, 5))
    return (*(step for step in steps if step < last), last)


def every_round(last: int) -> tuple[int, ...]:
    """1, 2, ... up to the last."""
    return tuple(range(1, last + 1))


def make_table(
    config: RunConfig,
    sizes: Sequence[int],
    *,
    num_parameters: int | None = None,
    rounds: Callable[[int], Sequence[int]] = milestones,
    progress: ProgressFactory = no_progress,
) -> PlanTable:
    """Plan every size of client and price it.

    Args:
        config: A private run.
        sizes: Declared units of the clients whose sizes are known; under `client-dp` they do not matter.
        num_parameters: How many values are trained; None leaves signal and noise uncompared.
        rounds: Number of rounds of a plan -> after which of them epsilon is wanted; the last is one.
        progress: Told of each figure: on a first run they take up to a second.

    Raises:
        ConfigError: The run is not private, delta permits too much, or no noise meets the target.
    """
    if not config.private:
        raise ConfigError(
            "privacy.mechanism='none' adds no noise and promises nothing, so there is nothing to plan: use "
            "privacy.mechanism=dp-sgd (each client adds noise) or client-dp (the server does)"
        )
    counted = _counted(config, sizes)
    shown = _spread(sorted(counted))
    moments = tuple(rounds(config.participations))
    advance = progress(len(counted) + len(shown) * (1 + len(moments)), "Computing epsilon")
    rows: list[SizePlan] = []
    for size in sorted(counted, reverse=True):  # the largest first: delta is checked against it
        rows.append(_row(config, size, counted[size], num_parameters, moments if size in shown else (), advance))
    rows.reverse()
    whole = None if num_parameters is None else _round_ratio(config, rows, num_parameters)
    return PlanTable(config, tuple(rows), len(sizes), num_parameters, whole)


def _counted(config: RunConfig, sizes: Sequence[int]) -> dict[int, int]:
    """Size -> how many clients have it; under `client-dp` the one cohort of them all."""
    if config.mechanism.noise_at_server:
        return {config.cohort_size: config.num_clients}
    return dict(Counter(map(int, sizes)))


def _spread(sizes: Sequence[int]) -> set[int]:
    """At most `MOST_SHOWN` of them, the smallest and the largest among them."""
    picked = np.linspace(0, len(sizes) - 1, min(MOST_SHOWN, len(sizes))).round().astype(int)
    return {sizes[index] for index in picked}


def _row(
    config: RunConfig,
    size: int,
    num_clients: int,
    num_parameters: int | None,
    moments: Sequence[int],
    advance: Callable[[int], None],
) -> SizePlan:
    plan = config.plan(size)
    spent = plan.spent()
    advance(1)
    after = {}
    for moment in moments:
        after[moment] = plan.spent(moment, closing=moment == plan.num_rounds)
        advance(1)
    alternative = _alternative(config, plan, spent) if moments else None
    advance(1 if moments else 0)
    ratio = None if num_parameters is None else step_ratio(plan, num_parameters)
    return SizePlan(num_clients, plan, spent, ratio, after, alternative)


def _alternative(config: RunConfig, plan: PrivacyPlan, spent: Spent) -> Alternative:
    target = config.privacy.target_epsilon
    if target is None:
        other = replace(plan, noise_multiplier=_MORE_NOISE * plan.noise_multiplier)
        epsilon = other.epsilon()
        return Alternative(other.noise_multiplier, _MORE_NOISE - 1, epsilon, epsilon - spent.pld)
    constants = replace(config.public_constants, target_epsilon=target + _MORE_EPSILON)
    noise = config.mechanism.plan(constants, plan.num_units).noise_multiplier
    return Alternative(noise, noise / plan.noise_multiplier - 1, target + _MORE_EPSILON, _MORE_EPSILON)


def _round_ratio(config: RunConfig, rows: Sequence[SizePlan], num_parameters: int) -> float:
    if config.mechanism.noise_at_server:  # one step of the server is a round of the whole cohort
        return step_ratio(rows[0].plan, num_parameters)
    return round_ratio([(row.plan, row.num_clients) for row in rows], config.cohort_size, num_parameters)


def as_json(table: PlanTable) -> dict[str, Any]:
    """The table as plain values, with every round that was asked for."""
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
        "trained_parameters": table.num_parameters,
        "signal_to_noise_a_round": table.signal_to_noise_a_round,
        "held_out_units": held_out(table),
        "sizes": [_row_json(row) for row in table.rows],
        "config": resolved(config),
    }


def held_out(table: PlanTable) -> dict[str, float] | None:
    """What leaves about held-out units, alike for every size, and what it costs them; None if nothing does."""
    plan = table.rows[0].plan
    if plan.counts is None:
        return None
    spent = spent_by(plan.counts_events(), delta=plan.delta)
    return {
        "counts_noise_stddev": plan.counts.noise_stddev,
        "closing_noise_stddev": plan.counts.closing_noise_stddev,
        "epsilon": spent.pld,
        "epsilon_rdp": spent.rdp,
    }


def _row_json(row: SizePlan) -> dict[str, Any]:
    plan = row.plan
    return {
        "num_units": plan.num_units,
        "num_clients": row.num_clients,
        "noise_multiplier": plan.noise_multiplier,
        "noise_stddev": plan.noise_stddev,
        "sample_rate": plan.sample_rate,
        "expected_batch_size": plan.expected_batch_size,
        "steps_per_round": plan.steps_per_round,
        "num_rounds": plan.num_rounds,
        "epsilon": row.spent.pld,
        "epsilon_rdp": row.spent.rdp,
        "signal_to_noise_a_step": row.signal_to_noise,
        "after_rounds": [
            {"num_rounds": number, "epsilon": spent.pld, "epsilon_rdp": spent.rdp}
            for number, spent in row.after_rounds.items()
        ],
        "alternative": None if row.alternative is None else asdict(row.alternative),
    }
