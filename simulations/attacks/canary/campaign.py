"""Many trainings side by side, each on one thread; what is done is kept, and an interrupted campaign goes on."""

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import as_completed
from pathlib import Path

import numpy as np

from common.errors import ConfigError
from simulations.attacks.canary.trial import Experiment
from simulations.harness.scratch_folder import scratch
from simulations.harness.workers import worker_pool

# Makes the experiment in a scratch folder; a worker process calls it once.
MakeExperiment = Callable[[Path], Experiment]
SCORES = "scores.jsonl"
_AT_ONCE = 50
_made: list[tuple[object, Experiment]] = []  # with the folder, which goes when it is forgotten


class Scores:
    """Scores of a campaign: a file that is only added to, one line a batch.

    Args:
        file: Made if it is not there.
        what: Names the campaign; a file of another one is refused.

    Raises:
        ConfigError: The file is another campaign's.
    """

    def __init__(self, file: Path, what: str) -> None:
        self._file, header = file, json.dumps({"audit": what}) + "\n"
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(header)
        lines = file.read_text().splitlines(keepends=True)
        if lines[:1] != [header]:
            raise ConfigError(f"{file} holds scores of another audit: choose another folder with --out, or remove it")
        if not lines[-1].endswith("\n"):  # half a line of a run that was killed goes
            lines.pop()
            file.write_text("".join(lines))
        self._found = {int(number): float(score) for line in lines[1:] for number, score in json.loads(line)}

    def add(self, batch: Sequence[tuple[int, float]]) -> None:
        """Keep some more."""
        with self._file.open("a") as stream:
            stream.write(json.dumps(batch) + "\n")
        self._found.update(batch)

    def missing(self, trials: int) -> list[int]:
        """Numbers of trials that are still to be made."""
        return [number for number in range(trials) if number not in self._found]

    def split(self, trials: int) -> tuple[np.ndarray, np.ndarray]:
        """Scores (float64) of the trials with the canary, which are the odd ones, and of those without."""
        found = np.array([self._found[number] for number in range(trials)])
        return found[1::2], found[0::2]


def run_campaign(
    make: MakeExperiment, scores: Scores, trials: int, *, workers: int, advance: Callable[[int], None]
) -> None:
    """Make all trials that are missing.

    Args:
        make: Makes the experiment; picklable.
        scores: Where scores go.
        trials: How many there shall be.
        workers: Processes; 1 works in this one.
        advance: Called with the number of trials that are done.
    """
    todo = scores.missing(trials)
    advance(trials - len(todo))
    batches = [todo[at : at + _AT_ONCE] for at in range(0, len(todo), _AT_ONCE)]
    for batch in _here(make, batches) if workers == 1 else _side_by_side(make, batches, workers):
        scores.add(batch)
        advance(len(batch))


def _here(make: MakeExperiment, batches: Sequence[list[int]]) -> Iterator[list[tuple[int, float]]]:
    with scratch() as folder:
        experiment = make(Path(folder))
        for batch in batches:
            yield _scored(experiment, batch)


def _side_by_side(
    make: MakeExperiment, batches: Sequence[list[int]], workers: int
) -> Iterator[list[tuple[int, float]]]:
    with worker_pool(workers, _begin, make) as pool:
        for done in as_completed([pool.submit(_work, batch) for batch in batches]):
            yield done.result()


def _begin(make: MakeExperiment) -> None:
    folder = scratch()
    _made.append((folder, make(Path(folder.name))))


def _work(batch: list[int]) -> list[tuple[int, float]]:
    return _scored(_made[0][1], batch)


def _scored(experiment: Experiment, batch: list[int]) -> list[tuple[int, float]]:
    return [(number, experiment.score(inside=number % 2 == 1)) for number in batch]
