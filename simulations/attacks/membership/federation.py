"""Rounds of a run over any partition, reduced to its final model.

Rounds, strategy, cohorts and noise at the server are those of every run (`server.rounds.loop`),
training at the clients too (`client.training.trainer`). What is left out adds nothing to the
model: ledgers, policies, evaluation, run directories.
"""

import secrets
from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.session import client_name
from client.training.class_weights import label_counts_of
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.data.client_dataset import Shard, shard
from common.data.partitioning.partition import Partition
from common.data.preprocessing import Prepared
from common.inference.earlier_model import with_earlier_model
from common.messages.codec import Declaration, Evaluation, encode_update, record_to_arrays, server_round_of
from common.messages.fields import ARRAYS, Releases
from common.messages.rounded_update import leaving_arrays
from common.models.initialization import initial_arrays
from common.privacy.plan import PrivacyPlan
from common.strategies import STRATEGIES
from server.aggregation.statistics_head import head_solver
from server.aggregation.strategies import build_strategy
from server.rounds.cohorts import draw_cohorts
from server.rounds.enrollment import EnrolledClient
from server.rounds.loop import RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid


def federate(trainer: Trainer, prepared: Prepared, partition: Partition) -> Arrays:
    """Train a run's global model, as `bract simulate` would over this partition.

    Guarantee: without noise, and over the run's own partition, the result equals that of
    `bract simulate` to the bit. Under DP every message draws fresh noise.

    Args:
        trainer: Trains as the run's configuration asks for; no tensor may be personal.
        prepared: The whole source.
        partition: Who holds what; declared sizes in it are clients' weights and enter their privacy plans.

    Raises:
        ConfigError: The strategy, or some client's privacy plan, is impossible.
        FederationError: A round got too few usable updates.
    """
    config = trainer.config

    @lru_cache(maxsize=config.num_clients if config.client_fraction == 1 else 2 * config.cohort_size)
    def rows_of(partition_id: int) -> Shard:
        return shard(prepared, partition, partition_id, private=config.is_local_dp, unit=config.privacy.unit)

    grid = InProcessGrid(_client_app(trainer, rows_of), config.num_clients, {})
    clients = {
        client_name(who): EnrolledClient(
            Declaration(client_name(who), int(size), trainer.classes, trainer.input_shape, ""), node
        )
        for who, (size, node) in enumerate(zip(partition.num_units, grid.get_node_ids(), strict=True))
    }
    cohorts = draw_cohorts(
        list(clients), cohort_size=config.cohort_size, num_rounds=config.num_rounds, seed=config.seed
    )
    central = config.plan(config.cohort_size) if config.mechanism.noise_at_server else None
    wire = Channel(grid, _releases(trainer), secrets.token_hex(16))
    arrays = with_earlier_model(
        config.model,
        initial_arrays(config, trainer.input_shape, trainer.classes),
        input_shape=trainer.input_shape,
        classes=trainer.classes,
    )
    solve = None
    if config.takes_statistics:
        units = {name: client.declaration.num_units for name, client in clients.items()}
        noise = {name: config.plan(size).noise_stddev for name, size in units.items()} if config.is_local_dp else {}
        solve = head_solver(config.training.statistics, units, noise)
    settings = RoundSettings(clients, cohorts, central=central, solve=solve)
    for result in run_rounds(wire, build_strategy(config), arrays, settings):
        arrays = result.arrays
    return arrays


def _releases(trainer: Trainer) -> Releases:
    """Return the fields of a reply that strategy and settings need."""
    config = trainer.config
    needs_loss = STRATEGIES[config.strategy.name].needs_exact_loss
    statistics = config.training.statistics if config.takes_statistics else None
    bits = config.training.update_bits
    return Releases(metrics="none", train_loss=needs_loss, update_bits=bits, statistics=statistics)


def _client_app(trainer: Trainer, rows_of: Callable[[int], Shard]) -> ClientApp:
    config = trainer.config
    app = ClientApp()

    def plan_of(rows: Shard) -> PrivacyPlan | None:
        return config.plan(rows.num_units) if config.is_local_dp else None

    # Once a run, as a ledger keeps them.
    @cache
    def labels_of(partition_id: int) -> np.ndarray | None:
        rows = rows_of(partition_id)
        return label_counts_of(rows, len(trainer.classes), plan_of(rows))

    @app.train()
    def train(message: Message, context: Context) -> Message:
        partition_id = int(context.node_config["partition-id"])
        rows, incoming = rows_of(partition_id), record_to_arrays(message.content.array_records[ARRAYS])
        name, server_round = client_name(partition_id), server_round_of(message.content)
        trained = trainer.train(
            incoming,
            rows,
            name=name,
            server_round=server_round,
            plan=plan_of(rows),
            label_counts=labels_of(partition_id),
        )
        releases = _releases(trainer)
        sent = leaving_arrays(trained, incoming, releases, seed=config.seed, client=name, server_round=server_round)
        return Message(encode_update(sent, rows.num_units, _findings(trainer, incoming, rows)), reply_to=message)

    return app


def _findings(trainer: Trainer, incoming: Arrays, rows: Shard) -> Evaluation | None:
    """Return the loss that QFedAvg weighs by."""
    if not _releases(trainer).train_loss:
        return None
    judged = trainer.evaluate(incoming, rows.train_inputs, rows.train_labels)
    return Evaluation(train_loss=judged.loss_sum / max(1, judged.num_examples))
