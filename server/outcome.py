"""What a run came to, and the files that say so."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.config import resolved
from common.metrics import Counts, Scores, score, total
from common.sections import RunConfig
from server.clock import Clock
from server.report import draw_confusion, draw_curves, draw_partition
from server.rounds import Arrays, Client, RoundResult
from server.run_directory import RunDirectory
from server.statement import Spending, account, privacy_statement, versions
from server.tracking import figures


@dataclass
class Outcome:
    """State of a run; `save_outcome` writes it.

    Attributes:
        config: The run.
        clients: By name.
        cohorts: Names of each planned round.
        arrays: Global model after the last complete round.
        class_counts: (classes, clients) images held; simulations only.
        rounds: Lines of `rounds.jsonl`.
        closing: Counts of the final model by client name.
        last: Counts of the latest round.
        status: `interrupted` until everything is done.
        spending: Privacy spent; the whole plan until the run is complete.
    """

    config: RunConfig
    clients: Mapping[str, Client]
    cohorts: Sequence[Sequence[str]]
    arrays: Arrays
    class_counts: np.ndarray | None
    rounds: list[dict[str, Any]] = field(default_factory=list)
    closing: dict[str, Counts] = field(default_factory=dict)
    last: Counts | None = None
    status: str = "interrupted"
    spending: Spending | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, a public constant of the run."""
        return next(iter(self.clients.values())).declaration.classes

    def add(self, result: RoundResult) -> None:
        """Take over the model and the record of a complete round."""
        self.arrays = result.arrays
        self.last = result.record.counts
        self.rounds.append(result.record.as_dict())

    def register(self) -> None:
        """Make every client's plan before anything is trained.

        Raises:
            ConfigError: A client admits no plan, for instance because delta is too large.
        """
        self.spending = self._account(complete=False)

    def finish(self) -> None:
        """The run went to its planned end: charge the rounds that were sent, not the whole plan."""
        self.spending = self._account(complete=True)
        self.status = "complete"

    def _account(self, *, complete: bool) -> Spending | None:
        if not self.config.private:
            return None
        units = {name: client.declaration.num_units for name, client in self.clients.items()}
        return account(self.config, units, self.cohorts, complete=complete)

    def counts(self) -> Counts | None:
        """Counts of the final model, or the latest there are if the run stopped early."""
        return total(self.closing.values()) or self.last

    @property
    def evaluated_model(self) -> int | None:
        """The round after which the model was that `counts` belong to; 0 is the start."""
        if self.closing:
            return self.config.num_rounds
        return self.rounds[-1].get("evaluated_model") if self.rounds else None


def save_progress(directory: RunDirectory, outcome: Outcome, clock: Clock) -> None:
    """Write model and summary after a round, so that they are true even if the process is killed.

    The cost does not depend on the number of clients.
    """
    directory.write_model(outcome.arrays, model_card(outcome))
    directory.write_json("summary.json", summarise(outcome, clock.seconds()))


def save_statement(directory: RunDirectory, outcome: Outcome) -> None:
    """Write the privacy statement: the whole plan before round 1, what was charged at the end."""
    statement = privacy_statement(outcome.config, outcome.spending, status=outcome.status)
    directory.write_json("privacy.json", statement)


def draw_outcome(directory: RunDirectory, outcome: Outcome) -> None:
    """Draw the pictures of a run that has ended, early or not."""
    folder = directory.path
    counts = outcome.counts()
    marks = " (simulation only)" if outcome.config.private else ""
    if counts is not None:
        title = f"model after round {outcome.evaluated_model}, {counts.num_examples} held-out images{marks}"
        draw_confusion(folder / "confusion.png", counts.confusion, outcome.classes, title)
    whose = "all clients" if outcome.config.private else "each round's clients"
    draw_curves(folder / "curves.png", [*outcome.rounds, *_closing_line(outcome)], f"held-out images of {whose}{marks}")
    if outcome.class_counts is not None:
        draw_partition(folder / "partition.png", outcome.class_counts, outcome.classes)


