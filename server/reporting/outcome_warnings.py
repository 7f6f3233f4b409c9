"""Warnings about a run's images and about an end without a useful model."""

import math
from collections import Counter

from common.metrics import Counts
from server.reporting.chance import can_beat_chance, compare_with_chance
from server.rounds.messaging import NOT_FINITE
from server.rounds.update_filter import OUTLIER
from server.state.run_state import RunState

# An untrained model's loss is about ln(classes). A far larger one is that of a model that diverged.
_TIMES_UNTRAINED_LOSS = 10.0


def outcome_warnings(state: RunState, *, passed_on: bool = False) -> list[str]:
    """Return warnings about images, updates that were not finite and a model at chance.

    With `passed_on` they go with the model. Then those that nothing accounts for are left out.

    Images are a simulation's alone. Under a privacy mechanism the others follow from noised counts with their error, or
    in a simulation from its own evaluation. Where no counts may leave, nothing is known.
    """
    hidden = passed_on and state.config.private and state.config.metrics != "exact"
    warnings = [*(() if passed_on else state.context.data_warnings), *_not_finite(state)]
    if state.status == "complete":
        warnings += _at_chance(state, noised_only=hidden)
    return warnings


def _not_finite(state: RunState) -> list[str]:
    failures = [item for line in state.rounds for item in line["failures"].items()]
    broken = Counter(name for name, code in failures if code in (NOT_FINITE, OUTLIER))
    if not broken:
        return []
    return [
        f"{broken.total()} updates of {len(broken)} clients were not finite or far too long, and were left out. "
        f"{_too_fast(state)}"
    ]


def _at_chance(state: RunState, *, noised_only: bool) -> list[str]:
    # A model whose personal part stays with the clients is not whole without it.
    exact = state.personal_counts() if state.config.model.personal else state.counts()
    exact = None if noised_only else exact
    if exact is not None and exact.num_examples:
        return _exact_warnings(state, exact)
    if exact is not None and not state.config.private:
        return ["No image was held out, so nothing is known of the final model: give more images or a test set."]
    noised, cost = state.closing.noised, state.privacy_cost
    plan = None if cost is None else cost.example_plan.counts
    if noised is None or plan is None:
        return []
    spread = math.sqrt(noised.num_clients) * plan.of_one_client(plan.closing_noise_stddev)
    if not can_beat_chance(noised.cells, cell_stddev=spread):
        return ["The private counts have too much noise to tell the final model from chance, good or bad."]
    found = compare_with_chance(noised.cells, cell_stddev=spread)
    if not found.at_chance:
        return []
    accuracy, stddev = noised.accuracy(plan.of_one_client(plan.closing_noise_stddev))
    return [
        f"By its private counts the final model cannot be told from chance: accuracy {accuracy:.3f} +- {stddev:.3f}, "
        f"and the largest class alone is {found.largest_class:.3f} of the held-out units. {_advice(state)}"
    ]


def _exact_warnings(state: RunState, counts: Counts) -> list[str]:
    if not can_beat_chance(counts.confusion):
        few = "all of one class" if (counts.confusion.sum(axis=1) > 0).sum() == 1 else "too few"
        return [f"The {counts.num_examples} held-out images are {few}: nothing tells the final model from chance."]
    found = compare_with_chance(counts.confusion)
    if not found.at_chance:
        return []
    loss, untrained = counts.loss_sum / counts.num_examples, math.log(len(counts.confusion))
    # Under a mechanism noise alone explains a large loss. "not <=" and not ">", because the loss may be NaN.
    diverged = not state.config.private and not loss <= _TIMES_UNTRAINED_LOSS * untrained
    mark = " (simulation only)" if state.config.private and state.config.metrics != "exact" else ""
    total = counts.num_examples
    return [
        f"The final model cannot be told from chance{mark}: accuracy {found.right / total:.3f} on {total} held-out "
        f"images, and the largest class alone is {found.largest_class:.3f} of them. "
        + (f"Its loss, {loss:.3g}, says that training diverged. {_too_fast(state)}" if diverged else _advice(state))
    ]


def _too_fast(state: RunState) -> str:
    return f"Likely cause: {_rate(state)} is too high. Try a tenth of it, or less."


def _rate(state: RunState) -> str:
    rate = state.config.training.learning_rate
    return "training.learning-rate" + ("" if rate is None else f"={rate:g}")


def _advice(state: RunState) -> str:
    if state.config.takes_statistics:
        noise = "more noise than signal: try more images a client or a larger privacy.target-epsilon, or"
        return (
            f"Likely causes: {noise + ' ' if state.config.private else ''}labels that do not belong to the images: "
            "`bract data inspect` shows them."
        )
    if state.config.private:
        return (
            f"Likely causes: more noise than signal, or {_rate(state)} is too high or too low. `bract plan` compares "
            "signal and noise: more images a client, larger batches or a larger privacy.target-epsilon raise the first."
        )
    return (
        f"Likely causes: {_rate(state)} is too high or too low, num-rounds={state.config.num_rounds} is too small, or "
        "the labels do not belong to the images: `bract data inspect` shows them."
    )
