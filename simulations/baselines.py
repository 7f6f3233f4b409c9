"""Baselines of a federated run, trained with the same privacy mechanism."""

from typing import Any

import numpy as np

from client.session import client_name
from client.training.class_weights import label_counts_of
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.schema import RunConfig
from common.data.client_dataset import Shard, shard
from common.data.partitioning.assignment import load_or_make_partition
from common.data.partitioning.partition import Partition
from common.data.preprocessing import prepare
from common.inference.earlier_model import with_earlier_model
from common.metrics import score
from common.models.initialization import initial_arrays
from common.randomness import public_stream
from common.statistics.head import solve_head
from server.reporting.terminal_progress import TerminalProgress
from simulations.pooled_evaluator import PooledEvaluator

_MAX_CLIENTS_ALONE = 10


def train_baselines(config: RunConfig, progress: TerminalProgress) -> dict[str, dict[str, Any]]:
    """Train without federating and score on all held-out images.

    A client that trains alone spends the same privacy budget as in the federation. The
    pooled data are one client that holds all images and spends the same target.

    Args:
        config: The run that was federated.
        progress: Shows how many baselines are trained.

    Returns:
        `alone` (mean and range over at most ten clients) and `pooled`, each with a label
        and an accuracy.

    Raises:
        ConfigError: The settings allow no privacy plan for the pooled data.
    """
    # Nobody adds to the sum of one client, so it draws all of its noise itself.
    plain = config.privacy.model_copy(update={"aggregation": "plain"})
    config = config.model_copy(update={"privacy": plain})
    prepared = prepare(config)
    partition = load_or_make_partition(config, prepared)
    trainer = Trainer(config, prepared.inputs.shape[1:], prepared.scan.classes)
    evaluator = PooledEvaluator(trainer, prepared, partition)
    rng = public_stream(config.seed, "baselines")
    chosen = sorted(rng.permutation(config.num_clients)[:_MAX_CLIENTS_ALONE].tolist())
    advance = progress.work(len(chosen) + 1, "Baselines")

    def shard_of(parts: Partition, client: int) -> Shard:
        return shard(prepared, parts, client, private=config.is_local_dp, unit=config.privacy.unit)

    def accuracy(alone: Trainer, held: Shard, name: str) -> float:
        result = score(evaluator.pooled(_train(alone, held, name)).confusion).accuracy
        advance(1)
        return result

    alone = [accuracy(trainer, shard_of(partition, client), client_name(client)) for client in chosen]
    together = config.model_copy(update={"num_clients": 1, "client_fraction": 1.0})
    pooled_trainer = Trainer(together, trainer.input_shape, trainer.classes)
    pooled = accuracy(pooled_trainer, shard_of(_pooled_partition(partition), 0), "pooled")
    return {
        "alone": {
            "label": "each client alone",
            "accuracy": float(np.mean(alone)),
            "min": min(alone),
            "max": max(alone),
            "clients": len(alone),
            "simulation_only": True,
        },
        "pooled": {"label": "all data pooled", "accuracy": pooled, "simulation_only": True},
    }


def _train(trainer: Trainer, held: Shard, name: str) -> Arrays:
    config = trainer.config
    arrays = with_earlier_model(
        config.model,
        initial_arrays(config, trainer.input_shape, trainer.classes),
        input_shape=trainer.input_shape,
        classes=trainer.classes,
    )
    plan = config.plan(held.num_units) if config.is_local_dp else None
    counts = label_counts_of(held, len(trainer.classes), plan)
    if config.takes_statistics:
        sums, noise = (
            trainer.train(arrays, held, name=name, server_round=1, plan=plan),
            plan.noise_stddev if plan else 0.0,
        )
        return solve_head(config.training.statistics, sums, num_examples=held.num_units, noise_stddev=noise)
    for server_round in range(1, config.participations + 1):
        arrays = trainer.train(arrays, held, name=name, server_round=server_round, plan=plan, label_counts=counts)
    return arrays


def _pooled_partition(partition: Partition) -> Partition:
    """Assign the images of all clients to one client."""
    owner = np.where(partition.owner < 0, -1, 0).astype(partition.owner.dtype)
    sizes = (partition.num_units.sum(keepdims=True), partition.num_groups.sum(keepdims=True))
    return Partition(owner, partition.held_out, *sizes, images_unused=partition.images_unused)
