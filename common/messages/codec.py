"""The encoding and decoding of messages as Flower's records.

`common.messages.fields` declares what a client may send, `common.messages.checks` refuses anything else.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict

from common.arrays import Arrays
from common.errors import ClientFailure, FederationError
from common.ledger.signed_heads import SignedHead
from common.messages import fields
from common.messages.held_array import HeldArray, values_of
from common.metrics import Counts, NoisedCounts, total
from common.score_histograms import NUM_CONFIDENCE_BINS, NUM_SCORE_BINS, ScoreHistograms
from common.subgroup_counts import SubgroupCounts

CONFIG = "config"
SERVER_ROUND = "server-round"
RUN_ID = "run-id"
# Only queries carry it: the digest of a round's request is in ledgers, and must stay what it was.
PROTOCOL, PROTOCOL_VERSION = "protocol", 4
# Limits on what one client can make the server hold, far above anything real.
_LONGEST_HEX, _MOST_CLASSES, _LONGEST_CLASS = 128, 100_000, 1000
_LARGEST_COUNT = 1 << 40
# FedProx sends its `proximal-mu`; a client takes the value from its own settings instead.
_CONFIG_KEYS = {SERVER_ROUND, RUN_ID, PROTOCOL, "proximal-mu"}


@dataclass(frozen=True)
class Evaluation:
    """A client's evaluation of the model that it received.

    `counts` and `personal` are exact, for the global and the client's own model. `train_loss` is the mean cross-entropy
    in nats on training images, for QFedAvg only. `noised` has noise in each count, with one vote for each unit.
    `histograms` of the scores are exact beside exact counts and noised beside noised ones, and so are the counts by
    `subgroups`.
    """

    counts: Counts | None = None
    personal: Counts | None = None
    train_loss: float | None = None
    noised: NoisedCounts | None = None
    histograms: ScoreHistograms | None = None
    subgroups: SubgroupCounts | None = None


@dataclass(frozen=True)
class Declaration:
    """The public constants that a client declares before its first round.

    The name stays while Flower's node ids change with each run, and `num_units` is also the weight in averages. An
    empty `backbone_hash` means no frozen weights. `bundle` is the digest that the client's policy pins and its launcher
    checked, empty for a client that runs any code of the server.
    """

    name: str
    num_units: int
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    backbone_hash: str
    bundle: str = ""


def arrays_to_record(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Return tensors as Flower's record, in the same order.

    The record holds the tensors themselves, so nobody may change them any more.
    """
    record = ArrayRecord()
    # One by one, because the constructor encodes them all.
    for name, array in arrays.items():
        record[name] = HeldArray(array)
    return record


def record_to_arrays(record: ArrayRecord) -> Arrays:
    """Return the tensors of a record as float32.

    They may be read-only. Aggregation may have widened them to float64.

    Raises:
        FederationError: A tensor does not hold real floating-point numbers.
    """
    arrays = {name: values_of(array) for name, array in record.items()}
    if any(array.dtype.kind != "f" for array in arrays.values()):
        raise FederationError("a tensor does not hold floating-point numbers")
    # A value beyond float32 becomes infinite, which later checks refuse.
    with np.errstate(over="ignore"):
        return {name: np.asarray(array, dtype=np.float32) for name, array in arrays.items()}


def encode_declaration(declaration: Declaration) -> RecordDict:
    """Encode the reply to a query."""
    sizes = (declaration.num_units, list(declaration.classes), list(declaration.input_shape))
    values = (declaration.name, *sizes, declaration.backbone_hash, declaration.bundle)
    return RecordDict({fields.CLIENT: ConfigRecord(dict(zip(fields.DECLARATION_FIELDS, values, strict=True)))})


