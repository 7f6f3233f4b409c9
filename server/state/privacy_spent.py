"""Privacy cost of a run for each client's units."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain
from typing import Any

from common.config.schema import RunConfig
from common.privacy.accounting import Spent, rdp_epsilon, spent_alone, spent_by
from common.privacy.events import Event, merged
from common.privacy.mechanisms.registry import mechanism_named
from common.privacy.noise_error import CURRENT_SAMPLER
from common.privacy.plan import PrivacyPlan

# Names of the parts of a run's cost in its statement.
PARTS = ("trained", "held_out", "held_out_rounds", "held_out_closing")
LABELS_PART = "trained_labels"
# Fields of a plan that its events do not depend on.
_NOT_IN_EVENTS = ("num_units", "learning_rate")
LABELS_IN_WORDS = (
    "balanced, by each client's label counts, which it does not send: one vote a unit, exact discrete Gaussian noise, "
    "charged to trained units"
)


@dataclass(frozen=True)
class ClientPrivacyCost:
    """Privacy cost of a run for the units of one client.

    `rounds` were charged, `counted` of them with a pair of counts, and if `closing` the closing confusion matrix too.
    `spent` is for the unit with the largest epsilon.
    """

    plan: PrivacyPlan
    rounds: int
    counted: int
    closing: bool
    spent: Spent

    @property
    def events(self) -> Mapping[str, Sequence[Event]]:
        """Events charged to a unit, by part of the data."""
        mechanism = mechanism_named(self.plan.mechanism)
        return mechanism.charged_events(self.plan, self.rounds, self.counted, closing=self.closing)

    @property
    def alone(self) -> Spent:
        """Bounds if all other clients colluded.

        Without noise in shares they are those of `spent`.
        """
        costs = [spent_alone(events, delta=self.plan.delta) for events in self.events.values()]
        return Spent(max(cost.pld for cost in costs), max(cost.rdp for cost in costs))


@dataclass(frozen=True)
class RunPrivacyCost:
    """Privacy cost of a run for all clients."""

    shares: Mapping[str, ClientPrivacyCost]

    # A run asks for all these figures after each round.
    @cached_property
    def epsilon_max(self) -> float:
        """Upper bound on the epsilon of every unit of every client."""
        return max(share.spent.pld for share in self.shares.values())

    @cached_property
    def rdp_max(self) -> float:
        """Largest epsilon of any client by the RDP accountant."""
        return max(share.spent.rdp for share in self.shares.values())

    @cached_property
    def alone_max(self) -> float:
        """Largest epsilon of any client if all others colluded, infinite for no protection."""
        return max(share.alone.pld for share in self.distinct)

    @cached_property
    def distinct(self) -> Sequence[ClientPrivacyCost]:
        """Clients of all distinct histories, one of each in the order of `shares`.

        The other clients are charged the same events as one of these.
        """
        found: dict[tuple[Any, ...], ClientPrivacyCost] = {}
        for share in self.shares.values():
            found.setdefault(_history_of(share.plan, share.rounds, share.counted, share.closing), share)
        return tuple(found.values())

    def parts(self, *, fresh: bool = False) -> dict[str, float]:
        """Return the largest epsilon of trained and of held-out units.

        For held-out units the rounds alone and the closing matrix alone are given too, and for trained units the
        label counts alone. These do not add up to the total. The result is empty where no counts are charged. `fresh`
        is as in `spent_by`.
        """
        return self._computed_parts(fresh=True) if fresh else dict(self._known_parts)

    @cached_property
    def _known_parts(self) -> dict[str, float]:
        return self._computed_parts(fresh=False)

    def _computed_parts(self, *, fresh: bool) -> dict[str, float]:
        found: dict[str, list[float]] = {}
        for share in self.distinct:
            for name, events in _parts_of(share).items():
                found.setdefault(name, []).append(spent_by(events, delta=share.plan.delta, fresh=fresh).pld)
        return {name: max(values) for name, values in found.items()}

    @property
    def example_plan(self) -> PrivacyPlan:
        """Plan of some client, equal to the others except in size and noise."""
        return next(iter(self.shares.values())).plan


def _parts_of(share: ClientPrivacyCost) -> dict[str, Sequence[Event]]:
    """Return the events behind each figure of `RunPrivacyCost.parts`, empty where no counts are charged."""
    trained, labels = share.events["training"], share.plan.label_events()
    held_out = share.events.get("evaluation", ())
    parts: dict[str, Sequence[Event]] = {}
    if share.plan.counts is not None:
        parts |= zip(PARTS, (trained, held_out, held_out[:1], held_out[1:]), strict=True)
    if labels:
        parts |= {PARTS[0]: trained, LABELS_PART: labels if share.rounds else ()}
    return parts


def account(
    config: RunConfig,
    num_units: Mapping[str, int],
    cohorts: Sequence[Sequence[str]],
    *,
    complete: bool,
    sampler: int = CURRENT_SAMPLER,
) -> RunPrivacyCost:
    """Return the privacy cost of a run for every client.

    A complete run is charged the rounds that were sent, any other its whole plan. `complete` says whether the run went
    to its planned end, `sampler` which noise sampler it began with.

    Raises:
        ConfigError: A client admits no plan.
        PrivacyError: The accountants disagree.
    """
    plans = {
        name: replace(plan, sampler=sampler)
        for name, plan in config.mechanism.plans(config.public_constants, num_units).items()
    }
    asked = rounds_of(plans, cohorts)
    shares, spent = {}, dict[tuple[Any, ...], Spent]()
    for name, plan in plans.items():
        # Stopping early may depend on the data. A bound for fewer rounds would then not hold.
        rounds, counted = charged_rounds(plan, asked[name] if complete else None)
        history = _history_of(plan, rounds, counted, plan.counts is not None)
        if history not in spent:
            spent[history] = plan.spent(rounds, counted)
        shares[name] = ClientPrivacyCost(plan, rounds, counted, plan.counts is not None, spent[history])
    return RunPrivacyCost(shares)


def _history_of(plan: PrivacyPlan, *charged: int) -> tuple[Any, ...]:
    """Return everything that the events on a client's units follow from.

    Clients of different sizes often share it. So each figure is computed once for each history, and not for each of
    many thousand clients.
    """
    return (*(value for name, value in vars(plan).items() if name not in _NOT_IN_EVENTS), *charged)


def epsilon_so_far(whole: RunPrivacyCost, cohorts: Sequence[Sequence[str]]) -> float:
    """Return a bound on what some cohorts' rounds have cost any unit.

    It is the RDP bound, which is quick, and never above the PLD bound of the whole plan. It holds for a run that goes
    on as planned. One that stops early by its results has cost the whole plan.
    """
    histories: dict[tuple[Any, ...], float] = {}
    # Clients that were not asked yet have cost nothing, and are most of a large population.
    for name, numbers in rounds_of(chain.from_iterable(cohorts), cohorts).items():
        plan = whole.shares[name].plan
        rounds, counted = charged_rounds(plan, numbers)
        key = _history_of(plan, rounds, counted)
        if key not in histories:
            parts = mechanism_named(plan.mechanism).charged_events(plan, rounds, counted, closing=False)
            histories[key] = max(rdp_epsilon(merged(events), plan.delta) for events in parts.values() if merged(events))
    return min(whole.epsilon_max, max(histories.values(), default=0.0))


def rounds_of(names: Iterable[str], cohorts: Sequence[Sequence[str]]) -> dict[str, list[int]]:
    """Return the numbers of the rounds that ask each client, from 1."""
    asked: dict[str, list[int]] = {name: [] for name in names}
    for number, cohort in enumerate(cohorts, 1):
        for name in cohort:
            asked[name].append(number)
    return asked


def charged_rounds(plan: PrivacyPlan, asked: Sequence[int] | None) -> tuple[int, int]:
    """Return the numbers of charged and of counted rounds.

    `asked` are the numbers of the rounds that asked the client; None charges the whole plan.
    """
    if asked is None:
        return plan.num_rounds, 0 if plan.counts is None else plan.counts.num_rounds
    return len(asked), plan.num_counted(asked)
