"""Runs of a client as its holder's page shows them."""

from client.status.status import ClientStatus, RunStatus
from common.page.blocks import Block, Cell, Section, Table, epsilon_cell, name_cell, text, words

_MAX_ROWS = 100
_STATES = {
    "closed": "closed",
    "finished": "finished: its whole plan is charged",
    "open": "open: the server may ask for the rest",
}


def runs_section(status: ClientStatus, *, is_computing: bool) -> Section:
    """Return the runs with noise, the newest first.

    Args:
        status: State of the client.
        is_computing: Whether it computes a reply now.
    """
    if status.budget is None:
        return Section("runs", "Runs", (text("The ledger is doubtful, so no run can be shown."),))
    blocks: list[Block] = []
    newest = list(reversed(status.runs[-_MAX_ROWS:]))
    if newest:
        columns = ("run", "state", "rounds sent", "epsilon of what left", "reserved", "whole plan", "first entry, UTC",
                   "last entry, UTC")  # fmt: skip
        numeric = (False, False, False, True, True, True, False, False)
        rows = tuple(_row(run) for run in newest)
        blocks.append(Table("Runs with noise at this client, the newest first", columns, rows, numeric))
        blocks += [_unsent(run, is_computing=is_computing) for run in newest if run.unsent]
    else:
        blocks.append(text("This client has taken part in no run with noise."))
    if len(status.runs) > _MAX_ROWS:
        blocks.append(text(f"{len(status.runs) - _MAX_ROWS} older ones are in `bract client status --json`."))
    return Section("runs", "Runs", (*blocks, *_notes(status), *_others(status)))


def _notes(status: ClientStatus) -> list[Block]:
    """Return the notes of the ledger, such as of runs without noise."""
    rows = tuple(
        (Cell(note.time[:16].replace("T", " ")), name_cell(note.run[:8]), Cell(words(note.text)))
        for note in reversed(status.notes[-_MAX_ROWS:])
    )
    if not rows:
        return []
    return [Table("Notes of the ledger, the newest first", ("time, UTC", "run", "note"), rows, (False,) * 3)]


def _row(run: RunStatus) -> tuple[Cell, ...]:
    audited = run.audited
    sent = sum(kind == "train" for kind, _ in run.committed)
    closing = "" if audited.plan.counts is None else ", closing counts" + (" too" if audited.closing else " not yet")
    return (
        name_cell(audited.run[:8]),
        Cell(_STATES[run.state]),
        Cell(f"{sent} of {audited.plan.num_rounds}{closing}"),
        epsilon_cell(run.sent.pld),
        epsilon_cell(audited.spent.pld),
        epsilon_cell(audited.planned.pld),
        Cell(run.first),
        Cell(run.last),
    )


def _unsent(run: RunStatus, *, is_computing: bool) -> Block:
    what = ", ".join(f"round {number}" if kind == "train" else f"{kind} counts" for kind, number in run.unsent[:10])
    meaning = (
        "it is being computed, or an earlier attempt ended before anything left"
        if is_computing
        else "nothing of it has left, and nothing is given back"
    )
    return text("Run ", name_cell(run.audited.run[:8]), f": {what} is reserved and not committed, so {meaning}.")


def _others(status: ClientStatus) -> list[Block]:
    others = len({(run.run, run.client) for run in status.report.runs if run.client != status.site.name})
    if not others:
        return []
    said = "1 run of another client" if others == 1 else f"{others} runs of other clients"
    return [text(f"The ledger has {said} of this user, which count for the budget too.")]
