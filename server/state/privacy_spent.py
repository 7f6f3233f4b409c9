"""Privacy cost of a run for each client's units."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from common.config.schema import RunConfig
from common.privacy.accounting import Spent
from common.privacy.events import Event
from common.privacy.mechanisms import mechanism_named
from common.privacy.noise_error import CURRENT_SAMPLER
from common.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class ClientPrivacyCost:
    """Privacy cost of a run for the units of one client.

    `rounds` were charged, and if `closing` the closing confusion matrix too. `spent` is for the unit with the largest
    epsilon.
    """

    plan: PrivacyPlan
    rounds: int
    closing: bool
    spent: Spent

    @property
    def events(self) -> Mapping[str, Sequence[Event]]:
        """Events charged to a unit, by part of the data."""
        return mechanism_named(self.plan.mechanism).charged_events(self.plan, self.rounds, closing=self.closing)


@dataclass(frozen=True)
class RunPrivacyCost:
    """Privacy cost of a run for all clients."""

    shares: Mapping[str, ClientPrivacyCost]

    @property
    def epsilon_max(self) -> float:
        """Upper bound on the epsilon of every unit of every client."""
        return max(share.spent.pld for share in self.shares.values())

    @property
    def rdp_max(self) -> float:
        """Largest epsilon of any client by the RDP accountant."""
        return max(share.spent.rdp for share in self.shares.values())

    @property
    def example_plan(self) -> PrivacyPlan:
        """Plan of some client, equal to the others except in size and noise."""
        return next(iter(self.shares.values())).plan


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
    asked = dict.fromkeys(plans, 0)
    for cohort in cohorts:
        for name in cohort:
            asked[name] += 1
    shares = {}
    for name, plan in plans.items():
        # Stopping early may depend on the data. A bound for fewer rounds would then not hold.
        rounds = asked[name] if complete else plan.num_rounds
        shares[name] = ClientPrivacyCost(plan, rounds, plan.counts is not None, plan.spent(rounds))
    return RunPrivacyCost(shares)
