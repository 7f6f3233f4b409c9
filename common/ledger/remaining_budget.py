"""The epsilon that a policy still allows, read from the ledger.

Reading neither changes the ledger nor delays a running client.
"""

import math
from dataclasses import asdict, dataclass
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
    many images were ever charged. `alone` is what was spent if all other clients of its secure sums colluded. Unless
    the policy accepts that some are honest, it is what `spent` is too.
    """

    spent: float
    limit: float
    images: int
    alone: float

    @property
    def left(self) -> float:
        """Epsilon left for a further plan, roughly.

        Epsilons do not add up, so the exact figure depends on the plan.
        """
        return max(0.0, self.limit - self.spent)

    def as_json(self) -> dict[str, float | int | None]:
        """Return the budget as plain values, with None for more than can be computed."""
        values = asdict(self) | {"left": self.left}
        # Without noise in shares there is one figure.
        shown = {name: value for name, value in values.items() if name != "alone" or self.alone != self.spent}
        return {name: value if name != "alone" or math.isfinite(value) else None for name, value in shown.items()}

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
    spent, alone = policy.official_figure(worst.spent, worst.alone), policy.capped_figure(worst.alone)
    return Budget(spent, policy.max_epsilon, worst.images, alone)
