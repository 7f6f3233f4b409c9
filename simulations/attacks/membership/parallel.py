"""Many federations side by side, one process and one thread each."""

from collections.abc import Iterator, Sequence
from concurrent.futures import as_completed

from common.system.progress import ProgressFactory, no_progress
from simulations.attacks.membership.curves import Curve
from simulations.attacks.membership.score_store import ScoreStore
from simulations.attacks.membership.training import Scored, train_and_score
from simulations.harness.workers import quiet_flower, worker_pool

Task = tuple[Curve, int]


def score_models(
    curves: Sequence[Curve],
    store: ScoreStore,
    *,
    models: int,
    workers: int,
    progress: ProgressFactory = no_progress,
) -> int:
    """Train and score the models that the store lacks.

    An interruption loses only the models that are under way.

    Args:
        curves: What is compared.
        store: Keeps each model's scores as they come.
        models: How many of each curve.
        workers: Processes; with 1 this one does the work. Scores do not depend on it but for fresh noise.
        progress: Told of each model.

    Returns:
        How many were trained now.

    Raises:
        ConfigError: A process was killed, most likely for want of memory.
        FederationError: A model diverged.
    """
    missing = {curve.name: set(store.missing(curve.name, models)) for curve in curves}
    # By turns: the time that is left can then be told from the time that has gone.
    tasks = [(curve, number) for number in range(models) for curve in curves if number in missing[curve.name]]
    advance = progress(len(tasks), "Training federations")
    if not tasks:
        return 0
    results = _here(tasks) if min(workers, len(tasks)) == 1 else _side_by_side(tasks, min(workers, len(tasks)))
    for (curve, number), scored in results:
        store.put(curve.name, number, scored)
        advance(1)
    return len(tasks)


def _here(tasks: Sequence[Task]) -> Iterator[tuple[Task, Scored]]:
    quiet_flower()
    for curve, number in tasks:
        yield (curve, number), train_and_score(curve.config, number, like=tasks[0][0].config)


def _side_by_side(tasks: Sequence[Task], workers: int) -> Iterator[tuple[Task, Scored]]:
    like = tasks[0][0].config
    with worker_pool(workers) as pool:
        waiting = {
            pool.submit(train_and_score, curve.config, number, like=like): (curve, number) for curve, number in tasks
        }
        for future in as_completed(waiting):
            yield waiting[future], future.result()
