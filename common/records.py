"""The wire contract: key names, and RecordDict to and from domain types.

What a client may send is declared in `common.releases`; `check_release` refuses
anything else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from common.errors import ClientFailure, FederationError, PrivacyError
from common.metrics import Counts, total
from common.releases import (
    ARRAYS,
    CLIENT,
    CONFUSION,
    LOSS_SUM,
    METRICS,
    NUM_EXAMPLES,
    PERSONAL_CONFUSION,
    PERSONAL_COUNTS,
    TRAIN_LOSS,
    Releases,
)

CONFIG = "config"
SERVER_ROUND = "server-round"
_KINDS = {ARRAYS: ArrayRecord, METRICS: MetricRecord, CLIENT: ConfigRecord}


@dataclass(frozen=True)
class Findings:
    """What a client measured of the incoming model; without privacy only.

    Attributes:
        counts: Of the global model, on held-out images.
        personal: Of the client's own model, if tensors stay with the client.
        train_loss: Mean cross-entropy in nats on training images, for QFedAvg only.
    """

    counts: Counts
    personal: Counts | None = None
    train_loss: float | None = None


@dataclass(frozen=True)
class Declaration:
    """What a client declares once, before round 1: public constants only.

    Attributes:
        name: Stable name of the client; Flower's node ids change with each run.
        num_units: Declared size, also the aggregation weight.
        classes: Class names, equal at all clients.
        input_shape: Shape of one input to the trainable part.
        backbone_hash: Hash of the frozen weights; empty if there are none.
    """

    name: str
    num_units: int
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    backbone_hash: str


def arrays_to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Tensors by name, in the order given."""
    return ArrayRecord({name: Array(np.ascontiguousarray(array)) for name, array in arrays.items()})


def record_to_arrays(record: ArrayRecord) -> dict[str, np.ndarray]:
    """Tensors by name as float32; aggregation may have widened them.

    Raises:
        FederationError: A tensor does not hold real floating-point numbers.
    """
    arrays = {name: array.numpy() for name, array in record.items()}
    if any(array.dtype.kind != "f" for array in arrays.values()):
        raise FederationError("a tensor does not hold floating-point numbers")
    with np.errstate(over="ignore"):
        return {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}


def encode_declaration(declaration: Declaration) -> RecordDict:
    """The reply to a query."""
    record = ConfigRecord(
        {
            "name": declaration.name,
            "num-units": declaration.num_units,
            "classes": list(declaration.classes),
            "input-shape": list(declaration.input_shape),
            "backbone-hash": declaration.backbone_hash,
        }
    )
    return RecordDict({CLIENT: record})


def decode_declaration(content: RecordDict) -> Declaration:
    """What a client declared.

    Raises:
        FederationError: The reply has not the agreed fields and types.
    """
    try:
        record = content.config_records[CLIENT]
        name, units, digest = record["name"], record["num-units"], record["backbone-hash"]
        classes, shape = record["classes"], record["input-shape"]
    except KeyError as error:
        raise FederationError(f"a client's declaration lacks {error}") from None
    if not (isinstance(name, str) and type(units) is int and units > 0 and isinstance(digest, str)):
        raise FederationError("a client's declaration has a field of the wrong type")
    if not (isinstance(classes, list) and isinstance(shape, list)):
        raise FederationError("a client's declaration has a field of the wrong type")
    if not (all(isinstance(label, str) for label in classes) and all(type(n) is int and n > 0 for n in shape)):
        raise FederationError("a client's declaration has a field of the wrong type")
    return Declaration(name, units, tuple(map(str, classes)), tuple(map(int, shape)), digest)


def encode_update(arrays: Mapping[str, np.ndarray], num_units: int, findings: Findings | None) -> RecordDict:
    """The reply to a training message.

    Args:
        arrays: Travelling tensors after local training.
        num_units: Declared size of the client: the aggregation weight.
        findings: Evaluation of the incoming model; only without privacy.
    """
    return RecordDict({ARRAYS: arrays_to_record(arrays), METRICS: _metrics(num_units, findings)})


def encode_findings(num_units: int, findings: Findings) -> RecordDict:
    """The reply to an evaluation message; only without privacy."""
    return RecordDict({METRICS: _metrics(num_units, findings)})


def _metrics(num_units: int, findings: Findings | None) -> MetricRecord:
    metrics = MetricRecord({NUM_EXAMPLES: num_units})
    if findings is None:
        return metrics
    _put_counts(metrics, findings.counts, CONFUSION, LOSS_SUM)
    if findings.personal is not None:
        _put_counts(metrics, findings.personal, *PERSONAL_COUNTS)
    if findings.train_loss is not None:
        metrics[TRAIN_LOSS] = float(findings.train_loss)
    return metrics


def _put_counts(metrics: MetricRecord, counts: Counts, confusion: str, loss_sum: str) -> None:
    metrics[confusion] = [int(n) for n in counts.confusion.ravel()]
    metrics[loss_sum] = float(counts.loss_sum)


