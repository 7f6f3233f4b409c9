"""The state of a client on a terminal of 80 columns."""

from rich.console import Console

from client.status.status import ClientStatus, RunStatus
from common.system.console import format_alone, format_epsilon, plain, say

_MAX_SHOWN = 10
_STATES = {
    "closed": "closed",
    "finished": "finished: its whole plan is charged",
    "open": "open: the server may ask for the rest, or has not said that the run ended",
}
_PINS = {
    "none": "NONE: any code that a server sends would be trusted; `bract client check` says what to do",
    "installed": "the Bract installed here; no other code runs",
    "other": "NOT the Bract installed here; `bract client review` compares them",
}


def show_status(status: ClientStatus, console: Console) -> None:
    """Print the state of a client, its spent budget first."""
    policy, pinned = status.policy, status.policy.bundle[:16]
    console.print(plain(f"Client {status.site.name}: {'running' if status.running else 'not running'}", "bold"))
    say(console, f"Code    {pinned + ', ' if pinned else ''}{_PINS[status.pin]}")
    say(
        console,
        f"Policy  at most epsilon {policy.max_epsilon:g} ({policy.accountant.upper()}) at delta {policy.delta:g}"
        + (f", until {policy.expires}" if policy.expires else ""),
    )
    _show_budget(status, console)
    for run in status.runs:
        _show_run(run, console)
    if not status.runs:
        say(console, "Runs    none with noise so far")
    _show_notes(status, console)


def _show_budget(status: ClientStatus, console: Console) -> None:
    budget = status.budget
    if budget is None:
        say(console, f"Ledger  DOUBTFUL: {status.report.remarks.doubts[0]}", "bold red")
        say(console, "no figure in it can be relied on: `bract audit ledger` lists all; restore a backup", depth=10)
        return
    count = "1 entry" if status.report.entries == 1 else f"{status.report.entries} entries"
    say(console, f"Ledger  {status.report.ledger[:8]}, {count}, {status.report.verdict}")
    if not budget.by_unit:
        say(console, "Spent   nothing yet")
        return
    left = "used up" if budget.nothing_left else f"about {budget.left:.3f} left"
    leading = budget.leading
    units = budget.images if leading is None or leading.unit == "image" else leading.units
    say(
        console,
        f"Spent   epsilon {format_epsilon(budget.spent)}, {left}: {budget.whose}, of {units}, "
        "over all clients of this user; a plan that was begun counts in full",
    )
    # A group pays for all its images together, so it may have less left than any of them.
    for row in budget.others:
        left = "used up" if row.nothing_left(budget.limit) else f"about {row.left(budget.limit):.3f} left"
        title = "Images" if row.unit == "image" else "Groups"
        say(console, f"{title}  epsilon {format_epsilon(row.spent)}, {left}: {row.whose}, of {row.units}")
    if budget.alone != budget.spent:
        say(console, f"Alone   {format_alone(budget.alone)} if all other clients of its secure sums collude")


def _show_run(run: RunStatus, console: Console) -> None:
    audited, plan = run.audited, run.audited.plan
    console.print()
    say(console, f"Run {audited.run[:8]}  {run.first} to {run.last} UTC, {_STATES[run.state]}")
    closing = "" if plan.counts is None else ", closing counts" + (" too" if audited.closing else " not yet")
    say(
        console,
        f"{plan.mechanism} for each {plan.privacy_unit}: noise multiplier {plan.noise_multiplier:.4g}, sample rate "
        f"{plan.sample_rate:.3g}, delta {plan.delta:g}",
        depth=4,
    )
    say(console, f"{audited.rounds} of {plan.num_rounds} rounds answered{closing}", depth=4)
    say(
        console,
        f"epsilon {format_epsilon(run.sent.pld)} for what left, {format_epsilon(audited.spent.pld)} reserved, "
        f"{format_epsilon(audited.planned.pld)} the whole plan",
        depth=4,
    )
    if plan.noise_shares:
        say(
            console,
            f"noise in shares: these hold while {plan.noise_shares} clients of each sum are honest, this one among "
            f"them; if all others collude, the whole plan gives {format_alone(audited.alone.pld)}",
            depth=4,
        )


def _show_notes(status: ClientStatus, console: Console) -> None:
    for title, notes in (("Notes", status.notes), ("Refusals (the reasons stayed here)", status.refusals)):
        if notes:
            console.print()
            say(console, title)
        for note in notes[-_MAX_SHOWN:]:
            say(console, f"{note.time[:16].replace('T', ' ')}  {note.run[:8]}  {note.text}", depth=4)
        if len(notes) > _MAX_SHOWN:
            say(console, f"and {len(notes) - _MAX_SHOWN} older ones, see --json", depth=4)
