"""What a run costs each client's units, from its public constants and the rounds that were asked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.config.schema import RunConfig
from common.privacy.accounting import Spent
from common.privacy.events import Event
from common.privacy.mechanisms import mechanism_named
from common.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class ClientPrivacyCost:
    """What one client's units are charged.

    Attributes:
        plan: The whole plan.
        rounds: Rounds charged.
        closing: Whether the closing matrix is charged.
        spent: Both bounds for the unit that is worst off.
    """

    plan: PrivacyPlan
    rounds: int
    closing: bool
    spent: Spent

    @property
    def events(self) -> Mapping[str, Sequence[Event]]:
        """Part of the data -> what is charged to a unit of it."""
        return mechanism_named(self.plan.mechanism).charged_events(self.plan, self.rounds, closing=self.closing)


@dataclass(frozen=True)
class RunPrivacyCost:
    """Shares by client name.

    Attributes:
        shares: One a client.
    """

    shares: Mapping[str, ClientPrivacyCost]

    @property
    def epsilon_max(self) -> float:
        """Largest epsilon of any client; it bounds every unit that one client holds."""
        return max(share.spent.pld for share in self.shares.values())

    @property
    def rdp_max(self) -> float:
        """The same by the RDP accountant."""
        return max(share.spent.rdp for share in self.shares.values())

    @property
    def example_plan(self) -> PrivacyPlan:
        """One of the plans: those of a run differ in sizes and noise, not in kind."""
        return next(iter(self.shares.values())).plan


def account(
    config: RunConfig, num_units: Mapping[str, int], cohorts: Sequence[Sequence[str]], *, complete: bool
) -> RunPrivacyCost:
    """Charge every round that was sent; charge the whole plan if the run stopped early.

    Stopping early may depend on what the data showed, and a bound for fewer
    rounds would then not hold.

    Args:
        config: A private run.
        num_units: Declared sizes by client name.
        cohorts: Names asked in each round.
        complete: Whether the run went to its planned end.

    Raises:
        ConfigError: A client admits no plan.
        PrivacyError: The accountants disagree.
    """
    plans = config.mechanism.plans(config.public_constants, num_units)
    asked = dict.fromkeys(plans, 0)
    for cohort in cohorts:
        for name in cohort:
            asked[name] += 1
    shares = {}
    for name, plan in plans.items():
        rounds = asked[name] if complete else plan.num_rounds
        shares[name] = ClientPrivacyCost(plan, rounds, plan.counts is not None, plan.spent(rounds))
    return RunPrivacyCost(shares)
