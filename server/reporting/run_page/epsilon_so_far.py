"""Epsilon of a run after each of its rounds.

It is a figure to look at, and saves nothing. A run that stops early is charged its whole plan.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from common.errors import ConfigError, PrivacyError
from common.privacy.accounting import FIGURES, Spent, pld_epsilon, rdp_epsilon
from common.privacy.events import DpSgdEvent, Event, from_json, merged

# Ten times as coarse as the accountant's grid. Epsilon is larger by at most 0.014 at epsilon 8, as measured.
_COARSE_GRID = 1e-3
# Rounds between those that are computed have the bound of the next one.
_MAX_COMPUTED = 20


def epsilon_so_far(privacy: Mapping[str, Any], num_rounds: int, counted_every: int = 1) -> list[Spent]:
    """Return upper bounds on epsilon after rounds 1 to `num_rounds`, empty without a mechanism.

    They are for the client with the largest epsilon, as if it had taken part in every round so far, up to what the
    whole run is stated to cost it. The closing counts are left out until the run has ended.

    Args:
        privacy: Content of `privacy.json`.
        num_rounds: Number of complete rounds.
        counted_every: Value of `evaluation.every`.
    """
    clients = privacy.get("clients") or {}
    if not clients or num_rounds < 1:
        return []
    worst = max(clients.values(), key=lambda client: _bound(client["epsilon"]))
    stated = Spent(_bound(worst["epsilon"]), _bound(worst["epsilon_rdp"]))
    step = math.ceil(num_rounds / _MAX_COMPUTED)
    found: dict[int, Spent] = {}
    for last in range(num_rounds, 0, -step):
        found[last] = _capped(_spent_after(worst, last, counted_every, privacy["delta"]), stated)
    return [found[min(last for last in found if last >= number)] for number in range(1, num_rounds + 1)]


def _bound(epsilon: float | None) -> float:
    return math.inf if epsilon is None else float(epsilon)


def _capped(spent: Spent, stated: Spent) -> Spent:
    # The coarse grid rounds up, so a part could seem to cost more than the whole.
    return Spent(min(spent.pld, stated.pld), min(spent.rdp, stated.rdp))


def _spent_after(client: Mapping[str, Any], number: int, counted_every: int, delta: float) -> Spent:
    """Return the larger cost of a trained and a held-out unit."""
    parts = {name: [from_json(event) for event in listed] for name, listed in client["events"].items()}
    rounds = min(number, client["rounds"])
    trained = [_of_rounds(event, rounds, client["rounds"]) for event in parts["training"]]
    counts = parts.get("evaluation", [])[:1]
    held_out = [event.counted(min(number // counted_every, event.count)) for event in counts]
    costs = [_cost(merged(events), delta) for events in (trained, held_out)]
    return Spent(max(cost.pld for cost in costs), max(cost.rdp for cost in costs))


def _of_rounds(event: Event, rounds: int, charged: int) -> Event:
    # Label counts leave once, before the first round.
    if not isinstance(event, DpSgdEvent) or not charged:
        return event
    return replace(event, steps=event.steps // charged * rounds)


def _cost(history: tuple[Event, ...], delta: float) -> Spent:
    if not history:
        return Spent(0.0, 0.0)
    try:
        rdp = FIGURES.get_or_compute("rdp", (history, delta), lambda: rdp_epsilon(history, delta))
        key = (history, delta, _COARSE_GRID)
        return Spent(FIGURES.get_or_compute("pld", key, lambda: pld_epsilon(history, delta, _COARSE_GRID)), rdp)
    except (ConfigError, PrivacyError):
        return Spent(math.inf, math.inf)
