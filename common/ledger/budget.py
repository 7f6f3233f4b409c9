"""What has been spent on each unit, from the events of every run its images took part in.

Budgets belong to images, never to the name of a folder, a client or a run. A plan
counts in full from its first reserved round on: stopping early may depend on what
the data showed, and a bound for fewer rounds would then not hold.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from common.config.schema import Unit
from common.ledger.image_index import Members
from common.privacy.accounting import NOTHING, Spent, spent_by
from common.privacy.events import Event

Parts = Mapping[str, Members]


@dataclass(frozen=True)
class Charge:
    """What one run has been allowed to do, or has done, to some images.

    Attributes:
        unit: What the run protected.
        parts: Part of the data -> its images; numbers with links followed.
        planned: Part -> events of the whole plan.
        released: Part -> events of what was reserved so far.
        closed: Nothing more can be reserved.
    """

    unit: Unit
    parts: Parts
    planned: Mapping[str, Sequence[Event]]
    released: Mapping[str, Sequence[Event]]
    closed: bool

    def filtered(self) -> Mapping[str, Sequence[Event]]:
        """What counts for a filter: what was released, and all that still may be."""
        return self.released if self.closed else self.planned


@dataclass(frozen=True)
class Worst:
    """The unit that is worst off.

    Attributes:
        spent: Both bounds.
        group_bound: Whether images were charged one by one that are now protected as a group.
    """

    spent: Spent
    group_bound: bool


# (number of the charge, part, how many of that run's units one unit of ours amounts to)
_Past = tuple[tuple[int, str, int], ...]


def spent_with(new: Charge, past: Sequence[Charge], *, delta: float) -> Worst:
    """What the worst-off unit would have spent if a plan were carried out, by the history of its images.

    The PLD figure takes every plan in full; the RDP figure is a filter, valid also where a
    plan was chosen after the results of earlier ones were seen.

    Args:
        new: The plan in question.
        past: What has been charged before.
        delta: In (0, 1).

    Raises:
        ConfigError: Epsilon is beyond what means anything.
        PrivacyError: The accountants disagree.
    """
    worst, grouped = NOTHING, False
    for part, members in new.parts.items():
        for history in _histories(members, past):
            own = list(new.planned[part])
            official = own + [event for at, other, size in history for event in _grown(past[at].planned[other], size)]
            running = own + [event for at, other, size in history for event in _grown(past[at].filtered()[other], size)]
            pld, rdp = (spent_by(events, delta=delta) for events in (official, running))
            worst = Spent(max(worst.pld, pld.pld), max(worst.rdp, rdp.rdp))
            grouped = grouped or (new.unit == "group" and any(size > 1 for *_, size in history))
    return Worst(worst, grouped)


def _grown(events: Iterable[Event], size: int) -> list[Event]:
    return [replace(event, group_size=event.group_size * size) for event in events]


def _histories(members: Members, past: Sequence[Charge]) -> set[_Past]:
    """The distinct histories that units of a part have; most units share one."""
    columns: list[tuple[int, str]] = []
    sizes: list[np.ndarray] = []
    units, member = np.unique(members.units, return_inverse=True)
    for at, charge in enumerate(past):
        for part, charged in charge.parts.items():
            found = _sizes(members.images, member, len(units), charged, charge.unit)
            if found.any():
                columns.append((at, part))
                sizes.append(found)
    if not sizes:
        return {()} if len(units) else set()
    rows = np.unique(np.stack(sizes, axis=1), axis=0)
    return {tuple((*column, int(size)) for column, size in zip(columns, row, strict=True) if size) for row in rows}


def _sizes(images: np.ndarray, member: np.ndarray, num_units: int, charged: Members, charged_unit: Unit) -> np.ndarray:
    """(units,) int64: how many of a run's units each of ours amounts to, in what it can move a clipped sum by."""
    if charged_unit == "image":
        # A copy is no second image. But what that run took for two images, and a link has made one, counted twice.
        own = np.unique(np.stack([charged.images, charged.units]), axis=1)[0]
        known, times = np.unique(own, return_counts=True)
        present = np.isin(images, known)
        pairs = np.unique(np.stack([member[present], images[present]]), axis=1)
        weights = times[np.searchsorted(known, pairs[1])]
        return np.bincount(pairs[0], weights=weights, minlength=num_units).astype(np.int64)
    return _sizes_of_groups(images, member, num_units, charged)


def _sizes_of_groups(images: np.ndarray, member: np.ndarray, num_units: int, charged: Members) -> np.ndarray:
    """A whole group counts once; a part of one twice, because the rest of it stays and its sum turns around."""
    groups: dict[int, set[int]] = {}
    group_of: dict[int, set[int]] = {}
    for image, group in zip(charged.images.tolist(), charged.units.tolist(), strict=True):
        groups.setdefault(group, set()).add(image)
        group_of.setdefault(image, set()).add(group)
    held: dict[int, set[int]] = {}
    for image, mine in zip(images.tolist(), member.tolist(), strict=True):
        held.setdefault(mine, set()).add(image)
    sizes = Counter(
        {
            mine: sum(
                1 if groups[group] <= own else 2 for group in {g for image in own for g in group_of.get(image, ())}
            )
            for mine, own in held.items()
        }
    )
    return np.array([sizes[mine] for mine in range(num_units)], dtype=np.int64)
