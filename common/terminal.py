"""What every command shares: a user's mistake is one screen of text, and long work shows a bar."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from common.errors import BractError
from common.progress import ProgressFactory


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
            f"[bold red]{type(error).__name__}[/]: {escape(str(error))}", highlight=False, soft_wrap=True
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