def _closing_line(outcome: Outcome) -> list[dict[str, Any]]:
    """The closing evaluation as one more point of the curves; under DP the last round has it already."""
    counts = total(outcome.closing.values())
    if counts is None or outcome.config.private or not counts.num_examples:
        return []
    return [{"evaluated_model": outcome.config.num_rounds, **figures(counts)}]


def summarise(outcome: Outcome, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The content of `summary.json`."""
    spending = outcome.spending
    counts = outcome.counts()
    scores = score(counts.confusion) if counts is not None else None
    each = [score(part.confusion) for part in outcome.closing.values() if part.num_examples]
    rounds = outcome.rounds
    config = outcome.config
    return {
        "status": outcome.status,
        "private": spending is not None,
        "mechanism": config.privacy.mechanism,
        "epsilon_max": None if spending is None else spending.epsilon_max,
        "delta": None if spending is None else config.privacy.delta,
        "ledger": "none yet",
        **{name: None if scores is None else getattr(scores, name) for name in _HEADLINES},
        "per_class": _per_class(outcome, scores),
        "spread_over_clients": {name: _spread(each, name) for name in _HEADLINES},
        "simulation_only": spending is not None and counts is not None,
        "evaluated_model": outcome.evaluated_model,
        "evaluated_examples": 0 if counts is None else counts.num_examples,
        "rounds": len(rounds),
        "rounds_planned": config.num_rounds,
        "clients": len(outcome.clients),
        "cohort": config.cohort_size,
        "failures": sum(len(line["failures"]) for line in rounds),
        "seconds": dict(seconds),
        "bytes_up_per_round_per_client": _mean(rounds, "bytes_up"),
        "bytes_down_per_round_per_client": _mean(rounds, "bytes_down"),
        "seed": config.seed,
        "config": resolved(config),
        "versions": versions(),
    }


_HEADLINES = ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy")


def _per_class(outcome: Outcome, scores: Scores | None) -> dict[str, dict[str, float]]:
    if scores is None:
        return {}
    return {
        name: {key: float(getattr(scores, key)[row]) for key in ("precision", "recall", "f1")}
        for row, name in enumerate(outcome.classes)
    }


def _spread(scores: Sequence[Scores], name: str) -> dict[str, float] | None:
    if not scores:
        return None
    values = np.array([getattr(part, name) for part in scores])
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
        "std": float(values.std()),
    }


def _mean(rounds: Sequence[dict[str, Any]], key: str) -> float | None:
    return float(np.mean([line[key] for line in rounds])) if rounds else None


def model_card(outcome: Outcome) -> dict[str, Any]:
    """The content of `model/card.json`: all that is needed to use the model; no times, no paths."""
    config, spending = outcome.config, outcome.spending
    declared = next(iter(outcome.clients.values())).declaration
    card: dict[str, Any] = {
        "format": 1,
        "classes": list(outcome.classes),
        "backbone": config.model.backbone,
        "backbone_sha256": declared.backbone_hash,
        "tuning": config.model.tuning,
        "input_shape": list(declared.input_shape),
        "tensors": {name: list(array.shape) for name, array in outcome.arrays.items()},
        "preprocessing": _preprocessing(config, declared.input_shape),
        "mechanism": config.privacy.mechanism,
        "private": spending is not None,
    }
    if spending is not None:
        card |= {"epsilon_max": spending.epsilon_max, "delta": config.privacy.delta}
    return card


def _preprocessing(config: RunConfig, input_shape: tuple[int, ...]) -> dict[str, Any]:
    from common.models.backbones import BACKBONES

    if config.model.tuning == "full":
        return {"image_size": input_shape[0], "channels": input_shape[2], "mean": 127.5, "std": 127.5}
    info = BACKBONES[config.model.backbone]
    return {
        "image_size": config.data.image_size or info.image_size,
        "channels": 3,
        "mean": info.mean,
        "std": info.std,
        "resize": "shorter side, bicubic, centre square",
        "pooling": "mean over positions of timm's forward_features",
        "features": "signed square root, centred and scaled to unit length for each image",
    }
