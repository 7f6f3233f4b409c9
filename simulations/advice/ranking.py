"""Ranking of candidate settings by their expected error."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np

from common.config.loading import Scalar
from common.errors import ConfigError
from common.randomness import public_stream
from common.system.progress import ProgressFactory, no_progress
from common.system.threads import num_cores, pin_to_one_thread
from simulations.advice.candidates import Candidate, candidates
from simulations.advice.features import TASKS, FeatureTask
from simulations.advice.federation import TEST_ROWS, SizeGroup, SyntheticFederation
from simulations.advice.trial import error_of_trial, error_without_noise

NUM_SEEDS = 2
MOST_ROWS = 1_500
# Advice repeats. The settings' own seed has nothing to do with it.
_SEED = 0


@dataclass(frozen=True)
class Ranked:
    """A candidate with the test errors of its trials.

    Attributes:
        candidate: The settings.
        errors: Name of a task -> one error for each seed.
        is_clear: True if it errs less than the next rank in every trial, False for the last rank.
    """

    candidate: Candidate
    errors: Mapping[str, tuple[float, ...]]
    is_clear: bool = False

    @cached_property
    def expected_error(self) -> float:
        """Mean error over tasks and seeds."""
        return float(np.mean(list(self.errors.values())))


@dataclass(frozen=True)
class Advice:
    """Candidates by rank with what the ranking was computed on.

    Attributes:
        ranked: Private candidates, the smallest expected error first.
        without_noise: Name of a task -> one error without noise for each seed.
        left_out: Name of a combination that is not possible -> the reason.
        groups: The clients by size.
        num_classes: Number of classes.
        num_features: Number of features.
        tasks: Kinds of classification tasks.
    """

    ranked: tuple[Ranked, ...]
    without_noise: Mapping[str, tuple[float, ...]]
    left_out: Mapping[str, str]
    groups: tuple[SizeGroup, ...]
    num_classes: int
    num_features: int
    tasks: tuple[FeatureTask, ...]

    @property
    def num_clients(self) -> int:
        """Number of clients."""
        return sum(group.num_clients for group in self.groups)

    @property
    def total_units(self) -> int:
        """Declared number of units of all clients."""
        return sum(group.num_clients * group.num_units for group in self.groups)

    @property
    def drawn_rows(self) -> int:
        """Number of training images that each trial drew."""
        return min(self.total_units, MOST_ROWS)


def advise(
    given: Mapping[str, Scalar],
    groups: Sequence[SizeGroup],
    *,
    num_classes: int,
    num_features: int,
    tasks: Sequence[FeatureTask] = TASKS,
    num_seeds: int | None = None,
    progress: ProgressFactory = no_progress,
) -> Advice:
    """Rank mechanisms, aggregations and numbers of rounds by their expected error.

    All candidates see the same synthetic federations. The result repeats.

    Args:
        given: The user's settings, without those that are ranked.
        groups: The clients by size.
        num_classes: Number of classes.
        num_features: Number of features.
        tasks: Kinds of classification tasks.
        num_seeds: Federations that are drawn of each task; `NUM_SEEDS` if left out.
        progress: Progress report that counts trials.

    Raises:
        ConfigError: A setting is wrong, or nothing is possible.
    """
    choices, left_out = candidates(given, groups)
    if not choices:
        raise ConfigError("; ".join(f"{name}: {reason}" for name, reason in left_out.items()))
    trials = [(task, seed) for task in tasks for seed in range(num_seeds or NUM_SEEDS)]
    advance = progress(len(trials) * (1 + len(choices)), "Trying settings on synthetic features")
    try_all = partial(_errors_of, choices, groups, num_classes=num_classes, num_features=num_features, advance=advance)
    # One thread a trial, as threads of one product wait for each other.
    pin_to_one_thread()
    with ThreadPoolExecutor(min(len(trials), num_cores())) as pool:
        found = list(pool.map(lambda trial: try_all(*trial), trials))

    def errors_of(number: int) -> dict[str, tuple[float, ...]]:
        of_trials = list(zip(trials, found, strict=True))
        return {task.name: tuple(of[number] for (other, _), of in of_trials if other is task) for task in tasks}

    rows = [Ranked(choice, errors_of(number)) for number, choice in enumerate(choices)]
    rows.sort(key=lambda row: row.expected_error)
    ranked = tuple(_with_clearness(rows))
    return Advice(ranked, errors_of(-1), left_out, tuple(groups), num_classes, num_features, tuple(tasks))


def _errors_of(
    choices: Sequence[Candidate],
    groups: Sequence[SizeGroup],
    task: FeatureTask,
    seed: int,
    *,
    num_classes: int,
    num_features: int,
    advance: Callable[[int], None],
) -> list[float]:
    drawn = public_stream(_SEED, "advice", "features", task.name, seed)
    federation = SyntheticFederation(
        task, groups, num_classes=num_classes, num_features=num_features, most_rows=MOST_ROWS, rng=drawn
    )
    errors = []
    for choice in choices:
        errors.append(error_of_trial(choice, federation, public_stream(_SEED, "advice", "noise", task.name, seed)))
        advance(1)
    errors.append(error_without_noise(federation))
    advance(1)
    return errors


def _with_clearness(rows: Sequence[Ranked]) -> list[Ranked]:
    marked = []
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        clear = following is not None and all(
            mine < other
            for name in row.errors
            for mine, other in zip(row.errors[name], following.errors[name], strict=True)
        )
        marked.append(Ranked(row.candidate, row.errors, clear))
    return marked


def advice_as_json(advice: Advice, command: str, reason_of: Callable[[Candidate, int], str]) -> dict[str, Any]:
    """Return the advice as plain JSON values."""
    return {
        "ranked": [
            {
                "rank": number,
                "mechanism": row.candidate.config.privacy.mechanism,
                "aggregation": row.candidate.config.privacy.aggregation,
                "num_rounds": row.candidate.num_rounds,
                "expected_error": row.expected_error,
                "errors": {name: list(values) for name, values in row.errors.items()},
                "better_than_next_in_every_trial": row.is_clear,
                "reason": reason_of(row.candidate, advice.total_units),
                "settings": dict(row.candidate.settings),
            }
            for number, row in enumerate(advice.ranked, 1)
        ],
        "without_noise": {name: list(values) for name, values in advice.without_noise.items()},
        "left_out": dict(advice.left_out),
        "computed_on": {
            "features": "synthetic",
            "tasks": {task.name: task.like for task in advice.tasks},
            "seeds": len(next(iter(advice.without_noise.values()))),
            "training_images": advice.drawn_rows,
            "of": advice.total_units,
            "test_images": TEST_ROWS,
            "num_classes": advice.num_classes,
            "num_features": advice.num_features,
        },
        "command": command,
    }
