"""The cost of a ledger's events, recomputed without any stored figure.

Here the worst-off image is searched image by image. `common.ledger.budget`, which decides before each run, searches by
distinct histories. The two ways are independent, and a test compares their figures.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.config.sections import Unit
from common.errors import ConfigError
from common.ledger.budget import Charge
from common.ledger.image_index import Members
from common.privacy.accounting import Spent, spent_by
from common.privacy.events import Event, events_of_group, own_shares

# Index of the charge, part of the data, and the image's group size under that charge.
_History = tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class WorstImage:
    """The image that has spent the most over all runs of a ledger.

    `spent` is infinite if the noise was too small for a meaningful figure. `alone` is the same if all other clients of
    its secure sums colluded, and each one's own share were all the noise. `delta` is the smallest of the runs.
    `images` is how many images were ever charged, `runs` how many runs this image took part in.
    """

    spent: Spent
    alone: Spent
    delta: float
    images: int
    runs: int


def cost_of(parts: Mapping[str, Sequence[Event]], *, delta: float) -> Spent:
    """Return what each part's events cost the worst-off unit.

    Raises:
        PrivacyError: The accountants disagree.
    """
    return _worse(*(_bounds(events, delta) for events in parts.values()))


def cost_alone(parts: Mapping[str, Sequence[Event]], *, delta: float) -> Spent:
    """Return the cost if all other clients of the secure sums colluded.

    Raises:
        PrivacyError: The accountants disagree.
    """
    return cost_of({name: own_shares(events) for name, events in parts.items()}, delta=delta)


def _bounds(events: Iterable[Event], delta: float) -> Spent:
    try:
        return spent_by(events, delta=delta, fresh=True)
    except ConfigError:
        return Spent(float("inf"), float("inf"))


def _worse(*costs: Spent) -> Spent:
    return Spent(max((cost.pld for cost in costs), default=0.0), max((cost.rdp for cost in costs), default=0.0))


@dataclass(frozen=True)
class PricedHistory:
    """The cost of one history that `images` images share.

    `alone` is the cost if all other clients of its secure sums colluded. `units` are the kinds of units as which its
    runs charged them, `runs` how many runs these are.
    """

    spent: Spent
    alone: Spent
    images: int
    runs: int
    units: frozenset[Unit]


def worst_image(charges: Sequence[Charge], *, delta: float) -> WorstImage:
    """Return the image that has spent the most.

    `charges` holds all runs that were begun. The PLD figure counts each of their plans in full.

    Raises:
        PrivacyError: The accountants disagree.
    """
    priced = price_histories(charges, delta=delta)
    worst = max(priced, key=lambda history: history.spent.pld, default=None)
    return WorstImage(
        _worse(*(history.spent for history in priced)),
        _worse(*(history.alone for history in priced)),
        delta,
        sum(history.images for history in priced),
        worst.runs if worst is not None and worst.spent.pld > 0 else 0,
    )


def price_histories(charges: Sequence[Charge], *, delta: float) -> list[PricedHistory]:
    """Return each distinct history of an image with its cost, as `worst_image` counts it.

    Raises:
        PrivacyError: The accountants disagree.
    """
    priced = []
    # A Counter keeps the order of the images, so the report is the same in each process. A set would not.
    for history, images in Counter(_histories(charges).values()).items():
        planned: list[Event] = []
        filtered: list[Event] = []
        for index, part, size in history:
            planned += events_of_group(charges[index].planned[part], size)
            filtered += events_of_group(charges[index].filtered()[part], size)
        cost = Spent(_bounds(planned, delta).pld, _bounds(filtered, delta).rdp)
        alone = Spent(_bounds(own_shares(planned), delta).pld, _bounds(own_shares(filtered), delta).rdp)
        runs = {index for index, *_ in history}
        units = frozenset(charges[index].unit for index in runs)
        priced.append(PricedHistory(cost, alone, images, len(runs), units))
    return priced


def _histories(charges: Sequence[Charge]) -> dict[int, _History]:
    histories: dict[int, list[tuple[int, str, int]]] = defaultdict(list)
    for index, charge in enumerate(charges):
        for part, members in charge.parts.items():
            for image, size in _group_sizes(members, charge.unit == "group").items():
                histories[image].append((index, part, size))
    return {image: tuple(history) for image, history in histories.items()}


def _group_sizes(members: Members, grouped: bool) -> dict[int, int]:
    """Return each image's group size under one run.

    An image counts once for each unit it was, which is more than one if two ids were linked later. An image that shared
    its group with others counts twice: without it the group's clipped gradient may point the opposite way.
    """
    if not grouped:
        return Counter(image for image, _ in set(zip(members.images.tolist(), members.units.tolist(), strict=True)))
    images_of_group: dict[int, set[int]] = defaultdict(set)
    for image, group in zip(members.images.tolist(), members.units.tolist(), strict=True):
        images_of_group[group].add(image)
    sizes: Counter[int] = Counter()
    for images in images_of_group.values():
        sizes.update(dict.fromkeys(images, 1 if len(images) == 1 else 2))
    return dict(sizes)
