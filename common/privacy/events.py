"""Events that record what a run did to a unit's data.

An event says nothing about its cost. Events are stored, epsilons never are.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from common.errors import PrivacyError


@dataclass(frozen=True, order=True)
class DpSgdEvent:
    """Steps that release a Gaussian-noised sum over a Poisson sample of units.

    A unit joins a batch with chance `sample_rate`, in (0, 1]. `noise_multiplier` is the noise's standard deviation over
    its L2 sensitivity. Empty batches count as steps. The protected unit consists of `group_size` of the mechanism's
    units, more than 1 if single images were units and a group of them is to be protected. `sampler` is the version of
    the noise sampler, `draws_per_step` the most values that it draws in a step. Both are 0 in events of the sampler
    whose error has no bound. If the noise is the sum of shares of independent clients, `noise_shares` is the least
    number of honest ones, who together draw all of it; 0 for noise that is drawn in one place.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int
    group_size: int = 1
    sampler: int = 0
    draws_per_step: int = 0
    noise_shares: int = 0

    @property
    def count(self) -> int:
        """The number of times that the mechanism ran."""
        return self.steps

    def counted(self, count: int) -> "DpSgdEvent":
        """Return the same mechanism with another number of runs."""
        return replace(self, steps=count)


@dataclass(frozen=True, order=True)
class CountsEvent:
    """Releases of integer counts under discrete Gaussian noise or shares of noise.

    One unit changes one count by 1 in each of K histograms, so the L2 sensitivity is sqrt(K), and 1 for a single
    histogram. `noise_stddev` is the parameter of the discrete Gaussian, in counts. `group_size` and `noise_shares` are
    as in `DpSgdEvent`. Shares are Gaussian, of the sampler `noise_error.TABLE`, and their sum has `noise_stddev`.
    """

    noise_stddev: float
    releases: int
    group_size: int = 1
    l2_sensitivity: float = 1.0
    noise_shares: int = 0

    @property
    def votes(self) -> int:
        """Number of counts that one unit changes, K.

        Raises:
            PrivacyError: The sensitivity is not the root of a whole number of at least 1.
        """
        squared = self.l2_sensitivity**2
        votes = round(squared) if math.isfinite(squared) else 0
        # A smaller number would make the release cheaper than it is.
        if votes < 1 or abs(squared - votes) > 1e-9 * votes:
            raise PrivacyError("an event of counts has a sensitivity that no number of histograms has")
        return votes

    @property
    def count(self) -> int:
        """The number of times that the mechanism ran."""
        return self.releases

    def counted(self, count: int) -> "CountsEvent":
        """Return the same mechanism with another number of runs."""
        return replace(self, releases=count)


Event = DpSgdEvent | CountsEvent
_KINDS: dict[str, type[DpSgdEvent] | type[CountsEvent]] = {"dp-sgd": DpSgdEvent, "counts": CountsEvent}
# Fields that came later, and are left out at the value that they have in older events.
_ADDED = {"sampler": 0, "draws_per_step": 0, "l2_sensitivity": 1.0, "noise_shares": 0}


def events_of_group(events: Iterable[Event], size: int) -> list[Event]:
    """Return the events on a unit that consists of `size` of their units."""
    return [replace(event, group_size=event.group_size * size) for event in events]


def own_shares(events: Iterable[Event]) -> list[Event]:
    """Return the events as if one client's own share were all the noise.

    It is what holds if all other clients collude: they subtract their shares from the sum. Events without shares stay
    as they are.

    >>> [event.noise_stddev for event in own_shares([CountsEvent(6.0, 1, noise_shares=9), CountsEvent(6.0, 1)])]
    [2.0, 6.0]
    """
    return [_own_share(event) if event.noise_shares else event for event in events]


def _own_share(event: Event) -> Event:
    part = math.sqrt(event.noise_shares)
    if isinstance(event, DpSgdEvent):
        return replace(event, noise_multiplier=event.noise_multiplier / part, noise_shares=1)
    return replace(event, noise_stddev=event.noise_stddev / part, noise_shares=1)


def as_json(event: Event) -> dict[str, Any]:
    """Return an event as plain JSON values for `from_json`.

    >>> as_json(CountsEvent(25.0, 30))
    {'kind': 'counts', 'noise-stddev': 25.0, 'releases': 30, 'group-size': 1}
    """
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    # Ledgers of earlier versions hold events without these fields, and must not seem changed.
    values = {name: value for name, value in vars(event).items() if value != _ADDED.get(name)}
    return {"kind": kind} | {name.replace("_", "-"): value for name, value in values.items()}


def from_json(values: Mapping[str, Any]) -> Event:
    """Return the event that `as_json` turned into plain values.

    Raises:
        PrivacyError: The values are not an event.
    """
    try:
        fields = {name.replace("-", "_"): value for name, value in values.items() if name != "kind"}
        return _KINDS[values["kind"]](**fields)
    except (KeyError, TypeError):
        raise PrivacyError(f"a ledger holds a value that is not an event, with the keys {sorted(values)}") from None


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return a history with equal mechanisms added up, in a fixed order.

    Events that never ran are left out.

    >>> merged([CountsEvent(4.0, 2), CountsEvent(4.0, 3), CountsEvent(5.0, 0)])
    (CountsEvent(noise_stddev=4.0, releases=5, group_size=1, l2_sensitivity=1.0, noise_shares=0),)
    """
    counts: Counter[Event] = Counter()
    for event in events:
        counts[event.counted(1)] += event.count
    history = [event.counted(count) for event, count in counts.items() if count]
    return tuple(sorted(history, key=lambda event: (type(event).__name__, *vars(event).values())))
