"""What the policy leaves of the budget, from the ledger: read only, and never in the way of a running client."""

import math
from dataclasses import dataclass
from pathlib import Path

from common.ledger.audit.costs import worst_image
from common.ledger.audit.read_only import open_read_only
from common.ledger.registrations import charges_in
from common.privacy.policy import Policy

_LEAST_USEFUL = 0.01  # share of max-epsilon: with less than that left no plan is worth a run


@dataclass(frozen=True)
class Budget:
    """What the image that has spent most has spent, every plan that was begun in full.

    Attributes:
        spent: Epsilon at the policy's delta, by the policy's accountant.
        limit: The policy's max-epsilon.
        images: How many images were ever charged.
    """

    spent: float
    limit: float
    images: int

    @property
    def left(self) -> float:
        """Room for a further plan, roughly: epsilons do not add up."""
        return max(0.0, self.limit - self.spent)

    @property
    def nothing_left(self) -> bool:
        """Whether no further plan is worth a run."""
        return not (math.isinf(self.limit) or self.left > _LEAST_USEFUL * self.limit)


def budget_of(file: Path, policy: Policy) -> Budget:
    """What is left under a policy.

    Args:
        file: The ledger.
        policy: Its delta, accountant and cap count.

    Raises:
        LedgerError: The ledger cannot be read.
        PrivacyError: An entry holds no plan, or the accountants disagree.
    """
    with open_read_only(file) as ledger:
        worst = worst_image(charges_in(ledger), delta=policy.delta)
    spent = worst.spent.rdp if policy.accountant == "rdp" else worst.spent.pld
    return Budget(spent, policy.max_epsilon, worst.images)
