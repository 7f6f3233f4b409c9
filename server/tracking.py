"""What happens in a run, told to whoever listens: files, a terminal, a log."""

import json
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from common.metrics import Counts, NoisedCounts, score

_log = logging.getLogger("bract.server")


@dataclass(frozen=True)
class RoundRecord:
    """One finished round.

    Attributes:
        server_round: From 1; 0 is the model before any training.
        num_clients: How many updates were aggregated.
        failures: Failure code by client name.
        counts: Evaluation of the model that *entered* the round, summed over the
            cohort; or of the model that left it, if `simulation_only`.
        personal: The same of each client's own model, where tensors stay with clients
            and no mechanism is on; always of the model that entered the round.
        simulation_only: The counts come from the simulation's own evaluator.
        seconds: Wall time of the round.
        bytes_up: Mean bytes one client sent.
        bytes_down: Mean bytes one client received.
        noised: What the clients said of the model that entered the round, with noise.
        skipped: Too few updates could be used: nothing was aggregated, and the model stayed as it was.
    """

    server_round: int
    num_clients: int
    failures: dict[str, str]
    counts: Counts | None
    simulation_only: bool
    seconds: float
    bytes_up: float
    bytes_down: float
    personal: Counts | None = None
    noised: NoisedCounts | None = None
    skipped: bool = False

    def as_dict(self, counts_noise: float = 0.0) -> dict[str, Any]:
        """The line that goes into `rounds.jsonl`; `evaluated_model` is the round that made the evaluated model.

        Args:
            counts_noise: Standard deviation of each client's noise in one count.
        """
        line: dict[str, Any] = {
            "round": self.server_round,
            "clients": self.num_clients,
            "failures": self.failures,
            "seconds": round(self.seconds, 4),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }
        if self.skipped:
            line["skipped"] = True
        if self.counts is not None and self.counts.num_examples:
            line |= {
                "evaluated_model": self.server_round if self.simulation_only else self.server_round - 1,
                "simulation_only": self.simulation_only,
                **figures(self.counts),
                **personal_figures(self.personal),
            }
        if self.noised is not None:
            line["private"] = {"evaluated_model": self.server_round - 1} | noised_figures(self.noised, counts_noise)
        return line


def noised_figures(noised: NoisedCounts, noise_stddev: float) -> dict[str, Any]:
    """What a line says of counts that left with noise: derived figures cost nothing more.

    Args:
        noised: A pair (right, wrong) or a confusion matrix, summed over clients.
        noise_stddev: Of each client's noise in one cell.
    """
    accuracy, spread = noised.accuracy(noise_stddev)
    found: dict[str, Any] = {"accuracy": accuracy, "accuracy_stddev": spread if math.isfinite(spread) else None}
    if noised.cells.ndim == 2:
        scores = score(np.maximum(noised.cells, 0))
        found |= {"balanced_accuracy": scores.balanced_accuracy, "macro_f1": scores.macro_f1}
    return found | {"clients": noised.num_clients, "noise_stddev": noise_stddev}


def figures(counts: Counts) -> dict[str, Any]:
    """What a line says of an evaluation of at least one image; a loss that is not finite becomes None."""
    scores = score(counts.confusion)
    loss = counts.loss_sum / counts.num_examples if counts.num_examples else math.nan
    return {
        "accuracy": scores.accuracy,
        "balanced_accuracy": scores.balanced_accuracy,
        "macro_f1": scores.macro_f1,
        "weighted_f1": scores.weighted_f1,
        "loss": loss if math.isfinite(loss) else None,
        "examples": counts.num_examples,
    }


def personal_figures(counts: Counts | None) -> dict[str, Any]:
    """What a line says of clients' own models; nothing if there are none."""
    if counts is None or not counts.num_examples:
        return {}
    found = figures(counts)
    return {f"personal_{name}": found[name] for name in ("accuracy", "balanced_accuracy", "macro_f1", "loss")}


class Tracker(Protocol):
    """Listens to a run."""

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Called when clients are known, before the first round; `done` rounds were run before this process."""
        ...

    def round_done(self, line: dict[str, Any]) -> None:
        """Called after each round with its line of `rounds.jsonl`."""
        ...

    def stop(self) -> None:
        """Called once, however the run ended."""
        ...


class LogTracker:
    """Writes a line a round to the log: what `flwr run` streams."""

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Say what is about to happen."""
        _log.info("%d rounds over %d clients, %d done before", num_rounds, num_clients, done)

    def round_done(self, line: dict[str, Any]) -> None:
        """Say how the round went."""
        _log.info("%s", json.dumps(line))

    def stop(self) -> None:
        """Nothing is left open."""


class FileTracker:
    """Writes a line a round to `rounds.jsonl`, flushed at once.

    Args:
        file: Written anew.
        before: Lines of rounds that were run before this process.
    """

    def __init__(self, file: Path, before: Sequence[dict[str, Any]] = ()) -> None:
        self._stream = file.open("w", encoding="utf-8")
        for line in before:
            self.round_done(line)

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Nothing to write before the first round."""

    def round_done(self, line: dict[str, Any]) -> None:
        """Append one line."""
        self._stream.write(json.dumps(line) + "\n")
        self._stream.flush()

    def stop(self) -> None:
        """Close the file."""
        self._stream.close()


class Trackers:
    """Several trackers as one."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.start(num_rounds, num_clients, done)

    def round_done(self, line: dict[str, Any]) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.round_done(line)

    def stop(self) -> None:
        """Pass on."""
        for tracker in self._trackers:
            tracker.stop()
