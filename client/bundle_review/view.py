"""The comparison of two bundles on the terminal, ending with the line to pin."""

import shlex

import typer

from client.bundle_review.compare import Change, Review
from client.bundle_review.git_diff import git_diff
from common.system.console import printable

_COLOURS = {"+": "green", "-": "red", "@": "cyan"}
_MARKS = {"added": "+", "removed": "-", "changed": "~"}


def show_review(found: Review, *, names_only: bool) -> None:
    """Print a review with all text of a bundle escaped.

    Args:
        found: The comparison.
        names_only: Print names and flags of files, and no lines.

    Raises:
        ConfigError: Git is needed and not installed, or it fails; names and flags are printed by then.
    """
    for mark, side in (("before", found.before), ("after ", found.after)):
        typer.echo(f"{mark}  {side.digest or 'nothing is pinned'}  {printable(side.label)}")
    _show_pin(found)
    before, after = found.before.files, found.after.files
    if found.changes:
        counts = ", ".join(f"{sum(change.kind == kind for change in found.changes)} {kind}" for kind in _MARKS)
        typer.echo(f"files   {counts}; read those marked LOOK first")
    for change in found.changes:
        _show_name(change)
    if found.changes and not names_only and before is not None and after is not None:
        typer.echo("")
        for line in git_diff(before, after):
            typer.secho(line, fg=_COLOURS.get(line[:1]))
    _show_line(found)


def _show_pin(found: Review) -> None:
    if found.pinned is None or found.before.files is None:
        return
    if not found.pinned:
        typer.echo("pin     NONE: the policy pins nothing")
    elif found.pinned == found.after.digest:
        typer.echo("pin     the policy pins the code of this bundle already")
    elif found.pinned != found.before.digest:
        typer.echo(f"pin     {found.pinned}: NEITHER of the two; the Bract installed here is compared")


def _show_name(change: Change) -> None:
    flags = f"   LOOK: {'; '.join(change.flags)}" if change.flags else ""
    typer.secho(f"  {_MARKS[change.kind]} {printable(change.name)}{flags}", fg="yellow" if flags else None)


def _show_line(found: Review) -> None:
    typer.echo("")
    if found.same:
        typer.echo("The same code: nothing differs.")
        return
    if found.before.files is None and found.before.digest:
        typer.echo(
            "The Bract installed here is not the code that is pinned. To see the differences, compare the bundle that"
        )
        typer.echo("was pinned with the new one: bract client review OLD.fab NEW.fab")
    where = "the client's policy.toml" if found.policy_file is None else shlex.quote(str(found.policy_file))
    typer.echo(f"To let this code run, and no other, put this line into {where}:")
    typer.echo(f'bundle = "{found.after.digest}"')