def decode_declaration(content: RecordDict) -> Declaration:
    """Decode the reply to a query.

    Raises:
        FederationError: A field is missing, too long or of the wrong type.
    """
    try:
        record = content.config_records[fields.CLIENT]
        name, units, digest = record["name"], record["num-units"], record["backbone-hash"]
        classes, shape, bundle = record["classes"], record["input-shape"], record["bundle"]
    except KeyError as error:
        raise FederationError(f"a client's declaration lacks {error}") from None
    if not (isinstance(name, str) and type(units) is int and units > 0 and isinstance(digest, str)):
        raise FederationError("a client's declaration has a field of the wrong type")
    if not (isinstance(bundle, str) and re.fullmatch("([0-9a-f]{64})?", bundle)):
        raise FederationError("a client's declaration has a field of the wrong type")
    if not 0 < len(name) <= 64 or not name.isprintable():
        raise FederationError("a client declared a name that cannot be shown: it needs 1 to 64 printable characters")
    if not (isinstance(classes, list) and isinstance(shape, list)):
        raise FederationError("a client's declaration has a field of the wrong type")
    if len(classes) > _MOST_CLASSES or len(shape) > 4 or any(len(str(label)) > _LONGEST_CLASS for label in classes):
        raise FederationError("a client's declaration is longer than any that this server accepts")
    if not (all(isinstance(label, str) for label in classes) and all(type(n) is int and n > 0 for n in shape)):
        raise FederationError("a client's declaration has a field of the wrong type")
    return Declaration(name, units, tuple(map(str, classes)), tuple(map(int, shape)), digest, bundle)


def encode_update(arrays: Mapping[str, np.ndarray], num_units: int, evaluation: Evaluation | None) -> RecordDict:
    """Encode the reply to a training message."""
    return RecordDict({fields.ARRAYS: arrays_to_record(arrays), fields.METRICS: _metrics(num_units, evaluation)})


def encode_evaluation(num_units: int, evaluation: Evaluation | None) -> RecordDict:
    """Encode the reply to an evaluation message."""
    return RecordDict({fields.METRICS: _metrics(num_units, evaluation)})


def _metrics(num_units: int, evaluation: Evaluation | None) -> MetricRecord:
    metrics = MetricRecord({fields.NUM_EXAMPLES: num_units})
    if evaluation is None:
        return metrics
    if evaluation.counts is not None:
        _put_counts(metrics, evaluation.counts, fields.CONFUSION, fields.LOSS_SUM)
    if evaluation.noised is not None:
        _put_noised(metrics, evaluation.noised)
    if evaluation.histograms is not None:
        names = fields.HISTOGRAMS if evaluation.noised is None else fields.NOISED_HISTOGRAMS
        parts = (evaluation.histograms.scores, evaluation.histograms.confidence)
        for name, counts in zip(names, parts, strict=True):
            metrics[name] = [int(n) for n in counts.ravel()]
    if evaluation.subgroups is not None:
        name = fields.SUBGROUP_COUNTS if evaluation.noised is None else fields.NOISED_SUBGROUP_COUNTS
        metrics[name] = [int(n) for n in evaluation.subgroups.cells.ravel()]
    if evaluation.personal is not None:
        _put_counts(metrics, evaluation.personal, *fields.PERSONAL_COUNTS)
    if evaluation.train_loss is not None:
        metrics[fields.TRAIN_LOSS] = float(evaluation.train_loss)
    return metrics


def _put_counts(metrics: MetricRecord, counts: Counts, confusion: str, loss_sum: str) -> None:
    metrics[confusion] = [int(n) for n in counts.confusion.ravel()]
    if not math.isnan(counts.loss_sum):
        metrics[loss_sum] = float(counts.loss_sum)


def _put_noised(metrics: MetricRecord, noised: NoisedCounts) -> None:
    cells = [int(n) for n in noised.cells.ravel()]
    if noised.cells.ndim == 1:
        metrics[fields.CORRECT], metrics[fields.WRONG] = cells
    else:
        metrics[fields.NOISED_CONFUSION] = cells


