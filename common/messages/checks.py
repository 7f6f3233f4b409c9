"""What may come in and go out: the wire contract enforced on both sides.

What a client may send is declared in `common.messages.fields`.
"""

import math
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from common.errors import BundleError, FederationError, PrivacyError
from common.messages.codec import (
    CONFIG,
    PROTOCOL,
    PROTOCOL_VERSION,
    Declaration,
    Evaluation,
    decode_evaluation,
)
from common.messages.fields import ARRAYS, CLIENT, LEDGER, METRICS, NUM_EXAMPLES, Releases

_KINDS = {ARRAYS: ArrayRecord, METRICS: MetricRecord, CLIENT: ConfigRecord, LEDGER: ConfigRecord}
_NUMPY = "numpy.ndarray"


def check_request(content: RecordDict, *, message_type: str) -> None:
    """Refuse a message with extra records, or a query from another version of Bract.

    Args:
        content: What a server sent.
        message_type: `query`, `query.close`, `train` or `evaluate`.

    Raises:
        BundleError: A query's version of Bract's messages is missing or not this one.
        FederationError: A record is extra.
    """
    if message_type == "query":
        _check_protocol(content)
    allowed = {CONFIG} if message_type.startswith("query") else {CONFIG, ARRAYS}
    if strangers := set(content) - allowed:
        raise FederationError(f"a message brings {len(strangers)} records that no message of its kind has")


def _check_protocol(content: RecordDict) -> None:
    version = content.config_records.get(CONFIG, ConfigRecord()).get(PROTOCOL)
    if version != PROTOCOL_VERSION:
        shown = version if type(version) is int else "none"
        raise BundleError(
            f"the server runs another version of Bract (protocol {shown}, this client has {PROTOCOL_VERSION}): "
            "install the same version at both ends; nothing was charged"
        )


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
        message_type: `query`, `query.close`, `train` or `evaluate`.
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
) -> Evaluation | None:
    """What a reply says of the incoming model, if the server may use the reply at all.

    Flower's strategies pair tensors of clients by position, so their order counts too.

    Args:
        content: What arrived.
        declared: What its sender declared before round 1.
        message_type: `train`, `evaluate` or `query.close`.
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
    for record in content.array_records.values():
        _check_numbers(record, travelling, declared.name, clipped=releases.mechanism.noise_at_server)
    if METRICS not in content:
        return None
    if content.metric_records[METRICS][NUM_EXAMPLES] != declared.num_units:
        raise FederationError(f"client {declared.name} weighs its update by another size than it declared")
    return decode_evaluation(content, len(declared.classes))


def _check_numbers(record: ArrayRecord, travelling: Mapping[str, tuple[int, ...]], who: str, *, clipped: bool) -> None:
    """Read the tensors for real: what a record says of shapes and types need not be what its bytes hold.

    Where the server clips, an update that is not finite counts as zero, and takes part: so it is accounted for.
    """
    for name, array in record.items():
        try:
            check_tensor(array, travelling[name])
            values = array.numpy()
        except FederationError as error:
            raise FederationError(f"client {who} sent {error}") from None
        if values.dtype != np.float32:
            raise FederationError(f"client {who} sent a tensor of another type than it got")
        if not clipped and not np.isfinite(values).all():
            raise FederationError(f"client {who} sent a tensor with values that are not finite")


def check_tensor(array: Array, shape: tuple[int, ...]) -> None:
    """Refuse a tensor's bytes before they are read, if they are not what was agreed on.

    A few bytes can claim to be a tensor of any size, which whoever reads them would make room for.

    Args:
        array: As it came.
        shape: What it must be.

    Raises:
        FederationError: It is no tensor of 32 or 64 bit numbers, or one of another shape.
    """
    if array.stype != _NUMPY:
        raise FederationError("a tensor that numpy did not write")
    try:
        stream = BytesIO(array.data)
        read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(stream)]
        found, _, dtype = read(stream)
        whole = len(array.data) - stream.tell() == dtype.itemsize * math.prod(shape)
    except Exception as error:  # numpy's reader raises what it likes on bytes that were made up
        raise FederationError(f"a tensor that cannot be read ({type(error).__name__})") from None
    if tuple(found) != tuple(shape) or dtype.str not in ("<f4", "<f8") or not whole:
        raise FederationError("a tensor of another type or shape than agreed")
