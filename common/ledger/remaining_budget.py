"""The epsilon that a policy still allows, read from the ledger.

Reading neither changes the ledger nor delays a running client.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.config.sections import Unit
from common.ledger.audit.costs import price_histories
from common.ledger.audit.read_only import open_read_only
from common.ledger.budget import Charge, price_units
from common.ledger.image_index import Members
from common.ledger.registrations import charges_in
from common.privacy.accounting import Spent
from common.privacy.mechanisms.registry import MECHANISMS
from common.privacy.policy import Policy

# Share of max-epsilon. If less than this is left, no further plan is worth a run.
_MIN_USEFUL_SHARE = 0.01
# Share of max-epsilon. An image with less than this left is near the cap.
NEARLY_SPENT = 0.25
# Cost of a history, the cost if all other clients colluded, and how many units share it.
_Priced = list[tuple[Spent, Spent, int]]


@dataclass(frozen=True)
class UnitBudget:
    """Epsilon spent by the units of one kind that runs have protected.

    The figures are those that a further run for such units would start from. `units` were charged, `near` of them have
    less than a quarter of the cap left, and of these `used_up` have nothing left that is worth a run.
    """

    unit: Unit
    spent: float
    units: int
    near: int
    used_up: int

    def left(self, limit: float) -> float:
        """Return the epsilon left for a further plan, roughly."""
        return max(0.0, limit - self.spent)

    @property
    def whose(self) -> str:
        """Words for the unit whose epsilon `spent` is."""
        return f"the {'image' if self.unit == 'image' else 'group of images, or the whole client,'} that has spent most"

    def nothing_left(self, limit: float) -> bool:
        """Return whether no further plan for such units is worth a run."""
        return _is_below(self.spent, limit, _MIN_USEFUL_SHARE)


@dataclass(frozen=True)
class Budget:
    """Highest epsilon from which a plan that the policy allows would start.

    Each plan that was begun counts in full. `spent` is at the policy's delta and by its accountant. It is that of a row
    of `by_unit`, or of single images that were protected in groups or as a whole client only. `images` is how many
    images were ever charged. `alone` is what was spent if all other clients of its secure sums colluded. Unless the
    policy accepts that some are honest, it is what `spent` is too.
    """

    spent: float
    limit: float
    images: int
    alone: float
    by_unit: tuple[UnitBudget, ...] = ()

    @property
    def left(self) -> float:
        """Epsilon left for a further plan, roughly.

        Epsilons do not add up, so the exact figure depends on the plan.
        """
        return max(0.0, self.limit - self.spent)

    def as_json(self) -> dict[str, Any]:
        """Return the budget as plain values, with None for more than can be computed."""
        values = asdict(self) | {"left": self.left}
        # Without noise in shares there is one figure.
        shown = {name: value for name, value in values.items() if name != "alone" or self.alone != self.spent}
        return {name: value if name != "alone" or math.isfinite(value) else None for name, value in shown.items()}

    @property
    def leading(self) -> UnitBudget | None:
        """The row that `spent` is of.

        None stands for single images that no run has protected as such.
        """
        return next((row for row in self.by_unit if row.spent == self.spent), None)

    @property
    def whose(self) -> str:
        """Words for the unit whose epsilon `spent` is."""
        return "where a plan by single images would start" if self.leading is None else self.leading.whose

    @property
    def others(self) -> tuple[UnitBudget, ...]:
        """The rows that `spent` is not of."""
        return tuple(row for row in self.by_unit if row is not self.leading)

    @property
    def nothing_left(self) -> bool:
        """True if some allowed plan is not worth a run any more."""
        return _is_below(self.spent, self.limit, _MIN_USEFUL_SHARE)


def budget_of(file: Path, policy: Policy) -> Budget:
    """Return what a ledger has spent by a policy's delta and accountant.

    Raises:
        LedgerError: The ledger cannot be read.
        PrivacyError: An entry does not hold a privacy plan, or the accountants disagree.
    """
    with open_read_only(file) as ledger:
        charges = charges_in(ledger)
    histories = price_histories(charges, delta=policy.delta)
    every: _Priced = [(history.spent, history.alone, history.images) for history in histories]
    images = [priced for priced, history in zip(every, histories, strict=True) if "image" in history.units]
    groups = _price_groups(charges, policy.delta)
    counted = _allowed(every, groups, charges, policy)
    return Budget(
        max((policy.official_figure(spent, alone) for spent, alone, _ in counted), default=0.0),
        policy.max_epsilon,
        sum(history.images for history in histories),
        max((policy.capped_figure(alone) for _, alone, _ in counted), default=0.0),
        (
            *((_of_unit("image", images, policy),) if images else ()),
            *((_of_unit("group", groups, policy),) if groups else ()),
        ),
    )


def _allowed(every: _Priced, groups: _Priced, charges: Sequence[Charge], policy: Policy) -> _Priced:
    """Return the costs from which a plan that the policy allows may start."""
    named = [MECHANISMS[name] for name in policy.mechanisms]
    units = set(policy.units) if any(not mechanism.clips_clients for mechanism in named) else set()
    protected = {charge.unit for charge in charges if not charge.whole_client}
    counted: _Priced = []
    # One image of a group may move a sum twice as far as the whole group. The guard charges that to a plan by images,
    # and to groups that are smaller, so the figure of a whole client alone would promise too much.
    if "image" in units or units - protected:
        counted += every
    if "group" in units or any(mechanism.clips_clients for mechanism in named):
        counted += groups
    return counted or every + groups


def _price_groups(charges: Sequence[Charge], delta: float) -> _Priced:
    """Return what each group of images that a run has protected has spent."""
    # By content, because each data set numbers its groups anew.
    groups: dict[frozenset[int], None] = {}
    clients: dict[frozenset[int], None] = {}
    for charge in charges:
        for members in charge.parts.values() if charge.unit == "group" else ():
            # A client that is protected as a whole is one unit, whatever its images were in each run.
            if charge.whole_client:
                clients[frozenset(members.images.tolist())] = None
                continue
            images_of: dict[int, set[int]] = {}
            for image, unit in zip(members.images.tolist(), members.units.tolist(), strict=True):
                images_of.setdefault(unit, set()).add(image)
            groups |= dict.fromkeys(map(frozenset, images_of.values()))
    pairs = [(image, number) for number, group in enumerate(groups) for image in sorted(group)]
    images, units = np.array(pairs, dtype=np.int64).reshape(-1, 2).T
    priced = price_units(Members(images, units), charges, delta=delta) if pairs else []
    return priced + (_price_client(clients, charges, delta) if clients else [])


def _price_client(holdings: Iterable[frozenset[int]], charges: Sequence[Charge], delta: float) -> _Priced:
    """Return the most that the client as a whole has spent.

    It is one unit over all images that it ever had, and has spent something though it had no image.
    """
    costs = []
    # Fewer images may cost more: they are not all of an earlier run's, and its group then counts twice.
    for holding in {*holdings, frozenset[int]().union(*holdings)}:
        images = np.array(sorted(holding), dtype=np.int64)
        costs += price_units(Members(images, np.zeros_like(images)), charges, delta=delta, whole_client=True)
    return [(_most(spent for spent, *_ in costs), _most(alone for _, alone, _ in costs), 1)]


def _most(costs: Iterable[Spent]) -> Spent:
    pld, rdp = zip(*((cost.pld, cost.rdp) for cost in costs), strict=True)
    return Spent(max(pld), max(rdp))


def _of_unit(unit: Unit, priced: _Priced, policy: Policy) -> UnitBudget:
    spent = [(policy.official_figure(cost, alone), units) for cost, alone, units in priced]
    cap = policy.max_epsilon
    return UnitBudget(
        unit,
        max((epsilon for epsilon, _ in spent), default=0.0),
        sum(units for _, units in spent),
        sum(units for epsilon, units in spent if _is_below(epsilon, cap, NEARLY_SPENT)),
        sum(units for epsilon, units in spent if _is_below(epsilon, cap, _MIN_USEFUL_SHARE)),
    )


def _is_below(spent: float, limit: float, share: float) -> bool:
    """Return whether less than a share of a cap is left.

    It never is without a cap.
    """
    return not (math.isinf(limit) or max(0.0, limit - spent) > share * limit)
