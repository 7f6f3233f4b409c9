"""The wire contract: key names, and RecordDict to and from domain types.

What a client may send is declared in `common.messages.fields`; `common.messages.checks` refuses
anything else.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from common.errors import ClientFailure, FederationError
from common.ledger.signed_heads import SignedHead
from common.messages.fields import (
    ARRAYS,
    CLIENT,
    CONFUSION,
    CORRECT,
    LEDGER,
    LOSS_SUM,
    METRICS,
    NOISED_CONFUSION,
    NUM_EXAMPLES,
    PERSONAL_CONFUSION,
    PERSONAL_COUNTS,
    TRAIN_LOSS,
    WRONG,
)
from common.metrics import Counts, NoisedCounts, total

CONFIG = "config"
SERVER_ROUND = "server-round"
RUN_ID = "run-id"
# Only queries carry it: the digest of a round's request is in ledgers, and must stay what it was.
PROTOCOL, PROTOCOL_VERSION = "protocol", 1
_LONGEST_HEX, _MOST_CLASSES, _LONGEST_CLASS = 128, 100_000, 1000
_CONFIG_KEYS = {SERVER_ROUND, RUN_ID, PROTOCOL, "proximal-mu"}  # a client takes the last from its own configuration


@dataclass(frozen=True)
class Evaluation:
    """What a client says of the incoming model.

    Attributes:
        counts: Of the global model, on held-out images; exact.
        personal: Of the client's own model, if tensors stay with the client; exact.
        train_loss: Mean cross-entropy in nats on training images, for QFedAvg only.
        noised: Of the global model, one vote a unit, with noise in each count.
    """

    counts: Counts | None = None
    personal: Counts | None = None
    train_loss: float | None = None
    noised: NoisedCounts | None = None


@dataclass(frozen=True)
class Declaration:
    """What a client declares once, before round 1: public constants only.

    Attributes:
        name: Stable name of the client; Flower's node ids change with each run.
        num_units: Declared size, also the aggregation weight.
        classes: Class names, equal at all clients.
        input_shape: Shape of one input to the trainable part.
        backbone_hash: Hash of the frozen weights; empty if there are none.
        bundle: Digest of the bundle of code that the client has pinned and its launcher has checked; empty where
            it runs whatever the server sends.
    """

    name: str
    num_units: int
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    backbone_hash: str
    bundle: str = ""


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
            "bundle": declaration.bundle,
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
        classes, shape, bundle = record["classes"], record["input-shape"], record["bundle"]
    except KeyError as error:
        raise FederationError(f"a client's declaration lacks {error}") from None
    if not (isinstance(name, str) and type(units) is int and units > 0 and isinstance(digest, str)):
        raise FederationError("a client's declaration has a field of the wrong type")
    if not (isinstance(bundle, str) and re.fullmatch("([0-9a-f]{64})?", bundle)):
        raise FederationError("a client's declaration has a field of the wrong type")
    if not 0 < len(name) <= 64 or not name.isprintable():
        raise FederationError("a client calls itself by a name that cannot be shown")
    if not (isinstance(classes, list) and isinstance(shape, list)):
        raise FederationError("a client's declaration has a field of the wrong type")
    if len(classes) > _MOST_CLASSES or len(shape) > 4 or any(len(str(label)) > _LONGEST_CLASS for label in classes):
        raise FederationError("a client's declaration is longer than any that this server takes")
    if not (all(isinstance(label, str) for label in classes) and all(type(n) is int and n > 0 for n in shape)):
        raise FederationError("a client's declaration has a field of the wrong type")
    return Declaration(name, units, tuple(map(str, classes)), tuple(map(int, shape)), digest, bundle)


def encode_update(arrays: Mapping[str, np.ndarray], num_units: int, evaluation: Evaluation | None) -> RecordDict:
    """The reply to a training message.

    Args:
        arrays: Travelling tensors after local training.
        num_units: Declared size of the client: the aggregation weight.
        evaluation: Evaluation of the incoming model, if any of it may leave.
    """
    return RecordDict({ARRAYS: arrays_to_record(arrays), METRICS: _metrics(num_units, evaluation)})


def encode_evaluation(num_units: int, evaluation: Evaluation | None) -> RecordDict:
    """The reply to an evaluation message."""
    return RecordDict({METRICS: _metrics(num_units, evaluation)})


def _metrics(num_units: int, evaluation: Evaluation | None) -> MetricRecord:
    metrics = MetricRecord({NUM_EXAMPLES: num_units})
    if evaluation is None:
        return metrics
    if evaluation.counts is not None:
        _put_counts(metrics, evaluation.counts, CONFUSION, LOSS_SUM)
    if evaluation.noised is not None:
        _put_noised(metrics, evaluation.noised)
    if evaluation.personal is not None:
        _put_counts(metrics, evaluation.personal, *PERSONAL_COUNTS)
    if evaluation.train_loss is not None:
        metrics[TRAIN_LOSS] = float(evaluation.train_loss)
    return metrics


def _put_counts(metrics: MetricRecord, counts: Counts, confusion: str, loss_sum: str) -> None:
    metrics[confusion] = [int(n) for n in counts.confusion.ravel()]
    if not math.isnan(counts.loss_sum):
        metrics[loss_sum] = float(counts.loss_sum)


def _put_noised(metrics: MetricRecord, noised: NoisedCounts) -> None:
    cells = [int(n) for n in noised.cells.ravel()]
    if noised.cells.ndim == 1:
        metrics[CORRECT], metrics[WRONG] = cells
    else:
        metrics[NOISED_CONFUSION] = cells


def decode_evaluation(content: RecordDict, num_classes: int | None = None) -> Evaluation | None:
    """What a reply says of the incoming model, or None if it carries no counts.

    Args:
        content: A reply.
        num_classes: The side that a matrix must have, if it is known.

    Raises:
        FederationError: A matrix is not square, a count is negative, or a loss is no finite number
            of at least 0 where one is needed.
    """
    metrics = content.metric_records[METRICS]
    noised = _noised(metrics, num_classes)
    if noised is not None:
        return Evaluation(noised=noised)
    if CONFUSION not in metrics:
        return None
    counts = _counts(metrics, CONFUSION, LOSS_SUM, num_classes)
    personal = _counts(metrics, *PERSONAL_COUNTS, num_classes) if PERSONAL_CONFUSION in metrics else None
    loss = metrics.get(TRAIN_LOSS)
    if loss is not None and not (isinstance(loss, float) and math.isfinite(loss) and loss >= 0):
        raise FederationError("a client sent a training loss that is no finite number of at least 0")
    return Evaluation(counts, personal, loss)


def _noised(metrics: MetricRecord, num_classes: int | None) -> NoisedCounts | None:
    if CORRECT in metrics:
        pair = [metrics[CORRECT], metrics.get(WRONG)]
        if not all(type(value) is int for value in pair):
            raise FederationError("a client sent noised counts that are no whole numbers")
        return NoisedCounts(np.array(pair, dtype=np.int64))
    if NOISED_CONFUSION in metrics:
        return NoisedCounts(_square(metrics[NOISED_CONFUSION], num_classes))
    return None


def _square(listed: object, num_classes: int | None) -> np.ndarray:
    flat = np.asarray(listed)
    side = math.isqrt(flat.size)
    if not side or side * side != flat.size or num_classes not in (None, side) or flat.dtype.kind != "i":
        raise FederationError("a client sent counts that are no confusion matrix")
    return flat.reshape(side, side).astype(np.int64)


def _counts(metrics: MetricRecord, confusion: str, loss_sum: str, num_classes: int | None) -> Counts:
    matrix, loss = _square(metrics[confusion], num_classes), metrics.get(loss_sum, math.nan)
    if (matrix < 0).any() or not isinstance(loss, float | int):
        raise FederationError("a client sent counts that are no confusion matrix")
    return Counts(matrix, float(loss))


def sum_counts(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Add up counts over clients, for a strategy's metrics aggregation functions.

    Flower's default would average them. Returns an empty record where no exact counts are sent.
    """
    del weighted_by_key
    evaluation = [found for found in map(decode_evaluation, contents) if found is not None]
    summed = total(found.counts for found in evaluation if found.counts is not None)
    if summed is None:
        return MetricRecord()
    metrics = MetricRecord()
    _put_counts(metrics, summed, CONFUSION, LOSS_SUM)
    return metrics


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


