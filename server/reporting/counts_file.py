"""Counts of a run's final model and clients, written to `counts.json`."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from common.messages.codec import Evaluation
from common.metrics import Counts, NoisedCounts
from common.subgroup_counts import subgroup_figures
from server.reporting.missing_clients import participation
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState

COUNTS_FILE = "counts.json"


def save_counts(directory: RunDirectory, state: RunState) -> None:
    """Write the counts that summary and curves leave out."""
    # One line, because a matrix of 100 classes would take 10,000.
    directory.write_text(COUNTS_FILE, json.dumps(final_counts(state), separators=(",", ":")) + "\n")


def final_counts(state: RunState) -> dict[str, Any]:
    """Return the content of `counts.json`.

    `exact` and `images` are marked where no real federation could see them. A part that nobody has is null. `units` are
    what clients declared, `asked` and `missed` the rounds that changed the model.
    """
    hidden = state.config.private and state.config.metrics != "exact"
    return {
        "classes": list(state.classes),
        "evaluated_model": state.evaluated_model,
        "exact": _exact(state.counts(), state.closing.by_client, simulation_only=hidden),
        "private": _private(state),
        "clients": {
            name: {"units": state.clients[name].declaration.num_units, "asked": asked, "missed": missed}
            for name, (asked, missed) in participation(state).items()
        },
        "images": _images(state.context.class_counts, sorted(state.clients)),
        **({"subgroups": subgroup_metrics(state)} if state.config.data.subgroup_names else {}),
    }


def subgroup_metrics(state: RunState) -> dict[str, Any] | None:
    """Return the final model's accuracy by subgroup, None if none was released."""
    counts, cost = state.closing.subgroups, state.privacy_cost
    if counts is None:
        return None
    plan = None if cost is None else cost.example_plan.counts
    # Exact counts may leave under a mechanism too, whose plan then has no counts.
    noise = 0.0 if plan is None else plan.of_one_client(plan.subgroups_noise_stddev or 0.0)
    data = state.config.data
    return {
        "evaluated_model": state.final_round,
        "column": data.subgroup_column,
        "noised": plan is not None,
        "noise_stddev": noise,
        "num_clients": counts.num_clients,
        "subgroups": subgroup_figures(counts, data.subgroup_names, noise_stddev=noise),
    }


def _exact(
    counts: Counts | None, by_client: Mapping[str, Evaluation], *, simulation_only: bool
) -> dict[str, Any] | None:
    if counts is None:
        return None
    clients = {name: _of_client(part.counts, part.personal) for name, part in by_client.items() if part.counts}
    return {"simulation_only": simulation_only, "confusion": counts.confusion.tolist(), "clients": clients}


def _of_client(counts: Counts, personal: Counts | None) -> dict[str, Any]:
    """Return the held-out images of one client by class."""
    own = {} if personal is None else {"personal_right": int(np.trace(personal.confusion))}
    return {"by_class": counts.confusion.sum(axis=1).tolist(), "right": int(np.trace(counts.confusion))} | own


def _private(state: RunState) -> dict[str, Any] | None:
    plan = None if state.privacy_cost is None else state.privacy_cost.example_plan.counts
    noised = {name: part.noised for name, part in state.closing.by_client.items() if part.noised is not None}
    # In a secure sum no client's own counts are known, and the sum is.
    summed = state.closing.noised
    if plan is None or summed is None:
        return None
    stddev = plan.of_one_client(plan.closing_noise_stddev)
    return {
        "evaluated_model": state.final_round,
        "noise_stddev": stddev,
        "num_clients": summed.num_clients,
        "confusion": summed.cells.tolist(),
        "clients": {name: _noised_accuracy(counts, stddev) for name, counts in noised.items()},
    }


def _noised_accuracy(counts: NoisedCounts, noise_stddev: float) -> dict[str, float | None]:
    accuracy, stddev = counts.accuracy(noise_stddev)
    return {"accuracy": accuracy, "accuracy_stddev": stddev if np.isfinite(stddev) else None}


def _images(class_counts: np.ndarray | None, names: Iterable[str]) -> dict[str, Any] | None:
    """Return the images of each client by class in a simulation."""
    if class_counts is None:
        return None
    return {"simulation_only": True, "clients": dict(zip(names, class_counts.T.tolist(), strict=False))}
