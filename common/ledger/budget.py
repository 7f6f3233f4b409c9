"""Privacy spent on each unit, computed from the events of all earlier runs.

A budget belongs to an image, not to the name of a folder, a client or a run. A plan counts in full as soon as its first
round is reserved. Stopping early may depend on what the data showed, and a bound for fewer rounds would then not hold.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.config.sections import Unit
from common.errors import ConfigError
from common.ledger.image_index import Members
from common.privacy.accounting import NOTHING, Spent, spent_alone, spent_by
from common.privacy.events import Event, events_of_group

Parts = Mapping[str, Members]


@dataclass(frozen=True)
class Charge:
    """The planned and the released events of one run on its images.

    Each mapping goes from a part of the data (`training` or `evaluation`) to its images, with links followed, or to the
    events on them. `planned` is the whole plan. `released` is what was reserved so far. A closed run can reserve
    nothing more. `whole_client` says whether the plan protects the client as a whole.
    """

    unit: Unit
    parts: Parts
    planned: Mapping[str, Sequence[Event]]
    released: Mapping[str, Sequence[Event]]
    closed: bool
    whole_client: bool = False

    def filtered(self) -> Mapping[str, Sequence[Event]]:
        """Return the events that count for a privacy filter.

        A closed run counts what it released. An open run counts its whole plan, which it may still release.
        """
        return self.released if self.closed else self.planned


@dataclass(frozen=True)
class WorstUnit:
    """The unit that would have spent the most.

    `alone` is what it would have spent if all other clients of its secure sums colluded. `group_bound` says whether a
    group bound was used, because earlier runs charged the images of a group one by one.
    """

    spent: Spent
    alone: Spent
    group_bound: bool


# Index of the charge, part of the data, and the unit's group size under that charge.
_History = tuple[tuple[int, str, int], ...]


def spent_with(new: Charge, past: Sequence[Charge], *, delta: float) -> WorstUnit:
    """Return what the worst-off unit would have spent after a new plan.

    The PLD figure counts every plan in full. The RDP figure is a filter. It also holds where a plan was chosen after
    the results of earlier plans were seen.

    Raises:
        ConfigError: Epsilon is above `MAX_EPSILON`, so it promises nothing.
        PrivacyError: The accountants disagree.
    """
    worst, alone, grouped = NOTHING, NOTHING, False
    for part, members in new.parts.items():
        for history in _histories(members, past, whole_client=new.whole_client):
            planned, filtered = list(new.planned[part]), list(new.planned[part])
            for index, charged_part, size in history:
                planned += events_of_group(past[index].planned[charged_part], size)
                filtered += events_of_group(past[index].filtered()[charged_part], size)
            pld, rdp = (spent_by(events, delta=delta) for events in (planned, filtered))
            worst = Spent(max(worst.pld, pld.pld), max(worst.rdp, rdp.rdp))
            # Over the whole history too: a colluding client may subtract its shares from the sums of all runs.
            pld, rdp = (spent_alone(events, delta=delta) for events in (planned, filtered))
            alone = Spent(max(alone.pld, pld.pld), max(alone.rdp, rdp.rdp))
            grouped = grouped or (new.unit == "group" and any(size > 1 for *_, size in history))
    return WorstUnit(worst, alone, grouped)


def price_units(
    members: Members, past: Sequence[Charge], *, delta: float, whole_client: bool = False
) -> list[tuple[Spent, Spent, int]]:
    """Return two costs of each distinct history with its number of units.

    The second cost holds if all other clients of its secure sums colluded. These are what `spent_with` would add a
    further plan to. An epsilon that promises nothing is infinite.

    Raises:
        PrivacyError: The accountants disagree.
    """
    priced = []
    for history, units in _histories(members, past, whole_client=whole_client).items():
        planned = [event for at, part, size in history for event in events_of_group(past[at].planned[part], size)]
        filtered = [event for at, part, size in history for event in events_of_group(past[at].filtered()[part], size)]
        try:
            spent = Spent(spent_by(planned, delta=delta).pld, spent_by(filtered, delta=delta).rdp)
        except ConfigError:
            spent = Spent(math.inf, math.inf)
        alone = Spent(spent_alone(planned, delta=delta).pld, spent_alone(filtered, delta=delta).rdp)
        priced.append((spent, alone, units))
    return priced


def _histories(members: Members, past: Sequence[Charge], *, whole_client: bool = False) -> dict[_History, int]:
    """Return the distinct histories of a part's units, with how many units share each.

    A whole client is one unit, also without images.
    """
    columns: list[tuple[int, str]] = []
    sizes: list[np.ndarray] = []
    units, unit_index = np.unique(members.units, return_inverse=True)
    num_units = max(len(units), int(whole_client))
    for index, charge in enumerate(past):
        for part, charged in charge.parts.items():
            group_sizes = _group_sizes(members.images, unit_index, num_units, charged, charge.unit)
            if whole_client and charge.whole_client:
                # The client stays the same unit when its images change. A fresh budget would be no bound for it.
                group_sizes = np.maximum(group_sizes, 1)
            if group_sizes.any():
                columns.append((index, part))
                sizes.append(group_sizes)
    if not sizes:
        # Also for a part without units: whether a plan is above the cap must not depend on the images.
        return {(): len(units)}
    rows, counts = np.unique(np.stack(sizes, axis=1), axis=0, return_counts=True)
    return {
        tuple((*column, int(size)) for column, size in zip(columns, row, strict=True) if size): int(count)
        for row, count in zip(rows, counts, strict=True)
    }


def _group_sizes(
    images: np.ndarray, unit_index: np.ndarray, num_units: int, charged: Members, charged_unit: Unit
) -> np.ndarray:
    """Return each unit's group size under an earlier run, shape (units,), int64.

    A unit of group size k can change that run's clipped sum by up to k clipping bounds.
    """
    if charged_unit == "group":
        return _group_sizes_in_groups(images, unit_index, num_units, charged)
    # Count duplicates once. If the earlier run charged one image under two ids (linked later), count it twice.
    charged_images = np.unique(np.stack([charged.images, charged.units]), axis=1)[0]
    known, counts = np.unique(charged_images, return_counts=True)
    present = np.isin(images, known)
    pairs = np.unique(np.stack([unit_index[present], images[present]]), axis=1)
    weights = counts[np.searchsorted(known, pairs[1])]
    return np.bincount(pairs[0], weights=weights, minlength=num_units).astype(np.int64)


def _group_sizes_in_groups(images: np.ndarray, unit_index: np.ndarray, num_units: int, charged: Members) -> np.ndarray:
    """Return each unit's group size under a run that protected groups of images.

    A group that is wholly in a unit counts once. A group of which the unit has only some images counts twice: without
    these images its clipped gradient stays in the sum but may point the opposite way.
    """
    images_of_group: dict[int, set[int]] = defaultdict(set)
    groups_of_image: dict[int, set[int]] = defaultdict(set)
    for image, group in zip(charged.images.tolist(), charged.units.tolist(), strict=True):
        images_of_group[group].add(image)
        groups_of_image[image].add(group)
    images_of_unit: dict[int, set[int]] = defaultdict(set)
    for image, unit in zip(images.tolist(), unit_index.tolist(), strict=True):
        images_of_unit[unit].add(image)
    sizes = np.zeros(num_units, dtype=np.int64)
    for unit, own in images_of_unit.items():
        touched = {group for image in own for group in groups_of_image.get(image, ())}
        sizes[unit] = sum(1 if images_of_group[group] <= own else 2 for group in touched)
    return sizes
