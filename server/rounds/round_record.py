"""Record of one round."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from common.metrics import Counts, NoisedCounts, score


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
