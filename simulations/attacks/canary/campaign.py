"""Many trainings in parallel, whose scores survive an interruption."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np

from common.errors import ConfigError
from common.system.files import make_folder
from simulations.attacks.canary.trial import Experiment
from simulations.harness.scratch_folder import scratch
from simulations.harness.workers import worker_pool

# Makes the experiment in a scratch folder. A worker process calls it once.
MakeExperiment = Callable[[Path], Experiment]
SCORES = "scores.jsonl"
_BATCH_SIZE = 50
# The experiment of a worker process, with its folder, which is deleted with its object.
_made: list[tuple[object, Experiment]] = []


class Scores:
    """Scores of a campaign in a file that only grows, one line a batch.

    Args:
        file: The file, which is made if it does not exist.
        digest: Identifies the campaign.

    Raises:
        ConfigError: The file is not one of this campaign.
    """

    def __init__(self, file: Path, digest: str) -> None:
        self._file, header = file, json.dumps({"audit": digest}) + "\n"
        if not file.is_file():
            make_folder(file.parent)
            file.write_text(header)
        lines = file.read_text().splitlines(keepends=True)
        if lines[:1] != [header]:
            raise ConfigError(f"{file} holds scores of another audit: choose another folder with --out, or remove it")
        # A process that was killed may have left half a line.
        if not lines[-1].endswith("\n"):
            lines.pop()
            file.write_text("".join(lines))
        self._scores = {int(number): float(score) for line in lines[1:] for number, score in json.loads(line)}

    def add(self, batch: Sequence[tuple[int, float]]) -> None:
        """Append the scores of a batch."""
        with self._file.open("a") as stream:
            stream.write(json.dumps(batch) + "\n")
        self._scores.update(batch)

    def missing(self, trials: int) -> list[int]:
        """Return the numbers of the trials without a score."""
        return [number for number in range(trials) if number not in self._scores]

    def split(self, trials: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the scores with the canary and without it, float64.

        Odd trials have the canary.
        """
        scores = np.array([self._scores[number] for number in range(trials)])
        return scores[1::2], scores[0::2]


def run_campaign(
    make: MakeExperiment, scores: Scores, trials: int, *, workers: int, advance: Callable[[int], None]
) -> None:
    """Run all trials that have no score.

    Args:
        make: Makes the experiment; picklable.
        scores: Receives the scores.
        trials: Total number of trials.
        workers: Number of processes; 1 works in this process.
        advance: Called with the number of trials that were just completed.
    """
    todo = scores.missing(trials)
    advance(trials - len(todo))
    batches = [todo[start : start + _BATCH_SIZE] for start in range(0, len(todo), _BATCH_SIZE)]
    for batch in _in_this_process(make, batches) if workers == 1 else _in_workers(make, batches, workers):
        scores.add(batch)
        advance(len(batch))


def _in_this_process(make: MakeExperiment, batches: Sequence[list[int]]) -> Iterator[list[tuple[int, float]]]:
    with scratch() as folder:
        experiment = make(Path(folder))
        for batch in batches:
            yield _scored(experiment, batch)


def _in_workers(make: MakeExperiment, batches: Sequence[list[int]], workers: int) -> Iterator[list[tuple[int, float]]]:
    with worker_pool(workers, _initialize, make) as pool:
        for done in as_completed([pool.submit(_work, batch) for batch in batches]):
            yield done.result()


def _initialize(make: MakeExperiment) -> None:
    folder = scratch()
    _made.append((folder, make(Path(folder.name))))


def _work(batch: list[int]) -> list[tuple[int, float]]:
    return _scored(_made[0][1], batch)


def _scored(experiment: Experiment, batch: list[int]) -> list[tuple[int, float]]:
    return [(number, experiment.score(inside=number % 2 == 1)) for number in batch]
