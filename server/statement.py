"""What a run states about privacy: events, the bound they imply, and what is not protected."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from common.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION
from common.privacy.plan import PrivacyPlan, plan_for
from common.sections import RunConfig

NOT_PROTECTED = (
    "how many images each client declares, and so its share of the average",
    "which clients took part in which round",
    "the list of class names",
    "the time each client took",
    "images that another client also holds: epsilon is per client",
    "rounds that a server asks for again after a client's process restarted: there is no ledger yet",
    "anything, against a server that changes the code clients run: clients trust the server's code",
)
VERSIONED = ("bract", "flwr", "torch", "timm", "opacus", "dp-accounting", "numpy")


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    return {name: version(name) for name in VERSIONED}


@dataclass(frozen=True)
class Spending:
    """Epsilon of each client, from the rounds it was asked to take part in.

    Attributes:
        plans: Plan by client name.
        rounds: Rounds charged to each client.
        epsilons: Upper bound by client name.
    """

    plans: Mapping[str, PrivacyPlan]
    rounds: Mapping[str, int]
    epsilons: Mapping[str, float]

    @property
    def epsilon_max(self) -> float:
        """Largest epsilon of any client; it bounds every image that one client holds."""
        return max(self.epsilons.values())


def account(
    config: RunConfig, num_units: Mapping[str, int], cohorts: Sequence[Sequence[str]], *, complete: bool
) -> Spending:
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
    plans = {name: plan_for(config, units) for name, units in num_units.items()}
    asked = {name: sum(name in cohort for cohort in map(set, cohorts)) for name in plans}
    rounds = {name: asked[name] if complete else plans[name].num_rounds for name in plans}
    return Spending(plans, rounds, {name: plan.epsilon(rounds[name]) for name, plan in plans.items()})


def privacy_statement(config: RunConfig, spending: Spending | None, *, status: str) -> dict[str, Any]:
    """The content of `privacy.json`.

    Args:
        config: The run.
        spending: None if no mechanism was on.
        status: `complete` or `interrupted`.
    """
    if spending is None:
        return {
            "private": False,
            "statement": "NOT PRIVATE: updates and exact counts left every client",
            "mechanism": config.privacy.mechanism,
            "status": status,
            "versions": versions(),
        }
    clients = {
        name: {
            "epsilon": spending.epsilons[name],
            "rounds": spending.rounds[name],
            "num_units": plan.num_units,
            "event": {
                "sample_rate": plan.sample_rate,
                "noise_multiplier": plan.noise_multiplier,
                "steps": plan.event(spending.rounds[name]).steps,
            },
        }
        for name, plan in spending.plans.items()
    }
    return {
        "private": True,
        "statement": (
            f"each image: epsilon <= {spending.epsilon_max:.4f} at delta {config.privacy.delta:g}, "
            "noise added at its own client"
        ),
        "mechanism": config.privacy.mechanism,
        "privacy_unit": "image",
        "neighboring_relation": NEIGHBORING_RELATION,
        "sampling_method": "Poisson, public rate",
        "accountant": ACCOUNTANT,
        "delta": config.privacy.delta,
        "epsilon_max": spending.epsilon_max,
        "max_grad_norm": config.privacy.max_grad_norm,
        "charged": "rounds sent" if status == "complete" else "the whole plan, because the run stopped early",
        "ledger": "none yet",
        "floating_point": "noise on a grid, counted in the multiplier: a mitigation, not a proof",
        "status": status,
        "not_protected": list(NOT_PROTECTED),
        "clients": clients,
        "versions": versions(),
    }
