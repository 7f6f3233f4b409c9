"""Refusals and faults of a run on a time line."""

from dataclasses import dataclass

from common.page.blocks import MISSING, Block, Cell, Section, Table, TimeLine, name_cell, text
from server.reporting.run_page.run_files import RunFiles

_LANES = ("refused", "update missing", "lost later", "round skipped", "joined late", "missing at the close", "stopped")
_MAX_ROWS = 500


@dataclass(frozen=True)
class Happening:
    """Refusal or fault in a round, 0 for the time before the first."""

    at: float
    lane: str
    who: str
    what: str


def happenings(files: RunFiles) -> list[Happening]:
    """Return all refusals and faults that the run's files name, in order."""
    summary = files.summary
    refusals = summary.get("refusals") or files.privacy.get("refusals", {})
    found = [Happening(0, "refused", client, reason) for client, reason in refusals.items()]
    for client, first in summary.get("joined_late", {}).items():
        found.append(Happening(first, "joined late", client, f"from round {first}"))
    for line in files.rounds:
        found += [Happening(line["round"], "update missing", name, code) for name, code in line["failures"].items()]
        found += [
            Happening(line["round"], "lost later", name, code) for name, code in line.get("lost_after", {}).items()
        ]
        if line.get("skipped"):
            found.append(
                Happening(line["round"], "round skipped", "", "too few updates came, the model did not change")
            )
    end = float(len(files.rounds) + 1)
    for client, code in summary.get("missing_at_close", {}).items():
        found.append(Happening(end, "missing at the close", client, code))
    if files.stopped:
        found.append(Happening(end, "stopped", "", files.stopped))
    return sorted(found, key=lambda one: (one.at, _LANES.index(one.lane)))


def timeline_section(files: RunFiles) -> Section:
    """Return the time line or one sentence if nothing went wrong."""
    found = happenings(files)
    title = "Refusals and faults"
    if not found:
        return Section(
            "timeline", title, (text("No client was refused, no update was missing, and no round was skipped."),)
        )
    counts = ", ".join(f"{lane} {number}" for lane in _LANES if (number := sum(one.lane == lane for one in found)))
    shown = found[:_MAX_ROWS]
    lanes = tuple(lane for lane in _LANES if any(one.lane == lane for one in shown))
    rows = tuple(
        (
            Cell("before" if one.at == 0 else f"{one.at:.0f}" if one.at <= len(files.rounds) else "end"),
            Cell(one.lane),
            name_cell(one.who) if one.who else MISSING,
            name_cell(one.what),
        )
        for one in shown
    )
    table = Table("Refusals and faults", ("round", "kind", "client", "what"), rows, (True, False, False, False))
    chart = TimeLine(
        "Refusals and faults by round",
        "round (0 is before the first)",
        lanes,
        tuple(one.at for one in shown),
        tuple(lanes.index(one.lane) for one in shown),
        (0.0, float(max(1, len(files.rounds) + 1))),
        table,
    )
    blocks: list[Block] = [text(f"Numbers: {counts}."), chart]
    if len(found) > len(shown):
        blocks.append(text(f"The first {len(shown)} of {len(found)} are shown; rounds.jsonl names all.", small=True))
    return Section("timeline", title, tuple(blocks))
