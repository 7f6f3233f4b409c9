"""The wire contract: key names, and RecordDict to and from domain types.

The only module in `common` that imports Flower. What a client may send is
declared here, in `ALLOWED_REPLIES`; `check_release` refuses anything else.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from common.errors import ClientFailure, FederationError, PrivacyError
from common.metrics import Counts, total

ARRAYS = "arrays"
METRICS = "metrics"
CONFIG = "config"
CLIENT = "client"
NUM_EXAMPLES = "num-examples"
SERVER_ROUND = "server-round"
CONFUSION = "confusion"
LOSS_SUM = "loss-sum"

_KINDS = {ARRAYS: ArrayRecord, METRICS: MetricRecord, CLIENT: ConfigRecord}
# message type -> record -> keys that may leave a client; None stands for the trainable tensors' names.
_DECLARATION = ("name", "num-units", "classes", "input-shape", "backbone-hash")
ALLOWED_REPLIES: dict[tuple[str, bool], dict[str, tuple[str, ...] | None]] = {
    ("query", True): {CLIENT: _DECLARATION},
    ("query", False): {CLIENT: _DECLARATION},
    ("train", True): {ARRAYS: None, METRICS: (NUM_EXAMPLES,)},
    ("train", False): {ARRAYS: None, METRICS: (NUM_EXAMPLES, CONFUSION, LOSS_SUM)},
    ("evaluate", False): {METRICS: (NUM_EXAMPLES, CONFUSION, LOSS_SUM)},
}


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


def encode_update(arrays: Mapping[str, np.ndarray], num_units: int, counts: Counts | None) -> RecordDict:
    """The reply to a training message.

    Args:
        arrays: Trainable tensors after local training.
        num_units: Declared size of the client: the aggregation weight.
        counts: Evaluation of the incoming model; only without privacy.
    """
    return RecordDict({ARRAYS: arrays_to_record(arrays), METRICS: _metrics(num_units, counts)})


def encode_counts(num_units: int, counts: Counts) -> RecordDict:
    """The reply to an evaluation message; only without privacy."""
    return RecordDict({METRICS: _metrics(num_units, counts)})


def _metrics(num_units: int, counts: Counts | None) -> MetricRecord:
    metrics = MetricRecord({NUM_EXAMPLES: num_units})
    if counts is not None:
        metrics[CONFUSION] = [int(n) for n in counts.confusion.ravel()]
        metrics[LOSS_SUM] = float(counts.loss_sum)
    return metrics


def decode_counts(content: RecordDict, num_classes: int | None = None) -> Counts | None:
    """The counts in a reply, or None if it carries none.

    Args:
        content: A reply.
        num_classes: The side that the matrix must have, if it is known.

    Raises:
        FederationError: The matrix is not square, or a count is negative.
    """
    metrics = content.metric_records[METRICS]
    if CONFUSION not in metrics:
        return None
    flat = np.asarray(metrics[CONFUSION], dtype=np.int64)
    side = math.isqrt(flat.size)
    loss = metrics.get(LOSS_SUM)
    wrong_side = not side or side * side != flat.size or num_classes not in (None, side)
    if wrong_side or (flat < 0).any() or not isinstance(loss, float | int):
        raise FederationError("a client sent counts that are no confusion matrix")
    return Counts(flat.reshape(side, side), float(loss))


def sum_counts(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Add up counts over clients, for a strategy's metrics aggregation functions.

    Flower's default would average them. Returns an empty record under DP, where
    no counts are sent.
    """
    del weighted_by_key
    summed = total(counts for counts in map(decode_counts, contents) if counts is not None)
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


def require_release(message_type: str, *, private: bool) -> None:
    """Refuse, before anything is computed, a request that no reply may answer.

    Raises:
        PrivacyError: Nothing may leave in reply to this type of message.
    """
    if (message_type, private) not in ALLOWED_REPLIES:
        raise PrivacyError(f"nothing may leave in reply to {message_type!r} under this mechanism")


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
    content: RecordDict, *, message_type: str, private: bool, trainable: Mapping[str, tuple[int, ...]]
) -> RecordDict:
    """Let a reply pass only if each of its fields is on the allow-list.

    Args:
        content: What is about to leave.
        message_type: `query`, `train` or `evaluate`.
        private: Whether a privacy mechanism is on.
        trainable: Names and shapes of the tensors that may travel.

    Raises:
        PrivacyError: A record or field is not declared, is missing, or has another shape.
    """
    require_release(message_type, private=private)
    allowed = ALLOWED_REPLIES[message_type, private]
    if set(content) != set(allowed):
        raise PrivacyError(f"records {sorted(content)} may not leave, only {sorted(allowed)}")
    for name, keys in allowed.items():
        if not isinstance(content[name], _KINDS[name]):
            raise PrivacyError(f"record {name!r} is of another kind than declared")
        if set(content[name]) != set(trainable if keys is None else keys):
            raise PrivacyError(f"record {name!r} holds other fields than declared")
    for record in content.array_records.values():
        if any(tuple(array.shape) != trainable[name] for name, array in record.items()):
            raise PrivacyError("a tensor has another shape than declared")
    return content
