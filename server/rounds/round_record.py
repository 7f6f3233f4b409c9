"""Record of one round with the figures of its evaluation."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.metrics import CONFUSION_METRICS, METRICS, Counts, NoisedCounts


@dataclass(frozen=True)
class RoundRecord:
    """Facts about a finished round.

    `num_clients` updates were aggregated. `counts`, `personal` (of each client's own model) and `noised` are summed
    over the cohort and evaluate the model that *entered* the round. With `simulation_only`, `counts` come from the
    simulation's own evaluator, for the model that left the round, on all held-out images. `personal` is None where no
    tensors stay with clients, or under a mechanism. `bytes_up` and `bytes_down` are means over clients. In a `skipped`
    round too few updates came, so nothing was aggregated and the model did not change. `public_test` are the figures of
    the model that left the round on the server's own public images, None where it was not evaluated on them.
    `lost_after` has failure codes of clients that were lost after their masked update had come, so it is in the sum.
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
    public_test: Mapping[str, Any] | None = None
    lost_after: Mapping[str, str] = field(default_factory=dict)

    def as_dict(self, counts_noise: float = 0.0) -> dict[str, Any]:
        """Return the round's line of `rounds.jsonl`.

        Its `evaluated_model` is the number of the round that made the evaluated model, 0 for the initial one.
        `counts_noise` is the standard deviation of each client's noise in one count.
        """
        line: dict[str, Any] = {
            "round": self.server_round,
            "clients": self.num_clients,
            "failures": self.failures,
            "seconds": round(self.seconds, 4),
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
        }
        if self.lost_after:
            line["lost_after"] = dict(self.lost_after)
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
        if self.public_test is not None:
            line["public_test"] = {"evaluated_model": self.server_round, **self.public_test}
        return line


def noised_figures(
    noised: NoisedCounts, noise_stddev: float, total: tuple[float, float] | None = None
) -> dict[str, Any]:
    """Return the metrics of noised counts by key, at no cost in privacy.

    The counts are a pair (right, wrong) or a confusion matrix, summed over clients. `noise_stddev` is that of each
    client's noise in one cell. `total` is as in `NoisedCounts.accuracy`.
    """
    accuracy, stddev = noised.accuracy(noise_stddev, total)
    values: dict[str, Any] = {"accuracy": accuracy, "accuracy_stddev": stddev if math.isfinite(stddev) else None}
    if noised.cells.ndim == 2:
        # Noise can make a cell negative, which no score allows.
        counts = Counts(np.maximum(noised.cells, 0), math.nan)
        derived = (metric for metric in CONFUSION_METRICS if not (metric.detail or metric.key in values))
        values |= {metric.key: metric.compute(counts) for metric in derived}
    else:
        values["total"] = int(noised.cells.sum())
    return values | {"clients": noised.num_clients, "noise_stddev": noise_stddev}


def total_of(lines: Sequence[Mapping[str, Any]], num_clients: int) -> tuple[float, float] | None:
    """Return the mean noised total of rounds with its variance.

    Only rounds in which all of `num_clients` clients were counted say how many units these hold. The result is None
    without such a round.
    """
    private = [line["private"] for line in lines if "private" in line]
    whole = [values for values in private if "total" in values and values["clients"] == num_clients]
    if not whole:
        return None
    # Each total is the sum of two counts.
    variance = 2 * num_clients * sum(values["noise_stddev"] ** 2 for values in whole) / len(whole) ** 2
    return sum(values["total"] for values in whole) / len(whole), variance


def figures(counts: Counts) -> dict[str, Any]:
    """Return the metrics of exact counts by key, None where not finite."""
    values = {metric.key: metric.compute(counts) for metric in METRICS}
    finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
    return finite | {"examples": counts.num_examples}


def personal_figures(counts: Counts | None) -> dict[str, Any]:
    """Return metrics of the clients' own models by key, empty without such models."""
    if counts is None or not counts.num_examples:
        return {}
    values = figures(counts)
    return {f"personal_{metric.key}": values[metric.key] for metric in METRICS if not metric.detail}
