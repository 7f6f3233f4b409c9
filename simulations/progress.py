"""What a person sees while a simulation runs."""

from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.progress import Progress

from common.terminal import new_bar
from server.tracking import RoundRecord


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

    def start(self, num_rounds: int, num_clients: int) -> None:
        """Open the bar over rounds."""
        self._num_rounds = num_rounds
        self._console.print(f"Training: {num_rounds} rounds, {num_clients} clients")
        self._bar = new_bar(self._console)
        self._task = self._bar.add_task("Rounds", total=num_rounds)
        self._bar.start()

    def round_done(self, record: RoundRecord) -> None:
        """Print the round and move the bar."""
        self.show_round(record.as_dict())

    def show_round(self, line: dict[str, Any]) -> None:
        """Print one line of `rounds.jsonl` and move the bar."""
        text = f"round {line['round']:>3}/{self._num_rounds}  {line['clients']} clients"
        if "accuracy" in line:
            before = "" if line["simulation_only"] else " before it"
            text += f"  accuracy{before} {line['accuracy']:.3f}  macro F1 {line['macro_f1']:.3f}"
            if "personal_accuracy" in line:
                text += f"  own {line['personal_accuracy']:.3f}"
            text += "  loss not finite" if line["loss"] is None else f"  loss {line['loss']:.3f}"
        if line["failures"]:
            text += f"  [red]{len(line['failures'])} failed[/red]"
        self._console.print(text, highlight=False)
        if self._bar is not None:
            self._bar.update(self._task, completed=line["round"])

    def stop(self) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