def decode_findings(content: RecordDict, num_classes: int | None = None) -> Findings | None:
    """What a reply says of the incoming model, or None if it carries no counts.

    Args:
        content: A reply.
        num_classes: The side that a matrix must have, if it is known.

    Raises:
        FederationError: A matrix is not square, a count is negative, or a loss is no finite number
            of at least 0 where one is needed.
    """
    metrics = content.metric_records[METRICS]
    if CONFUSION not in metrics:
        return None
    counts = _counts(metrics, CONFUSION, LOSS_SUM, num_classes)
    personal = _counts(metrics, *PERSONAL_COUNTS, num_classes) if PERSONAL_CONFUSION in metrics else None
    loss = metrics.get(TRAIN_LOSS)
    if loss is not None and not (isinstance(loss, float) and math.isfinite(loss) and loss >= 0):
        raise FederationError("a client sent a training loss that is no finite number of at least 0")
    return Findings(counts, personal, loss)


def _counts(metrics: MetricRecord, confusion: str, loss_sum: str, num_classes: int | None) -> Counts:
    flat = np.asarray(metrics[confusion])
    side = math.isqrt(flat.size)
    loss = metrics.get(loss_sum)
    wrong_side = not side or side * side != flat.size or num_classes not in (None, side)
    if wrong_side or flat.dtype.kind != "i" or (flat < 0).any() or not isinstance(loss, float | int):
        raise FederationError("a client sent counts that are no confusion matrix")
    return Counts(flat.reshape(side, side).astype(np.int64), float(loss))


def sum_counts(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Add up counts over clients, for a strategy's metrics aggregation functions.

    Flower's default would average them. Returns an empty record under DP, where
    no counts are sent.
    """
    del weighted_by_key
    summed = total(found.counts for found in map(decode_findings, contents) if found is not None)
    if summed is None:
        return MetricRecord()
    return MetricRecord({CONFUSION: [int(n) for n in summed.confusion.ravel()], LOSS_SUM: summed.loss_sum})


def failure_reply(failure: ClientFailure, message: Message) -> Message:
    """An error reply that says nothing but its code."""
    return Message(Error(code=int(failure), reason=failure.name), reply_to=message)


def server_round_of(content: RecordDict) -> int:
    """The round a message belongs to, from 1.

    Raises:
        FederationError: The message does not say.
    """
    try:
        value = content.config_records[CONFIG][SERVER_ROUND]
    except KeyError:
        raise FederationError("a training message lacks its round") from None
    if not isinstance(value, int) or value < 1:
        raise FederationError("a training message has no valid round")
    return value


def check_incoming(arrays: Mapping[str, np.ndarray], trainable: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a model that is not the agreed one, before it touches any image.

    A wrong shape that only some labels trip over would tell the server which labels
    there are, by whether the client fails.

    Raises:
        FederationError: Names, shapes or types differ, or a value is not finite.
    """
    if {name: array.shape for name, array in arrays.items()} != dict(trainable):
        raise FederationError("the server sent tensors of other names or shapes than the model has")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise FederationError("the server sent a tensor with values that are not finite")


def check_release(
    content: RecordDict, *, message_type: str, releases: Releases, travelling: Mapping[str, tuple[int, ...]]
) -> RecordDict:
    """Let a reply pass only if its fields are exactly those of the allow-list.

    Args:
        content: What is about to leave.
        message_type: `query`, `train` or `evaluate`.
        releases: What this run's replies carry.
        travelling: Names and shapes of the tensors that travel.

    Raises:
        PrivacyError: A record or field is not declared, is missing, or has another shape.
    """
    allowed = releases.fields(message_type)
    if set(content) != set(allowed):
        raise PrivacyError(f"records {sorted(content)} may not leave, only {sorted(allowed)}")
    for name, keys in allowed.items():
        if not isinstance(content[name], _KINDS[name]):
            raise PrivacyError(f"record {name!r} is of another kind than declared")
        if set(content[name]) != set(travelling if keys is None else keys):
            raise PrivacyError(f"record {name!r} holds other fields than declared")
    for record in content.array_records.values():
        if any(tuple(array.shape) != travelling[name] for name, array in record.items()):
            raise PrivacyError("a tensor has another shape than declared")
    return content


def check_reply(
    content: RecordDict,
    declared: Declaration,
    *,
    message_type: str,
    releases: Releases,
    travelling: Mapping[str, tuple[int, ...]],
) -> Findings | None:
    """What a reply says of the incoming model, if the server may use the reply at all.

    Flower's strategies pair tensors of clients by position, so their order counts too.

    Args:
        content: What arrived.
        declared: What its sender declared before round 1.
        message_type: `train` or `evaluate`.
        releases: What this run's replies carry.
        travelling: Names and shapes of the tensors that were sent, in order.

    Raises:
        FederationError: The reply is not what the run's clients agreed to send.
    """
    try:
        check_release(content, message_type=message_type, releases=releases, travelling=travelling)
    except PrivacyError as error:
        raise FederationError(f"client {declared.name} sent another reply than agreed: {error}") from None
    if any(list(record) != list(travelling) for record in content.array_records.values()):
        raise FederationError(f"client {declared.name} sent its tensors in another order than it got them")
    if content.metric_records[METRICS][NUM_EXAMPLES] != declared.num_units:
        raise FederationError(f"client {declared.name} weighs its update by another size than it declared")
    return decode_findings(content, len(declared.classes))
