"""Did federating help? Each client alone, and all data pooled, with the same mechanism."""

from typing import Any

import numpy as np

from client.session import client_name
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.schema import RunConfig
from common.data.client_dataset import Shard, shard
from common.data.partitioning.assignment import load_or_make_partition
from common.data.partitioning.partition import Partition
from common.data.preprocessing import Prepared, prepare
from common.metrics import score
from common.models.initialization import initial_arrays
from common.randomness import public_stream
from server.reporting.terminal_progress import TerminalProgress
from simulations.pooled_evaluator import PooledEvaluator

_MOST_ALONE = 10


def train_baselines(config: RunConfig, progress: TerminalProgress) -> dict[str, dict[str, Any]]:
    """Train without federating and score on the same held-out images of all clients.

    Each client alone spends the privacy budget it spent in the federation; all data
    pooled is one client that holds everything and spends the same target.

    Args:
        config: The run that was federated.
        progress: Shows how far it is.

    Returns:
        `alone` (mean and spread over at most ten clients) and `pooled`, each with
        a label and accuracy.

    Raises:
        ConfigError: The pooled data admits no privacy plan.
    """
    prepared = prepare(config)
    partition = load_or_make_partition(config, prepared)
    evaluator = PooledEvaluator(config, prepared, partition)
    rng = public_stream(config.seed, "baselines")
    chosen = sorted(rng.permutation(config.num_clients)[:_MOST_ALONE].tolist())
    advance = progress.work(len(chosen) + 1, "Baselines")

    def rows_of(divided: Partition, who: int) -> Shard:
        return shard(prepared, divided, who, private=config.is_local_dp, unit=config.privacy.unit)

    def accuracy(of: RunConfig, rows: Shard, name: str) -> float:
        result = score(evaluator.pooled(_train(of, rows, name, prepared)).confusion).accuracy
        advance(1)
        return result

    alone = [accuracy(config, rows_of(partition, who), client_name(who)) for who in chosen]
    together = config.model_copy(update={"num_clients": 1, "client_fraction": 1.0})
    pooled = accuracy(together, rows_of(_everything(partition), 0), "pooled")
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


def _train(config: RunConfig, rows: Shard, name: str, prepared: Prepared) -> Arrays:
    trainer = Trainer(config, prepared.inputs.shape[1:], prepared.classes)
    arrays = initial_arrays(config, prepared.inputs.shape[1:], prepared.classes)
    plan = config.plan(rows.num_units) if config.is_local_dp else None
    for server_round in range(1, config.participations + 1):
        arrays = trainer.train(arrays, rows, name=name, server_round=server_round, plan=plan)
    return arrays


def _everything(partition: Partition) -> Partition:
    """All clients' images as one client's."""
    owner = np.where(partition.owner < 0, -1, 0).astype(partition.owner.dtype)
    sizes = (partition.num_units.sum(keepdims=True), partition.num_groups.sum(keepdims=True))
    return Partition(owner, partition.held_out, *sizes, images_unused=partition.images_unused)
