"""What a ledger's events cost, computed anew: nothing that an earlier process found is believed.

The worst-off image is found here image by image, apart from `common.ledger.budget`, which
decides before each run: two ways to one figure, and a test holds them together.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from common.errors import ConfigError
from common.ledger.budget import Charge
from common.ledger.image_index import Members
from common.privacy.accounting import NOTHING, Spent, spent_by
from common.privacy.events import Event

_BOUNDLESS = float("inf")
# (number of the charge, part, how many of that run's units one image amounts to)
_Past = tuple[tuple[int, str, int], ...]


@dataclass(frozen=True)
class WorstImage:
    """The image that has spent most, over all runs of a ledger.

    Attributes:
        spent: Both bounds; infinite where so little noise was used that no figure means anything.
        delta: The delta they are for: the smallest of the runs.
        images: How many images were ever charged.
        runs: How many runs its history has.
    """

    spent: Spent
    delta: float
    images: int
    runs: int


def cost_of(parts: Mapping[str, Sequence[Event]], *, delta: float) -> Spent:
    """What events cost the unit that is worst off, in whichever part of the data it is.

    Args:
        parts: Part of the data -> events.
        delta: In (0, 1).

    Raises:
        PrivacyError: The accountants disagree.
    """
    return _worse(*(_bounds(events, delta) for events in parts.values()))


def _bounds(events: Iterable[Event], delta: float) -> Spent:
    try:
        return spent_by(events, delta=delta, fresh=True)
    except ConfigError:
        return Spent(_BOUNDLESS, _BOUNDLESS)


def _worse(*found: Spent) -> Spent:
    return Spent(max((one.pld for one in found), default=0.0), max((one.rdp for one in found), default=0.0))


def worst_image(charges: Sequence[Charge], *, delta: float) -> WorstImage:
    """The image that has spent most, with every plan that was begun in full.

    Args:
        charges: All runs that were begun.
        delta: In (0, 1).

    Raises:
        PrivacyError: The accountants disagree.
    """
    histories = _histories(charges)
    worst, runs = NOTHING, 0
    for history in Counter(histories.values()):
        planned = [event for at, part, size in history for event in _grown(charges[at].planned[part], size)]
        filtered = [event for at, part, size in history for event in _grown(charges[at].filtered()[part], size)]
        found = Spent(_bounds(planned, delta).pld, _bounds(filtered, delta).rdp)
        if found.pld > worst.pld:
            runs = len({at for at, *_ in history})
        worst = _worse(worst, found)
    return WorstImage(worst, delta, len(histories), runs)


def _grown(events: Iterable[Event], size: int) -> list[Event]:
    return [replace(event, group_size=event.group_size * size) for event in events]


def _histories(charges: Sequence[Charge]) -> dict[int, _Past]:
    found: dict[int, list[tuple[int, str, int]]] = defaultdict(list)
    for at, charge in enumerate(charges):
        for part, members in charge.parts.items():
            for image, size in _sizes(members, charge.unit == "group").items():
                found[image].append((at, part, size))
    return {image: tuple(history) for image, history in found.items()}


def _sizes(members: Members, grouped: bool) -> dict[int, int]:
    """Image -> how much it alone can move a sum.

    Once for each unit that it was: more than one where two images turned out to be one later. As one of a group
    twice, for the rest of the group turns around.
    """
    if not grouped:
        return Counter(image for image, _ in set(zip(members.images.tolist(), members.units.tolist(), strict=True)))
    images_of: dict[int, set[int]] = defaultdict(set)
    for image, group in zip(members.images.tolist(), members.units.tolist(), strict=True):
        images_of[group].add(image)
    sizes: Counter[int] = Counter()
    for images in images_of.values():
        sizes.update(dict.fromkeys(images, 1 if len(images) == 1 else 2))
    return dict(sizes)
