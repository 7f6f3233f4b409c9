"""The output of commands, safe for a terminal."""

import errno
import importlib
import logging
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from common.errors import BractError
from common.system.progress import ProgressFactory

# What the owner of a machine can put right. A file that is missing is not among them: the program must look first.
_USERS_ERRORS = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP, errno.ENAMETOOLONG),
}


@contextmanager
def plain_errors(stopped: str = "Stopped.") -> Iterator[None]:
    """Show a user's mistake as text with exit code 2, an interruption with 130.

    `stopped` is the text for an interruption that has no text of its own. A file or folder that cannot be used is such
    a mistake too, wherever it was met.
    """
    try:
        yield
    except BractError as error:
        _show_error(type(error).__name__, str(error))
        raise typer.Exit(2) from None
    except OSError as error:
        # Without a file's name it is a fault of the program, which must show where it came from.
        if error.filename is None or error.errno not in _USERS_ERRORS:
            raise
        _show_error("FileError", f"{os.fsdecode(error.filename)} cannot be used ({str(error.strerror).lower()})")
        raise typer.Exit(2) from None
    except KeyboardInterrupt as interruption:
        Console(stderr=True).print(str(interruption) or stopped, highlight=False, soft_wrap=True, markup=False)
        raise typer.Exit(130) from None


def _show_error(kind: str, text: str) -> None:
    Console(stderr=True).print(f"[bold red]{kind}[/]: {escape(printable(text))}", highlight=False, soft_wrap=True)


def console_of_caller(*, quiet: bool) -> Console:
    """Return a console for functions that programs and notebooks call."""
    # In a notebook rich warns at every refresh where ipywidgets is missing, and Jupyter sets FORCE_COLOR, by which rich
    # takes it for a terminal. Plain lines appear in every notebook as they are printed.
    plain_lines = False if Console().is_jupyter else None
    return Console(quiet=quiet, force_jupyter=plain_lines, force_terminal=plain_lines)


def new_bar(console: Console) -> Progress:
    """Return a progress bar that disappears at its end."""
    progress = (TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*progress, TextColumn("to go"), TimeRemainingColumn(), console=console, transient=True)


@contextmanager
def bar_factory(console: Console) -> Iterator[ProgressFactory]:
    """Open a progress report that shows a terminal a bar for each work."""
    with new_bar(console) as bar:

        def start(total: int, description: str) -> Callable[[int], None]:
            if not total:
                return lambda _: None
            task = bar.add_task(description, total=total)
            return lambda amount: bar.advance(task, amount)

        yield start


@contextmanager
def busy(description: str) -> Iterator[None]:
    """Show a terminal that a command is at work whose end it cannot tell."""
    with Console(stderr=True).status(f"{description} ..."):
        yield


_COLOURS = {
    "verified": "bold green",
    "internally consistent": "bold yellow",
    "DOUBTFUL": "bold red",
    "NOT PRIVATE": "bold red",
}
_MAX_LINES = 20


def show_verdict(console: Console, subject: str, verdict: str, meaning: str) -> None:
    """Print a verdict in its colour and a line with its meaning."""
    line = plain(f"{subject}: ")
    line.append(verdict, style=_COLOURS.get(verdict, "bold"))
    console.print(line)
    say(console, meaning)


def show_remarks(console: Console, doubts: Sequence[str], warnings: Sequence[str]) -> None:
    """Print one line for each doubt and each warning, up to 20 of each."""
    for style, mark, lines in (("red", "doubt", doubts), ("yellow", "note", warnings)):
        for line in lines[:_MAX_LINES]:
            say(console, f"{mark}: {line}", style)
        if len(lines) > _MAX_LINES:
            say(console, f"{mark}: and {len(lines) - _MAX_LINES} more, see --json", style)


def say(console: Console, text: str, style: str = "", *, depth: int = 2) -> None:
    """Print a line that stays indented where it is wrapped."""
    console.print(Padding(plain(text, style), (0, 0, 0, depth), expand=False))


def format_epsilon(epsilon: float) -> str:
    """Return an epsilon rounded up to three digits.

    Rounding to the nearest digit would claim a smaller epsilon than the true one.

    >>> format_epsilon(7.99991), format_epsilon(float("inf"))
    ('8.000', 'over 200')
    """
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "over 200"


def format_alone(epsilon: float) -> str:
    """Return what a client's own share of a noise gives if all others collude.

    >>> format_alone(7.25), format_alone(math.inf)
    ('epsilon 7.250', 'no protection')
    """
    return f"epsilon {format_epsilon(epsilon)}" if math.isfinite(epsilon) else "no protection"


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""Return text in which control and invisible characters are written as escapes.

    File names, ledgers and messages can hold codes that a terminal would obey.

    >>> print(printable("x = 1  # \x1b[2J \u202e"))
    x = 1  # \x1b[2J \u202e
    """
    return "".join(c if c in keep or c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def plain(text: str, style: str = "") -> Text:
    """Return text for rich in which markup and control characters have no effect."""
    return Text(printable(text), style)


def set_log_levels(*, verbose: bool) -> None:
    """Set the log level of the terminal to INFO or ERROR."""
    # Flower sets its own level when it is first imported: import it before the level is changed.
    importlib.import_module("flwr.app")
    logging.getLogger("flwr").setLevel(logging.INFO if verbose else logging.ERROR)
    logging.getLogger("flwr").propagate = False
    logging.getLogger("absl").setLevel(logging.ERROR)
    logger = logging.getLogger("bract")
    logger.setLevel(logging.INFO if verbose else logging.ERROR)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
