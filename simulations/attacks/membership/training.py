"""One model of a membership attack: trained on the images that its coins chose, scored on all of them."""

import time
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from client.training.trainer import Trainer
from common.config.schema import RunConfig
from common.errors import FederationError
from common.metrics import score
from common.system.threads import pin_to_one_thread
from simulations.attacks.membership.federation import federate
from simulations.attacks.membership.lira import logit_confidence
from simulations.attacks.membership.targets import Population, members_of, populate
from simulations.pooled_evaluator import PooledEvaluator


@dataclass(frozen=True)
class Scored:
    """What is kept of one model.

    Attributes:
        scores: (targets,) float64 of `logit_confidence`, members and others alike.
        accuracy: On all held-out images: in a simulation only.
        seconds: What training and scoring took.
    """

    scores: np.ndarray
    accuracy: float
    seconds: float


def train_and_score(config: RunConfig, model: int, *, like: RunConfig | None = None) -> Scored:
    """Train one federation on half of the images, and score its final model on every target.

    Initial weights, cohorts and partition are the same for all models, as the run's seed is
    public: a server knows them of the model it attacks.

    Args:
        config: The run.
        model: Number of the model; with the seed it decides which images are in.
        like: A run over the same images and clients, which are then read once for all.

    Raises:
        FederationError: The model diverged.
    """
    pin_to_one_thread()
    population = _population(like or config)
    started = time.perf_counter()
    prepared, targets = population.prepared, population.targets
    trainer = Trainer(config, prepared.inputs.shape[1:], prepared.scan.classes)
    partition = population.without(members_of(config.seed, model, len(targets)))
    final = federate(trainer, prepared, partition)
    logits = trainer.logits(final, np.ascontiguousarray(prepared.inputs[targets]))
    if not np.isfinite(logits).all():
        raise FederationError(
            f"model {model} under privacy.mechanism={config.privacy.mechanism!r} diverged, and there is nothing to "
            "attack: lower training.learning-rate"
        )
    held_out = PooledEvaluator(trainer, prepared, population.partition).pooled(final)
    found = logit_confidence(logits, prepared.scan.labels[targets])
    return Scored(found, score(held_out.confusion).accuracy, time.perf_counter() - started)


@lru_cache(maxsize=1)
def _population(config: RunConfig) -> Population:
    return populate(config)
