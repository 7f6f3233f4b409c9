"""Page of a client for its holder."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from shlex import quote

from client.status.activity import Activity, Link
from client.status.leaving_fields import FAILURE_WORDS, leaving_under
from client.status.pin_history import Pin
from client.status.run_rows import runs_section
from client.status.status import ClientStatus
from common.errors import ClientFailure
from common.page.blocks import (
    Block,
    Cell,
    Details,
    Notice,
    Page,
    Part,
    Section,
    Table,
    Text,
    Tile,
    Tiles,
    epsilon_cell,
    name_cell,
    number_cell,
    text,
    time_cell,
    words,
)
from common.privacy.batched_gradients import GAP, OPACUS
from common.privacy.mechanisms.registry import mechanisms_under
from common.system.console import format_epsilon

_FOOTER = (
    "Made by Bract from this client's files. The page is read-only and loads nothing from anywhere else. Nothing of it "
    "goes to the server."
)
_MAX_ROWS = 100
_UNITS = {"image": "single images", "group": "groups of images, or the whole client"}
_ASKED = {
    "query": "to agree to a run",
    "query.close": "to close a run",
    "close": "to close a run",
    "train": "to train",
    "evaluate": "to evaluate the final model",
    "closing": "to evaluate the final model",
    "labels": "to count labels with noise",
}
_BY_OTHER_CODE = " by other code"
Trouble = tuple[str, str] | None


def client_page(status: ClientStatus, activity: Activity | None, pins: Sequence[Pin], trouble: Trouble) -> Page:
    """Return the page of a client whose files can be read.

    Args:
        status: State of the client by its ledger.
        activity: State by its own record; None without one.
        pins: Code that it was started with, the newest last.
        trouble: Fault of the ledger with its remedy; None without one.
    """
    site = status.site
    now = _now(site.folder, site.superlink or "its server", status.running, activity)
    sections = (
        Section("now", "Now", (*_warnings(status, trouble), *now, *_tasks(activity))),
        _budget(status, trouble),
        runs_section(status, is_computing=status.running and activity is not None and bool(activity.task)),
        _refusals(status),
        _pins(status, pins),
        _leaving(status),
        _ledger(status, trouble),
    )
    return Page(f"Client {words(site.name)}", f"{site.folder}", sections, _FOOTER)


def broken_page(folder: Path, running: bool, activity: Activity | None, error: Exception) -> Page:
    """Return the page of a client whose files cannot be read.

    Args:
        folder: Folder of the client.
        running: Whether it runs.
        activity: State by its own record; None without one.
        error: Reason.
    """
    said = (
        text(Cell(words(str(error)))),
        text("Until this is put right no figure can be shown, and a request to this client fails with a bare code."),
    )
    notice = Notice("warning", "This client cannot be read", said)
    now = _now(folder, "its server", running, activity)
    return Page("Client that cannot be read", f"{folder}", (Section("now", "Now", (notice, *now)),), _FOOTER)


def _warnings(status: ClientStatus, trouble: Trouble) -> list[Block]:
    """Return boxes for what nobody may overlook."""
    found: list[Block] = []
    policy = status.policy
    if trouble is not None:
        remedy = trouble[1] or (
            "Stop the client, and restore the ledger's folder and the folder heads beside it from your newest backup."
        )
        found.append(Notice("warning", "The ledger is doubtful", (text(Cell(words(trouble[0]))), text(words(remedy)))))
    if policy.expires is not None and datetime.now(UTC).date() > policy.expires:
        said = f"It ended on {policy.expires}. The client refuses every run."
        found.append(Notice("warning", "The policy has ended", (text(said),)))
    for row in () if status.budget is None else status.budget.by_unit:
        if row.used_up:
            said = (
                f"Epsilon {format_epsilon(row.spent)} of {policy.max_epsilon:g} is spent. A further run that protects "
                f"{_UNITS[row.unit]} will be refused, if it has one of these {row.used_up:,}. New images have a budget "
                "of their own."
            )
            found.append(Notice("warning", f"The budget of {_UNITS[row.unit]} is used up", (text(said),)))
    return found


def _now(folder: Path, server: str, running: bool, activity: Activity | None) -> list[Text]:
    """Return what the client does now."""
    start = f"`bract client start {quote(str(folder))}`"
    if not running:
        if activity is None:
            return [text(f"The client has not been started yet: {start} does it.", strong=True)]
        since = time_cell(activity.since)
        if activity.link is Link.ENDED:
            return [text("The client is stopped, since ", since, f". It answers nothing until {start}.", strong=True)]
        return [
            text("The client is not running, and it did not end in order.", strong=True),
            text(
                "It was killed, or the machine went down. The last that it wrote of itself is: ",
                Cell(activity.link.value), ", ", since, f". What it had reserved stays charged. {start} goes on.",
            ),
        ]  # fmt: skip
    if activity is None:
        return [text("The client runs. Its version writes nothing of its connection and its tasks.", strong=True)]
    lines = [text(*_connection(server, activity), strong=True)]
    if activity.task:
        computing = "It computes its reply to: "
        lines.append(text(computing, name_cell(activity.task), ", ", time_cell(activity.task_since, "for"), "."))
    elif activity.link is Link.CONNECTED:
        lines.append(text("It computes nothing, and waits until the server asks."))
    return lines


def _connection(server: str, activity: Activity) -> tuple[Part, ...]:
    where, since = name_cell(server), time_cell(activity.since)
    if activity.link is Link.CONNECTED:
        return "The client runs and is connected to ", where, ", since ", since, "."
    if activity.link is Link.NO_ANSWER:
        return "The client runs. Nobody answers at ", where, ", since ", since, ". It tries again by itself."
    if activity.link is Link.REFUSED:
        return "The client runs. The server at ", where, " does not accept it yet, since ", since, ". It tries again."
    if activity.link is Link.BROKEN:
        return "The client runs. Its connection to ", where, " broke off, ", since, ". It tries again by itself."
    return "The client runs and is connecting to ", where, ", since ", since, "."


def _tasks(activity: Activity | None) -> list[Block]:
    """Return the last tasks with the code that left where nothing else did."""
    if activity is None or not activity.done:
        return []
    rows = tuple(
        (time_cell(task.time), name_cell(task.label), _answer(task.remark), Cell(f"{task.seconds:.1f} s"))
        for task in reversed(activity.done)
    )
    columns = ("ended", "message", "answer", "it took")
    return [Table("The last messages of the server", columns, rows, (False,) * 4)]


def _answer(remark: str) -> Cell:
    if not remark:
        return Cell("answered")
    return Cell(f"{remark}: {FAILURE_WORDS[remark]}" if remark in FAILURE_WORDS else words(remark), strong=True)


def _budget(status: ClientStatus, trouble: Trouble) -> Section:
    policy, budget = status.policy, status.budget
    if budget is None or trouble is not None:
        said = "The ledger is doubtful, so it cannot be told what is left. Nothing in it can be relied on."
        return Section("budget", "Budget", (text(said, strong=True),))
    accountant = f"{policy.accountant.upper()}, delta {policy.delta:g}"
    tiles = [
        tile
        for row in budget.by_unit
        for tile in (
            Tile(f"epsilon spent by {_UNITS[row.unit]}", epsilon_cell(row.spent),
                 f"of {policy.max_epsilon:g} ({accountant})"),
            Tile("left, about", Cell(f"{max(0.0, policy.max_epsilon - row.spent):.3f}"), "for a further run on them"),
            Tile("near the cap", number_cell(row.near), f"of {row.units:,}: less than a quarter is left"),
        )
    ]  # fmt: skip
    if not tiles:
        tiles = [Tile("epsilon spent", epsilon_cell(0.0), f"of {policy.max_epsilon:g} ({accountant})")]
    rows = tuple(
        (
            Cell(_UNITS[row.unit]),
            epsilon_cell(row.spent),
            Cell(f"{max(0.0, policy.max_epsilon - row.spent):.3f}"),
            number_cell(row.units),
            number_cell(row.near),
            number_cell(row.used_up),
        )
        for row in budget.by_unit
    )
    columns = ("protected were", "epsilon spent", "left, about", "how many", "near the cap", "used up")
    blocks: list[Block] = [
        Tiles(tuple(tiles)),
        text(
            "The epsilon is that of the image, or the group, that has spent most, over all clients of this user. Each "
            "run that was begun counts with its whole plan. Epsilons do not add up, so what a further run may cost is "
            "known exactly only when it asks."
        ),
    ]
    if rows and budget.leading is None:
        spent, left = format_epsilon(budget.spent), f"{budget.left:.3f}"
        blocks.append(text(f"A plan by single images would start from epsilon {spent}: about {left} is left for it."))
    if rows:
        blocks.append(Table("Budget by the unit that was protected", columns, rows))
    else:
        blocks.append(text("Nothing has been spent yet."))
    if policy.expires:
        blocks.append(text(f"The policy allows runs until {policy.expires}."))
    return Section("budget", "Budget", tuple(blocks))


def _refusals(status: ClientStatus) -> Section:
    if not status.refusals:
        said = "The policy has refused nothing that this client was asked for."
        return Section("refusals", "Refusals", (text(said),))
    rows = []
    for refusal in reversed(status.refusals[-_MAX_ROWS:]):
        asked, _, why = refusal.text.partition(": ")
        kind, _, place = asked.rpartition(" in round ")
        other_code = kind.endswith(_BY_OTHER_CODE)
        code = (ClientFailure.BUNDLE if other_code else ClientFailure.POLICY).name
        kind = kind.removesuffix(_BY_OTHER_CODE)
        wanted = _ASKED.get(kind, kind) + (f" in round {place}" if place not in ("", "0") else "")
        rows.append(
            (Cell(_utc(refusal.time)), name_cell(refusal.run[:8]), Cell(words(wanted)),
             Cell(f"{code}: {FAILURE_WORDS[code]}"), Cell(words(why)))
        )  # fmt: skip
    columns = ("time, UTC", "run", "the server asked", "what left", "reason, which stayed here")
    blocks: list[Block] = [Table("Refused requests, the newest first", columns, tuple(rows), (False,) * 5)]
    if len(status.refusals) > _MAX_ROWS:
        blocks.append(text(f"{len(status.refusals) - _MAX_ROWS} older ones are in `bract client status --json`."))
    return Section("refusals", "Refusals", tuple(blocks))


def _pins(status: ClientStatus, pins: Sequence[Pin]) -> Section:
    policy, folder = status.policy, quote(str(status.site.folder))
    said = {
        "none": "No code is pinned: the client runs any code that the server sends, and so trusts the server.",
        "installed": "The pinned code is the Bract that is installed here. No other code runs.",
        "other": f"The pinned code is NOT the Bract that is installed here: `bract client review {folder}` compares.",
    }[status.pin]
    blocks: list[Block] = [text(said, strong=True)]
    if policy.bundle:
        blocks.append(text("Pinned in policy.toml: ", Cell(policy.bundle, is_name=True), "."))
    if pins and pins[-1].bundle == policy.bundle:
        blocks.append(text("The client first started with it ", time_cell(pins[-1].time), "."))
    else:
        blocks.append(text("The client has not been started with this line of policy.toml yet."))
    names = {"": "none: any code runs", status.installed: "the Bract installed here"}
    rows = tuple(
        (Cell(_utc(pin.time)), name_cell(pin.bundle[:16] or "-"), Cell(names.get(pin.bundle, "other code")),
         name_cell(pin.version))
        for pin in reversed(pins[-_MAX_ROWS:])
    )  # fmt: skip
    if rows:
        columns = ("first start, UTC", "pinned code", "it is", "Bract installed then")
        blocks.append(Table("Changes of the pin, the newest first", columns, rows, (False,) * 4))
    other = sum(run.policy != policy.digest for run in status.runs)
    if other:
        blocks.append(
            text(f"{other} of {len(status.runs)} runs were agreed to under another policy than that of today.")
        )
    return Section("pins", "Pinned code", tuple(blocks))


def _leaving(status: ClientStatus) -> Section:
    policy = status.policy
    rows = tuple((Cell(row.reply), Cell(row.mechanism), Cell(row.fields)) for row in leaving_under(policy))
    columns = ("with the reply to", "mechanism", "what leaves")
    gaps: dict[str, None] = {}
    for mechanism in mechanisms_under(policy.mechanisms, policy.aggregations):
        unpinned = 0 if policy.bundle else 1
        gaps |= dict.fromkeys(mechanism.not_protected(num_clients=1, num_unpinned=unpinned))
    if OPACUS in policy.gradients:
        gaps[GAP] = None
    failures = tuple((Cell(code), Cell(meaning)) for code, meaning in FAILURE_WORDS.items())
    blocks: tuple[Block, ...] = (
        text("This is all that a run may get under policy.toml. A run that asks for more is refused."),
        Table("What may leave", columns, rows, (False,) * 3),
        text("A request that is refused, or fails, gets one code of a closed list, and no text."),
        Details("The codes", (Table("Codes", ("code", "meaning"), failures, (False, False)),)),
        Table("Not protected", ("an observer may learn",), tuple((Cell(words(gap)),) for gap in gaps), (False,)),
    )
    return Section("leaving", "What leaves this client", blocks)


def _ledger(status: ClientStatus, trouble: Trouble) -> Section:
    report = status.report
    if trouble is not None:
        doubts = tuple((Cell(words(doubt)),) for doubt in report.remarks.doubts[:_MAX_ROWS])
        blocks: list[Block] = [text("DOUBTFUL. ", Cell(words(trouble[0])), strong=True)]
        if doubts:
            blocks.append(Table("Doubts", ("what does not fit",), doubts, (False,)))
        blocks.append(text("`bract audit ledger` lists all."))
        return Section("ledger", "Ledger", tuple(blocks))
    count = "1 entry" if report.entries == 1 else f"{report.entries:,} entries"
    blocks = [
        text(f"Internally consistent: {count}, each chained to the one before.", strong=True),
        text(
            "That is all that this machine alone can say. Only the heads that a server keeps can show that nobody has "
            "rewritten the whole ledger: `bract audit ledger --heads FILE`."
        ),
        text("Ledger ", name_cell(report.ledger[:8]), f", from {report.first} to {report.last} UTC."),
    ]
    warnings = tuple((Cell(words(warning)),) for warning in report.remarks.warnings[:_MAX_ROWS])
    if warnings:
        blocks.append(Table("Remarks", ("what a reader should know",), warnings, (False,)))
    return Section("ledger", "Ledger", tuple(blocks))


def _utc(time: str) -> str:
    return words(time[:19].replace("T", " "))
