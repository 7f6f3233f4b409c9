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
from common.data.prepared import Prepared, prepare
from common.errors import BractError, ClientFailure, ConfigError, FederationError, PrivacyError
from common.records import (
    Declaration,
    Findings,
    arrays_to_record,
    check_incoming,
    check_release,
    encode_declaration,
    encode_findings,
    encode_update,
    failure_reply,
    record_to_arrays,
    server_round_of,
)
from common.releases import ARRAYS, Releases
from common.sections import RunConfig
from common.threads import pin_to_one_thread

app = ClientApp()
_ROUNDS = "bract-rounds"
_PERSONAL = "bract-personal"
_log = logging.getLogger("bract.client")
Handler = Callable[[Message, Context], Message]
Arrays = dict[str, np.ndarray]
_Work = Callable[[Message, "_Local", RecordDict], RecordDict]


def _release(kind: str) -> Callable[[_Work], Handler]:
    """Wrap a handler so that only declared fields, or a bare failure code, leave the client."""

    def wrap(work: _Work) -> Handler:
        @functools.wraps(work)
        def handler(message: Message, context: Context) -> Message:
            try:
                pin_to_one_thread()
                config = _config(tuple(sorted(context.run_config.items())))
                releases = Releases.of(config)
                releases.fields(kind)  # refuses before anything is computed
                local = _local(config, _partition_id(context))
                if kind == "train" and config.private:
                    _claim_round(context, server_round_of(message.content), config)
                content = work(message, local, context.state)
                check_release(content, message_type=kind, releases=releases, travelling=local.travelling)
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
    learner: Learner

    @property
    def travelling(self) -> dict[str, tuple[int, ...]]:
        return _travelling(self.learner)

    def own(self, state: RecordDict) -> Arrays:
        """The tensors that stay here: as this run left them, or as all clients start."""
        if _PERSONAL in state.array_records:
            return record_to_arrays(state.array_records[_PERSONAL])
        return _common_start(self.learner)

    def incoming(self, message: Message) -> Arrays:
        """The model in a message, checked before it touches any image."""
        try:
            record = message.content.array_records[ARRAYS]
        except KeyError:
            raise FederationError("a message lacks the model") from None
        arrays = record_to_arrays(record)
        check_incoming(arrays, self.travelling)
        return arrays

    def find(self, incoming: Arrays, own: Arrays, *, train_loss: bool) -> Findings:
        """What this run lets leave about an incoming model; without privacy only."""
        rows, judge = self.rows, self.learner.evaluate
        counts = judge(_common_start(self.learner) | incoming, rows.test_inputs, rows.test_labels)
        personal = judge(own | incoming, rows.test_inputs, rows.test_labels) if own else None
        if not train_loss:
            return Findings(counts, personal)
        trained = judge(own | incoming, rows.train_inputs, rows.train_labels)
        return Findings(counts, personal, trained.loss_sum / max(1, trained.num_examples))


@lru_cache(maxsize=4)
def _travelling(learner: Learner) -> dict[str, tuple[int, ...]]:
    return {name: shape for name, shape in learner.trainable.items() if name not in learner.personal}


@lru_cache(maxsize=1)
def _common_start(learner: Learner) -> Arrays:
    return learner.initial_personal()


@lru_cache(maxsize=64)
def _local(config: RunConfig, partition_id: int) -> _Local:
    prepared, partition = _population(config)
    rows = shard(prepared, partition, partition_id, private=config.private)
    return _Local(client_name(partition_id), rows, Learner(config, prepared.inputs.shape[1:], prepared.classes))


@lru_cache(maxsize=1)
def _population(config: RunConfig) -> tuple[Prepared, Partition]:
    prepared = prepare(config)
    return prepared, deal(config, prepared)


def client_name(partition_id: int) -> str:
    """Stable name of a simulated client; it sorts like its number."""
    return f"{partition_id:05d}"


@app.query()
@_release("query")
def declare(message: Message, local: _Local, state: RecordDict) -> RecordDict:
    """Say who this client is: public constants only."""
    del message, state
    learner, digest = local.learner, ""
    if learner.config.model.backbone != "cnn":
        from common.models.backbones import backbone_facts

        digest = backbone_facts(learner.config).sha256
    declared = Declaration(local.name, local.rows.num_units, learner.classes, learner.input_shape, digest)
    return encode_declaration(declared)


@app.train()
@_release("train")
def train(message: Message, local: _Local, state: RecordDict) -> RecordDict:
    """Evaluate the incoming model (without privacy only), train it, send back what travels."""
    incoming, own = local.incoming(message), local.own(state)
    server_round, config = server_round_of(message.content), local.learner.config
    needs_loss = Releases.of(config).train_loss
    findings = None if config.private else local.find(incoming, own, train_loss=needs_loss)
    trained = local.learner.train(own | incoming, local.rows, name=local.name, server_round=server_round)
    if own:
        state[_PERSONAL] = arrays_to_record({name: trained[name] for name in own})
    return encode_update({name: trained[name] for name in incoming}, local.rows.num_units, findings)


@app.evaluate()
@_release("evaluate")
def evaluate(message: Message, local: _Local, state: RecordDict) -> RecordDict:
    """Count the model's predictions on held-out images; without privacy only."""
    findings = local.find(local.incoming(message), local.own(state), train_loss=False)
    return encode_findings(local.rows.num_units, findings)