def decode_evaluation(
    content: RecordDict, num_classes: int | None = None, num_subgroups: int | None = None
) -> Evaluation | None:
    """Decode the evaluation in a reply.

    The result is None if the reply carries no counts. `num_classes` is the number of rows that a matrix must have,
    `num_subgroups` that of counts by subgroup.

    Raises:
        FederationError: A matrix is not square, an exact count is negative, or a loss is not a finite number of at
            least 0 where one is needed.
    """
    metrics = content.metric_records[fields.METRICS]
    noised = _noised(metrics, num_classes)
    if noised is not None:
        histograms = _histograms(metrics, fields.NOISED_HISTOGRAMS, len(noised.cells))
        divided = _subgroups(metrics, fields.NOISED_SUBGROUP_COUNTS, num_subgroups)
        return Evaluation(noised=noised, histograms=histograms, subgroups=divided)
    if fields.CONFUSION not in metrics:
        return None
    counts = _counts(metrics, fields.CONFUSION, fields.LOSS_SUM, num_classes)
    personal = _counts(metrics, *fields.PERSONAL_COUNTS, num_classes) if fields.PERSONAL_CONFUSION in metrics else None
    loss = metrics.get(fields.TRAIN_LOSS)
    if loss is not None and not (isinstance(loss, float) and math.isfinite(loss) and loss >= 0):
        raise FederationError("a client sent a training loss that is not a finite number of at least 0")
    histograms = _histograms(metrics, fields.HISTOGRAMS, len(counts.confusion))
    if histograms is not None and not _agree(histograms, counts):
        raise FederationError("a client sent histograms that are not of the same images as its confusion matrix")
    divided = _subgroups(metrics, fields.SUBGROUP_COUNTS, num_subgroups)
    if divided is not None:
        right = int(np.trace(counts.confusion))
        if (divided.cells < 0).any() or divided.cells.sum(axis=0).tolist() != [right, counts.num_examples - right]:
            raise FederationError("a client sent subgroups that are not of the same images as its confusion matrix")
    return Evaluation(counts, personal, loss, histograms=histograms, subgroups=divided)


