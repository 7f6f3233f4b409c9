"""What happened to a unit's data, apart from what it costs: events are kept, epsilons never are."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from common.errors import PrivacyError


@dataclass(frozen=True, order=True)
class DpSgdEvent:
    """Steps that release a Gaussian-noised sum over a Poisson sample of units.

    Attributes:
        sample_rate: Chance that a unit joins a batch, in (0, 1].
        noise_multiplier: Noise standard deviation over L2 sensitivity.
        steps: How many steps, empty batches included.
        group_size: How many of the mechanism's units the protected unit consists of;
            more than 1 where images were units and a group of them is asked about.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int
    group_size: int = 1

    @property
    def count(self) -> int:
        """How often its mechanism ran."""
        return self.steps

    def counted(self, count: int) -> "DpSgdEvent":
        """The same mechanism, run so many times."""
        return replace(self, steps=count)


@dataclass(frozen=True, order=True)
class CountsEvent:
    """Releases of integer counts under discrete Gaussian noise, of which one unit moves one by 1.

    Attributes:
        noise_stddev: Parameter of the discrete Gaussian; the L2 sensitivity is 1.
        releases: How many.
        group_size: See `DpSgdEvent`.
    """

    noise_stddev: float
    releases: int
    group_size: int = 1

    @property
    def count(self) -> int:
        """How often its mechanism ran."""
        return self.releases

    def counted(self, count: int) -> "CountsEvent":
        """The same mechanism, run so many times."""
        return replace(self, releases=count)


Event = DpSgdEvent | CountsEvent
_KINDS: dict[str, type[DpSgdEvent] | type[CountsEvent]] = {"dp-sgd": DpSgdEvent, "counts": CountsEvent}


def as_json(event: Event) -> dict[str, Any]:
    """An event as plain values; `from_json` reads it back.

    >>> as_json(CountsEvent(25.0, 30))
    {'kind': 'counts', 'noise-stddev': 25.0, 'releases': 30, 'group-size': 1}
    """
    kind = next(name for name, cls in _KINDS.items() if isinstance(event, cls))
    return {"kind": kind} | {name.replace("_", "-"): value for name, value in vars(event).items()}


def from_json(found: Mapping[str, Any]) -> Event:
    """The inverse of `as_json`.

    Raises:
        PrivacyError: It is no event.
    """
    try:
        fields = {name.replace("-", "_"): value for name, value in found.items() if name != "kind"}
        return _KINDS[found["kind"]](**fields)
    except (KeyError, TypeError):
        raise PrivacyError(f"a ledger holds what is no event: {sorted(found)}") from None


def merged(events: Iterable[Event]) -> tuple[Event, ...]:
    """The same history with equal mechanisms added up, in a fixed order; empty events are left out.

    >>> merged([DpSgdEvent(0.5, 1.0, 2), DpSgdEvent(0.5, 1.0, 3), CountsEvent(4.0, 0)])
    (DpSgdEvent(sample_rate=0.5, noise_multiplier=1.0, steps=5, group_size=1),)
    """
    counts: Counter[Event] = Counter()
    for event in events:
        counts[event.counted(1)] += event.count
    found = [event.counted(count) for event, count in counts.items() if count]
    return tuple(sorted(found, key=lambda event: (type(event).__name__, *vars(event).values())))
