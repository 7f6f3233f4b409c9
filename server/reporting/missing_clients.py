"""Clients that were missing from rounds, with their share of the declared images.

A quorum that drops the slowest client may drop the largest one, and then the model has not seen its images.
"""

from collections.abc import Mapping
from typing import Any

from server.state.run_state import RunState

_MOST_NAMED = 5


def missing_clients(state: RunState) -> dict[str, Any]:
    """Return who was missing from the rounds that changed the model.

    `clients` has an entry for each client that was missing: its `share` of all units that the run's clients declared,
    and in how many `missed` of the `rounds` that asked it, or could have asked it if it had come in time.
    `unit` is what they declared the number of.
    `never_joined` counts planned clients that never took part, whose sizes the server does not know.
    """
    # Looked at after every round, and mostly nobody was missing. Then no look at all clients is needed.
    absent = any(line["failures"] for line in state.rounds) or bool(state.joined)
    units = state.roll.clients if absent else {}
    total = sum(units.values())
    return {
        "clients": {
            name: {"share": units[name] / total, "missed": missed, "rounds": asked}
            for name, (asked, missed) in (participation(state) if absent else {}).items()
            if missed
        },
        "unit": state.config.privacy.unit,
        "never_joined": max(0, state.config.num_clients - len(state.clients)),
    }


def participation(state: RunState) -> dict[str, tuple[int, int]]:
    """Return how many rounds asked each client and how many it missed.

    A late client could have been asked before it joined, if there was room.
    Rounds that were skipped do not count, because they did not change the model.
    """
    missed, asked = dict.fromkeys(state.clients, 0), dict.fromkeys(state.clients, 0)
    for line, cohort in zip(state.rounds, state.cohorts, strict=False):
        if line.get("skipped"):
            continue
        # A cohort that is not full has room for a client that came later.
        waiting = [name for name, first in state.joined.items() if line["round"] < first]
        room = waiting if len(cohort) < state.config.cohort_size else []
        for name in (*cohort, *room):
            asked[name] += 1
            missed[name] += name in room or name in line["failures"]
    return {name: (asked[name], missed[name]) for name in state.clients}


def missing_text(missing: Mapping[str, Any]) -> str:
    """Return one sentence on `missing_clients`, empty if nobody was missing."""
    # The largest share comes first, because it matters most to the model.
    ranked = sorted(missing["clients"].items(), key=lambda item: -item[1]["share"] * item[1]["missed"])
    parts = [
        f"{name} in {one['missed']} of {one['rounds']} rounds ({one['share']:.0%} of the declared {missing['unit']}s)"
        for name, one in ranked[:_MOST_NAMED]
    ]
    if len(ranked) > _MOST_NAMED:
        rest = sum(one["share"] for _, one in ranked[_MOST_NAMED:])
        parts.append(f"{len(ranked) - _MOST_NAMED} others in some rounds ({rest:.0%})")
    if missing["never_joined"]:
        one = missing["never_joined"] == 1
        who, sizes = ("client", "its size is") if one else ("clients", "their sizes are")
        parts.append(f"{missing['never_joined']} planned {who} in all rounds ({sizes} not known)")
    return ", ".join(parts)
