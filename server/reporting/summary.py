"""What `summary.json` says of a run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.config.loading import resolved
from common.metrics import Counts, Scores, score
from server.reporting.privacy_statement import versions
from server.rounds.round_record import noised_figures
from server.state.run_state import Outcome

_HEADLINES = ("accuracy", "macro_f1", "weighted_f1", "balanced_accuracy")
_UNTRAINED = {
    "head": "the global figures are with the starting head, which nobody trained",
    "batchnorm-affine": "the global figures are with the starting BatchNorm values, which nobody trained",
}


def summarise(outcome: Outcome, seconds: Mapping[str, float]) -> dict[str, Any]:
    """The content of `summary.json`."""
    spending = outcome.spending
    counts = outcome.counts()
    scores = score(counts.confusion) if counts is not None else None
    rounds = outcome.rounds
    config = outcome.config
    return {
        "status": outcome.status,
        "private": spending is not None,
        "mechanism": config.privacy.mechanism,
        "epsilon_max": None if spending is None else spending.epsilon_max,
        "delta": None if spending is None else config.privacy.delta,
        "epsilon_max_rdp": None if spending is None else spending.rdp_max,
        "privacy_unit": None if spending is None else spending.any_plan.privacy_unit,
        "metrics": config.metrics,
        **{name: None if scores is None else getattr(scores, name) for name in _HEADLINES},
        "per_class": _per_class(outcome, scores),
        "spread_over_clients": _spreads(outcome.closing.values()),
        "personal": _personal(outcome),
        "private_metrics": _private_metrics(outcome),
        "simulation_only": spending is not None and counts is not None and config.metrics != "exact",
        "evaluated_model": outcome.evaluated_model,
        "evaluated_examples": 0 if counts is None else counts.num_examples,
        "rounds": len(rounds),
        "rounds_planned": config.num_rounds,
        "stopped_early": outcome.early,
        "final_model": outcome.final_round,
        "refusals": dict(outcome.refusals),
        "clients": len(outcome.clients),
        "cohort": config.cohort_size,
        "images_unused": outcome.images_unused,
        "skipped_files": outcome.skipped_files,
        "failures": sum(len(line["failures"]) for line in rounds),
        "rounds_skipped": sum("skipped" in line for line in rounds),
        "joined_late": dict(outcome.joined),
        "missing_at_close": dict(outcome.closing_failures),
        "seconds": dict(seconds),
        "bytes_up_per_round_per_client": _mean(rounds, "bytes_up"),
        "bytes_down_per_round_per_client": _mean(rounds, "bytes_down"),
        "seed": config.seed,
        "config": resolved(config),
        "versions": versions(),
    }


def _per_class(outcome: Outcome, scores: Scores | None) -> dict[str, dict[str, float]]:
    if scores is None:
        return {}
    return {
        name: {key: float(getattr(scores, key)[row]) for key in ("precision", "recall", "f1")}
        for row, name in enumerate(outcome.classes)
    }


def _private_metrics(outcome: Outcome) -> dict[str, Any] | None:
    """What the clients let leave of their held-out units, with noise; the latest there is."""
    spending = outcome.spending
    if spending is None or spending.any_plan.counts is None:
        return None
    if outcome.closing_noised is not None:
        noise = spending.any_plan.counts.closing_noise_stddev
        return {"evaluated_model": outcome.final_round} | noised_figures(outcome.closing_noised, noise)
    return dict(outcome.rounds[-1]["private"]) if outcome.rounds and "private" in outcome.rounds[-1] else None


def _personal(outcome: Outcome) -> dict[str, Any] | None:
    """How each client's own model does beside the global one; no counts of it leave under a mechanism."""
    part = outcome.config.model.personal
    if not part:
        return None
    counts = outcome.personal_counts()
    scores = score(counts.confusion) if counts is not None else None
    note = f"{_UNTRAINED[part]}: what a client gets that never took part"
    if outcome.config.private:
        note += f"; personal accuracy is not released under {outcome.config.privacy.mechanism}"
    return {
        "part": part,
        **{name: None if scores is None else getattr(scores, name) for name in _HEADLINES},
        "spread_over_clients": _spreads(outcome.closing_personal.values()),
        "note": note,
    }


def _spreads(parts: Iterable[Counts]) -> dict[str, dict[str, float] | None]:
    each = [score(part.confusion) for part in parts if part.num_examples]
    return {name: _spread(each, name) for name in _HEADLINES}


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