def _subgroups(metrics: MetricRecord, name: str, num_subgroups: int | None) -> SubgroupCounts | None:
    if name not in metrics:
        return None
    flat = np.asarray(metrics[name])
    if flat.ndim != 1 or flat.size % 2 or num_subgroups not in (None, flat.size // 2) or not _bounded(flat):
        raise FederationError("a client sent counts that are not those of its subgroups")
    return SubgroupCounts(flat.reshape(-1, 2).astype(np.int64))


def _bounded(counts: np.ndarray) -> bool:
    # Whole numbers beyond 64 bits become objects. Sums of smaller ones could still overflow.
    return counts.dtype.kind == "i" and not ((counts > _LARGEST_COUNT) | (counts < -_LARGEST_COUNT)).any()


def _histograms(metrics: MetricRecord, names: tuple[str, str], num_classes: int) -> ScoreHistograms | None:
    if names[0] not in metrics:
        return None
    shapes = ((num_classes, 2, NUM_SCORE_BINS), (2, NUM_CONFIDENCE_BINS))
    parts = [np.asarray(metrics.get(name)) for name in names]
    for part, shape in zip(parts, shapes, strict=True):
        if part.shape != (math.prod(shape),) or not _bounded(part):
            raise FederationError("a client sent counts that are not histograms of its scores")
    scores, confidence = (part.reshape(shape).astype(np.int64) for part, shape in zip(parts, shapes, strict=True))
    return ScoreHistograms(scores, confidence)


def _agree(histograms: ScoreHistograms, counts: Counts) -> bool:
    """Return whether exact histograms can be of the images of a confusion matrix."""
    scores, confidence, matrix = histograms.scores, histograms.confidence, counts.confusion
    whole = bool((scores >= 0).all() and (confidence >= 0).all())
    own = np.array_equal(scores[:, 1].sum(axis=1), matrix.sum(axis=1))
    others = np.array_equal(scores[:, 0].sum(axis=1), matrix.sum() - matrix.sum(axis=1))
    right = int(np.trace(matrix))
    return whole and own and others and confidence.sum(axis=1).tolist() == [counts.num_examples - right, right]


def _noised(metrics: MetricRecord, num_classes: int | None) -> NoisedCounts | None:
    if fields.CORRECT in metrics:
        pair = [metrics[fields.CORRECT], metrics.get(fields.WRONG)]
        if not all(type(value) is int for value in pair):
            raise FederationError("a client sent noised counts that are not whole numbers")
        return NoisedCounts(np.array(pair, dtype=np.int64))
    if fields.NOISED_CONFUSION in metrics:
        return NoisedCounts(_square(metrics[fields.NOISED_CONFUSION], num_classes))
    return None


def _square(listed: object, num_classes: int | None) -> np.ndarray:
    flat = np.asarray(listed)
    side = math.isqrt(flat.size)
    if not side or side * side != flat.size or num_classes not in (None, side) or flat.dtype.kind != "i":
        raise FederationError("a client sent counts that are not a confusion matrix")
    return flat.reshape(side, side).astype(np.int64)


def _counts(metrics: MetricRecord, confusion: str, loss_sum: str, num_classes: int | None) -> Counts:
    matrix, loss = _square(metrics[confusion], num_classes), metrics.get(loss_sum, math.nan)
    if (matrix < 0).any() or not isinstance(loss, float | int):
        raise FederationError("a client sent counts that are not a confusion matrix")
    return Counts(matrix, float(loss))


def sum_counts(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Add up the exact counts of all clients, as a strategy's metrics aggregation function.

    Flower's own function would average them. Without exact counts the record is empty.
    """
    del weighted_by_key
    evaluations = [evaluation for evaluation in map(decode_evaluation, contents) if evaluation is not None]
    summed = total(evaluation.counts for evaluation in evaluations if evaluation.counts is not None)
    metrics = MetricRecord()
    if summed is not None:
        _put_counts(metrics, summed, fields.CONFUSION, fields.LOSS_SUM)
    return metrics


def failure_reply(failure: ClientFailure, message: Message) -> Message:
    """Return an error reply that carries nothing but its code."""
    return Message(Error(code=int(failure), reason=failure.name), reply_to=message)


def server_round_of(content: RecordDict) -> int:
    """Return the number of the round that a training message belongs to, from 1.

    Raises:
        FederationError: The message has no valid round.
    """
    try:
        value = content.config_records[CONFIG][SERVER_ROUND]
    except KeyError:
        raise FederationError("a training message lacks its round") from None
    if not isinstance(value, int) or value < 1:
        raise FederationError("a training message has no valid round")
    return value


def run_id_of(content: RecordDict) -> str:
    """Return the id of the run that a message belongs to.

    Raises:
        FederationError: The message has no valid id, or settings that no message may have.
    """
    record = content.config_records.get(CONFIG, ConfigRecord())
    value = record.get(RUN_ID)
    # The id becomes part of file names and ledger entries: allow a random number only.
    if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{32}", value):
        raise FederationError("a message lacks the id of its run, 32 hex digits")
    if unknown := set(record) - _CONFIG_KEYS:
        raise FederationError(f"a message has {len(unknown)} settings that no message may have")
    return value


def run_config(run_id: str) -> ConfigRecord:
    """Return the record that names the run in every message."""
    return ConfigRecord({RUN_ID: run_id})


def query_config(run_id: str) -> ConfigRecord:
    """Return the run's name and the version of Bract's messages."""
    return ConfigRecord({RUN_ID: run_id, PROTOCOL: PROTOCOL_VERSION})


def encode_head(head: SignedHead) -> ConfigRecord:
    """Encode the signed head of a client's ledger."""
    values = (head.ledger, head.seq, head.hash, head.public_key, head.signature)
    return ConfigRecord(dict(zip(fields.LEDGER_FIELDS, values, strict=True)))


def decode_head(content: RecordDict) -> SignedHead:
    """Decode the signed head in a reply, without checking its signature.

    Raises:
        FederationError: The head is missing, or a field is too long or of the wrong type.
    """
    try:
        record = content.config_records[fields.LEDGER]
        ledger, seq, head = record["ledger-id"], record["seq"], record["head"]
        key, signature = record["public-key"], record["signature"]
    except KeyError:
        raise FederationError("a client's reply lacks the head of its ledger") from None
    if type(seq) is not int or not all(isinstance(text, str) for text in (ledger, head, key, signature)):
        raise FederationError("the head of a client's ledger has a field of the wrong type")
    if max(map(len, map(str, (ledger, head, key, signature)))) > _LONGEST_HEX:
        raise FederationError("the head of a client's ledger has a field that is too long")
    return SignedHead(str(ledger), seq, str(head), str(key), str(signature))
