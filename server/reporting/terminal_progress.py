"""What a person sees while a simulation runs."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from common.metrics import METRICS, Metric
from common.system.console import new_bar


class TerminalProgress:
    """Bars for long work and a line a round.

    Args:
        console: Where to print; a quiet console prints nothing.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: Progress | None = None
        self._task: Any = None
        self._num_rounds = 0

    def work(self, total: int, what: str) -> Callable[[int], None]:
        """Open a bar; it closes when the total is reached, or by `stop`."""
        self.stop()
        bar = self._bar = new_bar(self._console)
        task = bar.add_task(what, total=total)
        bar.start()
        done = 0

        def advance(amount: int) -> None:
            nonlocal done
            done += amount
            bar.update(task, completed=done)
            if done >= total:
                self.stop()
                self._console.print(f"{what}: {total} done")

        return advance

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Open the bar over rounds."""
        self._num_rounds = num_rounds
        before = f", {done} of them done before" if done else ""
        self._console.print(f"Training: {num_rounds} rounds{before}, {num_clients} clients")
        self._bar = new_bar(self._console)
        self._task = self._bar.add_task("Rounds", total=num_rounds, completed=done)
        self._bar.start()

    def round_done(self, line: dict[str, Any]) -> None:
        """Print one line of `rounds.jsonl` and move the bar."""
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
        if line["failures"]:
            text += f"  [red]{len(line['failures'])} failed[/red] ({_causes(line['failures'])})"
        self._console.print(text, highlight=False, soft_wrap=True)
        if self._bar is not None:
            self._bar.update(self._task, completed=line["round"])

    def stop(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def _figure(metric: Metric, value: float | None) -> str:
    return f"  {metric.short} " + ("not finite" if value is None else f"{value:.{metric.decimals - 1}f}")


def _causes(failures: dict[str, str]) -> str:
    """Who failed and why, as far as it fits a line."""
    shown = [f"{escape(name)}: {escape(why)}" for name, why in list(failures.items())[:3]]
    return ", ".join([*shown, *(["..."] if len(failures) > 3 else [])])


def _plus_minus(private: dict[str, Any]) -> str:
    spread = private["accuracy_stddev"]
    return "only noise" if spread is None or spread > 1 else f"{private['accuracy']:.2f}+-{spread:.2f}"
