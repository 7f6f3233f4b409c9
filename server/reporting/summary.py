"""Summary of a run, written to `summary.json`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from common.config.loading import resolved
from common.metrics import CONFUSION_METRICS, Counts, Metric, Scores, score
from common.score_histograms import histogram_figures
from server.reporting.counts_file import subgroup_metrics
from server.reporting.missing_clients import missing_clients
from server.reporting.outcome_warnings import outcome_warnings
from server.reporting.privacy_statement import in_shares, versions
from server.rounds.round_record import noised_figures, total_of
from server.state.run_state import RunState

_UNTRAINED = {
    "head": "the global figures are with the starting head, which nobody trained",
    "batchnorm-affine": "the global figures are with the starting BatchNorm values, which nobody trained",
}


def summarise(state: RunState, seconds: Mapping[str, float]) -> dict[str, Any]:
    """Return the content of `summary.json`.

    Args:
        state: State of the run.
        seconds: Seconds of each phase of the run, and in `total`.
    """
    privacy_cost = state.privacy_cost
    counts = state.counts()
    scores = score(counts.confusion) if counts is not None else None
    rounds = state.rounds
    config = state.config
    return {
        "status": state.status,
        "private": privacy_cost is not None,
        "mechanism": config.privacy.mechanism,
        "epsilon_max": None if privacy_cost is None else privacy_cost.epsilon_max,
        "epsilon_so_far": _epsilon_so_far(state),
        "delta": None if privacy_cost is None else config.privacy.delta,
        "epsilon_max_rdp": None if privacy_cost is None else privacy_cost.rdp_max,
        **(in_shares(privacy_cost) if privacy_cost is not None else {}),
        "epsilon_parts": {} if privacy_cost is None else privacy_cost.parts(),
        "privacy_unit": None if privacy_cost is None else privacy_cost.example_plan.privacy_unit,
        "metrics": config.metrics,
        **_figures(counts),
        "per_class": _per_class(state, scores),
        "spread_over_clients": _spreads(state.closing.exact.values()),
        "personal": _personal(state),
        "private_metrics": private_metrics(state),
        "score_metrics": _score_metrics(state),
        **_subgroup_metrics(state),
        "public_test": state.latest_public_test,
        "simulation_only": privacy_cost is not None and counts is not None and config.metrics != "exact",
        "evaluated_model": state.evaluated_model,
        "evaluated_examples": 0 if counts is None else counts.num_examples,
        "rounds": len(rounds),
        "rounds_planned": config.num_rounds,
        "stopped_early": state.early,
        "final_model": state.final_round,
        "refusals": dict(state.refusals),
        "clients": len(state.clients),
        "cohort": config.cohort_size,
        "images_unused": state.context.images_unused,
        "skipped_files": state.context.skipped_files,
        "failures": sum(len(line["failures"]) for line in rounds),
        "rounds_skipped": sum("skipped" in line for line in rounds),
        "joined_late": dict(state.joined),
        "missing": missing_clients(state),
        "missing_at_close": dict(state.closing.failures),
        "warnings": outcome_warnings(state),
        "seconds": dict(seconds),
        "bytes_up_per_round_per_client": _mean(rounds, "bytes_up"),
        "bytes_down_per_round_per_client": _mean(rounds, "bytes_down"),
        "seed": config.seed,
        "config": resolved(config),
        "versions": versions(),
    }


def _epsilon_so_far(state: RunState) -> float | None:
    """Return a bound on what the rounds so far have cost, None if unknown.

    A complete run has released its closing counts too. One that stopped early did so by its results, and has cost the
    whole plan.
    """
    if state.privacy_cost is None:
        return None
    if state.status == "complete":
        return state.privacy_cost.epsilon_max
    known = next((line["epsilon_so_far"] for line in reversed(state.rounds) if "epsilon_so_far" in line), None)
    return known if state.rounds else 0.0


def _figures(counts: Counts | None) -> dict[str, float | None]:
    return {metric.key: None if counts is None else metric.compute(counts) for metric in CONFUSION_METRICS}


def _per_class(state: RunState, scores: Scores | None) -> dict[str, dict[str, float]]:
    if scores is None:
        return {}
    return {
        name: {key: float(getattr(scores, key)[row]) for key in ("precision", "recall", "f1")}
        for row, name in enumerate(state.classes)
    }


def private_metrics(state: RunState) -> dict[str, Any] | None:
    """Return the latest noised figures of held-out units, None if none were released."""
    privacy_cost = state.privacy_cost
    if privacy_cost is None or privacy_cost.example_plan.counts is None:
        return None
    noised = state.closing.noised
    if noised is not None:
        plan = privacy_cost.example_plan.counts
        noise_stddev = plan.of_one_client(plan.closing_noise_stddev)
        # The matrix of all clients counts the units that the pairs of all clients have counted in each round.
        total = total_of(state.rounds, len(state.clients)) if noised.num_clients == len(state.clients) else None
        return {"evaluated_model": state.final_round} | noised_figures(noised, noise_stddev, total)
    noised_rounds = [line["private"] for line in state.rounds if "private" in line]
    return dict(noised_rounds[-1]) if noised_rounds else None


def _score_metrics(state: RunState) -> dict[str, Any] | None:
    """Return AUROC and calibration of the final model, None if no histograms were released."""
    histograms, cost = state.closing.histograms, state.privacy_cost
    if histograms is None:
        return None
    counts = None if cost is None else cost.example_plan.counts
    # Exact histograms may leave under a mechanism too, whose plan then has no counts.
    noises: tuple[float, ...] = (0.0, 0.0)
    if counts is not None:
        of_all = (counts.scores_noise_stddev or 0.0, counts.calibration_noise_stddev or 0.0)
        noises = tuple(map(counts.of_one_client, of_all))
    figures = histogram_figures(histograms, state.classes, scores_noise=noises[0], confidence_noise=noises[1])
    return {"evaluated_model": state.final_round, "noised": counts is not None, **figures}


def _subgroup_metrics(state: RunState) -> dict[str, Any]:
    """Return the accuracy by subgroup, empty if counts are not divided."""
    if not state.config.data.subgroup_names:
        return {}
    return {"subgroup_metrics": subgroup_metrics(state)}


def _personal(state: RunState) -> dict[str, Any] | None:
    """Return figures of the clients' own models, without counts under a privacy mechanism."""
    part = state.config.model.personal
    if not part:
        return None
    note = f"{_UNTRAINED[part]}: what a client gets that never took part"
    if state.config.private:
        note += f"; personal accuracy is not released under {state.config.privacy.mechanism}"
    return {
        "part": part,
        **_figures(state.personal_counts()),
        "spread_over_clients": _spreads(state.closing.personal.values()),
        "note": note,
    }


def _spreads(parts: Iterable[Counts]) -> dict[str, dict[str, float] | None]:
    # A client without held-out images has no accuracy.
    evaluated = [part for part in parts if part.num_examples]
    return {metric.key: _spread(evaluated, metric) for metric in CONFUSION_METRICS}


def _spread(parts: Sequence[Counts], metric: Metric) -> dict[str, float] | None:
    if not parts:
        return None
    values = np.array([metric.compute(part) for part in parts])
    return {
        "min": float(values.min()),
        "median": float(np.median(values)),
        "max": float(values.max()),
        "std": float(values.std()),
    }


def _mean(rounds: Sequence[dict[str, Any]], key: str) -> float | None:
    return float(np.mean([line[key] for line in rounds])) if rounds else None