def run_id_of(content: RecordDict) -> str:
    """The run that a message belongs to, by the server's own name for it.

    Raises:
        FederationError: The message does not say, or brings settings that no message may bring.
    """
    record = content.config_records.get(CONFIG, ConfigRecord())
    value = record.get(RUN_ID)
    # It names files and is looked up in the ledger: nothing but a random number may be in it.
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{32}", value):
        raise FederationError("a message lacks the run it belongs to, 32 hex digits")
    if strangers := set(record) - _CONFIG_KEYS:
        raise FederationError(f"a message brings settings that no message may bring: {len(strangers)}")
    return value


def run_config(run_id: str) -> ConfigRecord:
    """The part of every message that names its run."""
    return ConfigRecord({RUN_ID: run_id})


def query_config(run_id: str) -> ConfigRecord:
    """Return the settings of a query, which name its run and the version of Bract's messages."""
    return ConfigRecord({RUN_ID: run_id, PROTOCOL: PROTOCOL_VERSION})


def encode_head(head: SignedHead) -> ConfigRecord:
    """The head of a client's ledger, as it goes along with every reply."""
    return ConfigRecord(
        {
            "ledger-id": head.ledger,
            "seq": head.seq,
            "head": head.hash,
            "public-key": head.public_key,
            "signature": head.signature,
        }
    )


def decode_head(content: RecordDict) -> SignedHead:
    """The head that came with a reply; not checked yet.

    Raises:
        FederationError: There is none, or a field is of the wrong type.
    """
    try:
        record = content.config_records[LEDGER]
        ledger, seq, head = record["ledger-id"], record["seq"], record["head"]
        key, signature = record["public-key"], record["signature"]
    except KeyError:
        raise FederationError("a client's reply lacks the head of its ledger") from None
    if type(seq) is not int or not all(isinstance(text, str) for text in (ledger, head, key, signature)):
        raise FederationError("the head of a client's ledger has a field of the wrong type")
    if max(map(len, map(str, (ledger, head, key, signature)))) > _LONGEST_HEX:
        raise FederationError("the head of a client's ledger has a field that is too long")
    return SignedHead(str(ledger), seq, str(head), str(key), str(signature))
