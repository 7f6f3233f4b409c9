"""Membership attack from settings to figures, plot and folder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.data.results_place import refuse_results_in_data
from common.system.progress import ProgressFactory, no_progress
from server.aggregation.strategies import check_strategy
from simulations.attacks.membership.curves import Curve, check_plans, shared_settings
from simulations.attacks.membership.parallel import score_models
from simulations.attacks.membership.report import Found, as_json, judge
from simulations.attacks.membership.score_store import ScoreStore
from simulations.attacks.membership.targets import members_of, populate
from simulations.attacks.membership.view import draw_membership

FIGURES = "membership.json"
PICTURE = "membership.png"


@dataclass(frozen=True)
class Attack:
    """Results of a membership attack.

    Attributes:
        results: One result for each curve, in the order of the curves.
        folder: Folder of scores, figures and picture.
        trained: Number of models trained by this call; the others were stored already.
    """

    results: tuple[Found, ...]
    folder: Path
    trained: int

    def as_json(self) -> dict[str, Any]:
        """Return the results as plain values."""
        return as_json(self.results, self.results[0].curve.config.seed)


def attack(
    curves: Sequence[Curve],
    folder: Path | None,
    *,
    models: int,
    workers: int = 1,
    progress: ProgressFactory = no_progress,
) -> Attack:
    """Train, score and judge the models that the folder lacks.

    Figures and plot are written into the folder.

    Everything is checked before anything is trained.

    Args:
        curves: From `curves_of`.
        folder: Output folder; None is a folder below `runs/`, named after the settings.
        models: Number of federations to train for each curve.
        workers: Number of processes; only the noise differs between runs.
        progress: Shows progress.

    Raises:
        BractError: A setting is wrong, images or weights are missing, or a model diverged.
    """
    for curve in curves:
        check_strategy(curve.config)
    shared = shared_settings(curves)
    folder = folder or _named(shared)
    refuse_results_in_data(folder, curves[0].config.data)
    population = populate(curves[0].config, progress)
    for curve in curves:
        check_plans(curve, population.partition)
    store = ScoreStore.open(folder, shared, population.digest)
    trained = score_models(curves, store, models=models, workers=workers, progress=progress)
    seed = curves[0].config.seed
    members = np.array([members_of(seed, number, len(population.targets)) for number in range(models)])
    results = tuple(judge(curve, [store.get(curve.name, n) for n in range(models)], members) for curve in curves)
    done = Attack(results, store.folder, trained)
    draw_membership(store.folder / PICTURE, results)
    store.write_json(FIGURES, done.as_json())
    return done


def _named(shared: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
    return Path("runs") / f"membership-{Path(str(shared['data.source'])).name}-{digest[:8]}"
