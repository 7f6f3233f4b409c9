"""Progress of a run in the terminal."""

import time
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from common.metrics import METRICS, Metric, interval
from common.system.console import new_bar

# Seconds between two lines of long work where no bar can be drawn.
_PATIENCE = 10.0


class TerminalProgress:
    """Tracker that prints bars for long work and a line for each round.

    Args:
        console: Console to print to. A quiet console prints nothing.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: Any = None
        self._num_rounds = 0

    def work(self, total: int, label: str) -> Callable[[int], None]:
        """Open a bar of `total` steps and return the function that moves it."""
        self.stop()
        bar = self._bar = new_bar(self._console)
        task = bar.add_task(label, total=total)
        self._draw(bar)
        done, said = 0, time.monotonic()

        def advance(amount: int) -> None:
            nonlocal done, said
            done += amount
            bar.update(task, completed=done)
            # Log files and notebooks.
            if not self._console.is_interactive and done < total and time.monotonic() - said >= _PATIENCE:
                said = time.monotonic()
                self._console.print(f"{label}: {done} of {total}")
            if done >= total:
                self.stop()
                self._console.print(f"{label}: {total} done")

        return advance

    def warn(self, text: str) -> None:
        """Print a warning in place of the open bar."""
        self.stop()
        self._console.print(f"Warning  {text}", style="bold red", highlight=False, soft_wrap=True, markup=False)

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Open the bar of rounds."""
        self._num_rounds = num_rounds
        before = f", {done} of them done before" if done else ""
        self._console.print(f"Training: {num_rounds} rounds{before}, {num_clients} clients")
        self._bar = new_bar(self._console)
        self._task = self._bar.add_task("Rounds", total=num_rounds, completed=done)
        self._draw(self._bar)

    def round_done(self, line: dict[str, Any]) -> None:
        """Print the line of a round and move the bar."""
        text = f"round {line['round']:>3}/{self._num_rounds}  {line['clients']} clients"
        if "skipped" in line:
            text += "  [red]skipped: too few updates[/red]"
        if "accuracy" in line:
            text += "" if line["simulation_only"] else "  model before the round:"
            text += "".join(_figure(metric, line[metric.key]) for metric in METRICS if metric.short)
            if "personal_accuracy" in line:
                text += f"  own {line['personal_accuracy']:.3f}"
        if "private" in line:
            text += f"  private {_plus_minus(line['private'])}"
        if "epsilon_so_far" in line:
            text += f"  epsilon {line['epsilon_so_far']:.2f} of {line['epsilon_of_plan']:.2f}"
        if "public_test" in line:
            text += f"  public test {line['public_test']['accuracy']:.3f}"
        if line["failures"]:
            text += f"  [red]{len(line['failures'])} failed[/red] ({_causes(line['failures'])})"
        if lost := line.get("lost_after"):
            text += f"  {len(lost)} lost after the masked update, which is in the sum ({_causes(lost)})"
        self._console.print(text, highlight=False, soft_wrap=True)
        if self._bar is not None:
            self._bar.update(self._task, completed=line["round"])

    def stop(self) -> None:
        """Close the open bar."""
        if self._bar is not None:
            if self._bar.live.is_started:
                self._bar.stop()
            self._bar = None

    def _draw(self, bar: Progress) -> None:
        # Where no bar can be drawn, rich would print an empty line for each.
        if self._console.is_interactive:
            bar.start()


def _figure(metric: Metric, value: float | None) -> str:
    return f"  {metric.short} " + ("not finite" if value is None else f"{value:.{metric.decimals - 1}f}")


def _causes(failures: dict[str, str]) -> str:
    """Return the first three failures with their reasons."""
    first = [f"{escape(name)}: {escape(reason)}" for name, reason in list(failures.items())[:3]]
    return ", ".join([*first, *(["..."] if len(failures) > 3 else [])])


def _plus_minus(private: dict[str, Any]) -> str:
    spread = private["accuracy_stddev"]
    if spread is None or spread > 1:
        return "only noise"
    low, high = interval(private["accuracy"], spread)
    return f"{private['accuracy']:.2f} ({low:.2f} to {high:.2f})"
