"""What every command shares: a user's mistake is one screen of text, and long work shows a bar."""

import importlib
import logging
import math
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


@contextmanager
def plain_errors(stopped: str = "Stopped.") -> Iterator[None]:
    """Turn a user's mistake into one screen of text and exit code 2.

    Args:
        stopped: What to say when the user interrupts.
    """
    try:
        yield
    except BractError as error:
        Console(stderr=True).print(
            f"[bold red]{type(error).__name__}[/]: {escape(printable(str(error)))}", highlight=False, soft_wrap=True
        )
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        Console(stderr=True).print(stopped)
        raise typer.Exit(130) from None


def new_bar(console: Console) -> Progress:
    """A progress bar with counts, elapsed time and time to go; it leaves nothing behind."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("to go"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


@contextmanager
def bar_factory(console: Console) -> Iterator[ProgressFactory]:
    """A progress reporter that shows one bar for each piece of long work, and leaves nothing behind.

    Args:
        console: Where to show it; only a terminal gets bars.
    """
    with new_bar(console) as bar:

        def start(total: int, what: str) -> Callable[[int], None]:
            if not total:
                return lambda _: None
            task = bar.add_task(what, total=total)
            return lambda amount: bar.advance(task, amount)

        yield start


_COLOURS = {
    "verified": "bold green",
    "internally consistent": "bold yellow",
    "DOUBTFUL": "bold red",
    "NOT PRIVATE": "bold red",
}
_MOST_LINES = 20


def show_verdict(console: Console, what: str, verdict: str, meaning: str) -> None:
    """One line with the verdict, one with what it means."""
    line = plain(f"{what}: ")
    line.append(verdict, style=_COLOURS.get(verdict, "bold"))
    console.print(line)
    say(console, meaning)


def show_remarks(console: Console, doubts: Sequence[str], warnings: Sequence[str]) -> None:
    """One line for each doubt and each warning; the rest of very many is left to `--json`."""
    for style, mark, lines in (("red", "doubt", doubts), ("yellow", "note", warnings)):
        for line in lines[:_MOST_LINES]:
            say(console, f"{mark}: {line}", style)
        if len(lines) > _MOST_LINES:
            say(console, f"{mark}: and {len(lines) - _MOST_LINES} more, see --json", style)


def say(console: Console, text: str, style: str = "", *, depth: int = 2) -> None:
    """A line, indented, also where it is wrapped."""
    console.print(Padding(plain(text, style), (0, 0, 0, depth), expand=False))


def format_epsilon(epsilon: float) -> str:
    """Return an epsilon rounded up to three digits, or words where it is infinite.

    >>> format_epsilon(7.99991), format_epsilon(float("inf"))
    ('8.000', 'over 200')
    """
    return f"{math.ceil(epsilon * 1000) / 1000:.3f}" if math.isfinite(epsilon) else "over 200"


def printable(text: str, *, keep: str = "\n\t") -> str:
    r"""Return text in which control and invisible characters are written as escapes.

    File names, ledgers and messages can hold codes that a terminal would obey.

    Args:
        text: Any text.
        keep: Control characters that stay.

    >>> print(printable("x = 1  # \x1b[2J \u202e"))
    x = 1  # \x1b[2J \u202e
    """
    return "".join(
        letter if letter in keep or letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text
    )


def plain(text: str, style: str = "") -> Text:
    """Return text for rich in which markup and control characters have no effect."""
    return Text(printable(text), style)


def set_log_levels(*, verbose: bool) -> None:
    """Let the terminal show what the user wants to see; Flower sets its own when it is first imported.

    Args:
        verbose: Whether that is everything.
    """
    importlib.import_module("flwr.app")
    logging.getLogger("flwr").setLevel(logging.INFO if verbose else logging.ERROR)
    logging.getLogger("flwr").propagate = False
    logging.getLogger("absl").setLevel(logging.ERROR)
    logger = logging.getLogger("bract")
    logger.setLevel(logging.INFO if verbose else logging.ERROR)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
