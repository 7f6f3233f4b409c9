"""What differs between two bundles, for people: names and flags first, then the lines, then the line to pin."""

import shlex

import typer

from client.bundle_review.compare import Change, Review
from common.system.console import printable

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}
_MARKS = {"added": "+", "removed": "-", "changed": "~"}


def show_review(found: Review, *, names_only: bool) -> None:
    """Print a review. Everything that came out of a bundle is escaped."""
    for mark, side in (("before", found.before), ("after ", found.after)):
        typer.echo(f"{mark}  {side.digest or 'nothing is pinned'}  {printable(side.what, keep='')}")
    _show_pin(found)
    if not found.same and found.after.files is not None and found.before.files is not None:
        counts = ", ".join(f"{_count(found, kind)} {kind}" for kind in _MARKS)
        typer.echo(f"files   {counts}; those that deserve a look come first")
    for change in found.changes:
        _show_name(change)
    for change in () if names_only else found.changes:
        _show_diff(change)
    _show_line(found)


def _count(found: Review, kind: str) -> int:
    return sum(change.kind == kind for change in found.changes)


def _show_pin(found: Review) -> None:
    if found.pinned is None or found.before.files is None:
        return
    if not found.pinned:
        typer.echo("pin     NONE: the policy pins nothing")
    elif found.pinned == found.after.digest:
        typer.echo("pin     the policy pins what is in the bundle already")
    elif found.pinned != found.before.digest:
        typer.echo(f"pin     {found.pinned}: NEITHER of the two; what is compared is the Bract installed here")


def _show_name(change: Change) -> None:
    flags = f"   LOOK: {'; '.join(change.flags)}" if change.flags else ""
    typer.secho(f"  {_MARKS[change.kind]} {printable(change.name, keep='')}{flags}", fg="yellow" if flags else None)


def _show_diff(change: Change) -> None:
    typer.echo("")
    for line in change.diff:
        typer.secho(line, fg=_COLOURS.get(line[:1]))


def _show_line(found: Review) -> None:
    typer.echo("")
    if found.same:
        typer.echo("The same code: nothing differs.")
        return
    if found.before.files is None and found.before.digest:
        typer.echo(
            "The Bract installed here is not what is pinned. To see what differs, compare it with the bundle that"
        )
        typer.echo("was pinned: bract client review OLD.fab NEW.fab")
    where = "the client's policy.toml" if found.policy_file is None else shlex.quote(str(found.policy_file))
    typer.echo(f"To let this code run, and no other, put this line into {where}:")
    typer.echo(f'bundle = "{found.after.digest}"')
