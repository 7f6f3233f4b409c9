"""The epsilon that a policy still allows, read from the ledger.

Reading neither changes the ledger nor delays a running client.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from common.ledger.audit.costs import worst_image
from common.ledger.audit.read_only import open_read_only
from common.ledger.registrations import charges_in
from common.privacy.policy import Policy

# Share of max-epsilon. If less than this is left, no further plan is worth a run.
_MIN_USEFUL_SHARE = 0.01


@dataclass(frozen=True)
class Budget:
    """Epsilon spent by the image that has spent the most.

    Each plan that was begun counts in full. `spent` is at the policy's delta and by its accountant. `images` is how
    many images were ever charged.
    """

    spent: float
    limit: float
    images: int

    @property
    def left(self) -> float:
        """Epsilon left for a further plan, roughly.

        Epsilons do not add up, so the exact figure depends on the plan.
        """
        return max(0.0, self.limit - self.spent)

    @property
    def nothing_left(self) -> bool:
        """True if no further plan is worth a run."""
        return not (math.isinf(self.limit) or self.left > _MIN_USEFUL_SHARE * self.limit)


def budget_of(file: Path, policy: Policy) -> Budget:
    """Return what a ledger has spent by a policy's delta and accountant.

    Raises:
        LedgerError: The ledger cannot be read.
        PrivacyError: An entry does not hold a privacy plan, or the accountants disagree.
    """
    with open_read_only(file) as ledger:
        worst = worst_image(charges_in(ledger), delta=policy.delta)
    return Budget(policy.capped_figure(worst.spent), policy.max_epsilon, worst.images)
