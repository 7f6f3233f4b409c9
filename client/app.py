"""ClientApp handlers: decode, call, encode; nothing else may leave."""

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.learner import Learner
from common.config import parse
from common.data.deal import Partition, Shard, deal, shard
from common.data.prepared import Prepared, prepared_earlier
from common.errors import BractError, ClientFailure, ConfigError, FederationError, PrivacyError
from common.metrics import Counts
from common.records import (
    ARRAYS,
    Declaration,
    check_incoming,
    check_release,
    encode_counts,
    encode_declaration,
    encode_update,
    failure_reply,
    record_to_arrays,
    require_release,
    server_round_of,
)
from common.sections import RunConfig
from common.threads import pin_to_one_thread

app = ClientApp()
_ROUNDS = "bract-rounds"
_log = logging.getLogger("bract.client")
Handler = Callable[[Message, Context], Message]
_Work = Callable[[Message, "_Local"], RecordDict]


def _release(kind: str) -> Callable[[_Work], Handler]:
    """Wrap a handler so that only declared fields, or a bare failure code, leave the client."""

    def wrap(work: _Work) -> Handler:
        @functools.wraps(work)
        def handler(message: Message, context: Context) -> Message:
            try:
                pin_to_one_thread()
                config = _config(tuple(sorted(context.run_config.items())))
                require_release(kind, private=config.private)
                local = _local(config, _partition_id(context))
                if kind == "train" and config.private:
                    _claim_round(context, server_round_of(message.content), config)
                content = work(message, local)
                check_release(content, message_type=kind, private=config.private, trainable=local.trainable)
            except BractError as error:
                _log.error("refused %s: %s", kind, error)
                return failure_reply(ClientFailure.of(error), message)
            except Exception as error:
                _log.exception("failed in %s", kind)
                return failure_reply(ClientFailure.of(error), message)
            return Message(content, reply_to=message)

        return handler

    return wrap


@lru_cache(maxsize=4)
def _config(items: tuple[tuple[str, str | int | float | bool], ...]) -> RunConfig:
    return parse(dict(items))


def _partition_id(context: Context) -> int:
    """The client's part of a simulated source; real clients with a folder of their own come later."""
    keys = ("partition-id", "num-partitions")
    if any(key not in context.node_config for key in keys):
        raise ConfigError("this node is not part of a simulation: its configuration lacks partition-id")
    return int(context.node_config["partition-id"])


def _claim_round(context: Context, server_round: int, config: RunConfig) -> None:
    """Answer each round once, and no more rounds than the plan has noise for.

    Flower keeps the record in memory for one run; a durable ledger replaces it.
    """
    records = context.state.config_records
    taken = cast(list[int], records[_ROUNDS]["taken"]) if _ROUNDS in records else []
    if server_round in taken or server_round > config.num_rounds or len(taken) >= config.participations:
        raise PrivacyError("the server asked for a round that the plan does not have")
    context.state[_ROUNDS] = ConfigRecord({"taken": [*taken, server_round]})


@dataclass(frozen=True)
class _Local:
    """What a client has at hand: its rows, and what it may send."""

    name: str
    rows: Shard
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    learner: Learner

    def evaluate(self, arrays: dict[str, np.ndarray]) -> Counts:
        return self.learner.evaluate(arrays, self.rows.test_inputs, self.rows.test_labels)

    @property
    def trainable(self) -> dict[str, tuple[int, ...]]:
        return self.learner.trainable(self.input_shape, len(self.classes))

    def incoming(self, message: Message) -> dict[str, np.ndarray]:
        """The model in a message, checked before it touches any image."""
        try:
            record = message.content.array_records[ARRAYS]
        except KeyError:
            raise FederationError("a message lacks the model") from None
        arrays = record_to_arrays(record)
        check_incoming(arrays, self.trainable)
        return arrays


@lru_cache(maxsize=64)
def _local(config: RunConfig, partition_id: int) -> _Local:
    prepared, partition = _population(config)
    rows = shard(prepared, partition, partition_id, private=config.private)
    name = client_name(partition_id)
    return _Local(name, rows, prepared.classes, prepared.inputs.shape[1:], Learner(config))


@lru_cache(maxsize=1)
def _population(config: RunConfig) -> tuple[Prepared, Partition]:
    prepared = prepared_earlier(config)
    return prepared, deal(config, prepared)


def client_name(partition_id: int) -> str:
    """Stable name of a simulated client; it sorts like its number."""
    return f"{partition_id:05d}"


@app.query()
@_release("query")
def declare(message: Message, local: _Local) -> RecordDict:
    """Say who this client is: public constants only."""
    del message
    digest = ""
    model = local.learner.config.model
    if model.tuning == "head":
        from common.models.backbones import BACKBONES

        digest = BACKBONES[model.backbone].weights_sha256
    return encode_declaration(Declaration(local.name, local.rows.num_units, local.classes, local.input_shape, digest))


@app.train()
@_release("train")
def train(message: Message, local: _Local) -> RecordDict:
    """Evaluate the incoming model (without privacy only), train it, send it back."""
    incoming = local.incoming(message)
    server_round = server_round_of(message.content)
    counts = None if local.learner.config.private else local.evaluate(incoming)
    outgoing = local.learner.train(incoming, local.rows, name=local.name, server_round=server_round)
    return encode_update(outgoing, local.rows.num_units, counts)


@app.evaluate()
@_release("evaluate")
def evaluate(message: Message, local: _Local) -> RecordDict:
    """Count the global model's predictions on held-out images; without privacy only."""
    incoming = local.incoming(message)
    return encode_counts(local.rows.num_units, local.evaluate(incoming))
