"""The checks of messages on both sides, before they are used or sent.

`common.messages.fields` declares what a client may send.
"""

import math
from collections.abc import Mapping
from io import BytesIO

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from numpy.lib.format import read_array_header_1_0, read_array_header_2_0, read_magic

from common.errors import BundleError, FederationError, NotFiniteError, PrivacyError
from common.messages.codec import CONFIG, PROTOCOL, PROTOCOL_VERSION, Declaration, Evaluation, decode_evaluation
from common.messages.fields import (
    ACCEPT,
    ARRAYS,
    CLIENT,
    CODES,
    LEDGER,
    METRICS,
    NUM_EXAMPLES,
    SECURE,
    SECURE_FIELDS,
    WORDS,
    Releases,
)
from common.messages.held_array import HeldArray, array_records_in, values_of
from common.messages.rounded_update import leaving_shapes

_KINDS = {ARRAYS: ArrayRecord, METRICS: MetricRecord, CLIENT: ConfigRecord, LEDGER: ConfigRecord, SECURE: ConfigRecord}
_NUMPY = "numpy.ndarray"
_FLOATS, _BYTES, _RING_WORDS = ("<f4", "<f8"), ("|i1",), ("|u1",)


def check_request(content: RecordDict, *, message_type: str) -> None:
    """Refuse extra records and queries of another version of Bract.

    A record that nothing reads could be of any size.

    Raises:
        BundleError: A query's version of Bract's messages is missing or not this one.
        FederationError: A record is extra.
    """
    if message_type == "query":
        _check_protocol(content)
    allowed = {CONFIG} if message_type.startswith("query") else {CONFIG, ARRAYS}
    if message_type in (*SECURE_FIELDS, ACCEPT):
        allowed = {CONFIG, SECURE}
    if unknown := set(content) - allowed:
        raise FederationError(f"a message has {len(unknown)} records that no message of its type may have")


def _check_protocol(content: RecordDict) -> None:
    version = content.config_records.get(CONFIG, ConfigRecord()).get(PROTOCOL)
    if version != PROTOCOL_VERSION:
        shown = version if type(version) is int else "none"
        raise BundleError(
            f"the server runs another version of Bract (protocol {shown}, this client has {PROTOCOL_VERSION}): "
            "install the same version at both ends; nothing was charged"
        )


def check_incoming(arrays: Mapping[str, np.ndarray], trainable: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a received model that is not the agreed one.

    A wrong shape could fail for some labels only. The failure would then tell the server which labels a client has.

    Raises:
        FederationError: Names or shapes differ, or a value is not finite.
    """
    if {name: array.shape for name, array in arrays.items()} != dict(trainable):
        raise FederationError("the server sent tensors of other names or shapes than the model has")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise FederationError("the server sent a tensor with values that are not finite")


def check_release(
    content: RecordDict, *, message_type: str, releases: Releases, travelling: Mapping[str, tuple[int, ...]]
) -> RecordDict:
    """Return a reply unchanged if its fields are exactly those of the allow-list.

    `travelling` are names and shapes of the tensors, in a secure sum those of the masked words.

    Raises:
        PrivacyError: A record or field is not declared, is missing, or has another shape.
    """
    allowed, travelling = releases.fields(message_type), leaving_shapes(travelling, releases)
    if set(content) != set(allowed):
        raise PrivacyError(f"records {sorted(content)} may not leave, only {sorted(allowed)}")
    for name, keys in allowed.items():
        if not isinstance(content[name], _KINDS[name]):
            raise PrivacyError(f"record {name!r} is of another kind than declared")
        if set(content[name]) != set(travelling if keys is None else keys):
            raise PrivacyError(f"record {name!r} holds other fields than declared")
    for record in array_records_in(content).values():
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
    """Return the evaluation in a reply that the server may use.

    Flower's strategies match tensors by position, so their order is checked too. The result is None if the reply
    carries no evaluation.

    Raises:
        NotFiniteError: A tensor holds values that are not finite.
        FederationError: The reply breaks the agreed format.
    """
    try:
        check_release(content, message_type=message_type, releases=releases, travelling=travelling)
    except PrivacyError as error:
        raise FederationError(f"client {declared.name} sent another reply than agreed: {error}") from None
    travelling = leaving_shapes(travelling, releases)
    if any(list(record) != list(travelling) for record in array_records_in(content).values()):
        raise FederationError(f"client {declared.name} sent its tensors in another order than it received them")
    for record in array_records_in(content).values():
        if releases.secure:
            # Any word is possible under a mask, so the type and the length are all that can be checked.
            check_tensor(record[WORDS], travelling[WORDS], types=_RING_WORDS)
        else:
            _check_numbers(record, travelling, declared.name, releases)
    if METRICS not in content:
        return None
    if content.metric_records[METRICS][NUM_EXAMPLES] != declared.num_units:
        raise FederationError(f"client {declared.name} weighs its update by another size than it declared")
    return decode_evaluation(content, len(declared.classes), releases.subgroups)


def _check_numbers(
    record: ArrayRecord, travelling: Mapping[str, tuple[int, ...]], client: str, releases: Releases
) -> None:
    """Refuse tensors whose bytes are not finite numbers of the agreed types and shapes.

    Where the server clips, a float32 update that is not finite is allowed: it counts as zero and is accounted for. A
    client whose update leaves rounded makes it zero itself.
    """
    clipped = releases.mechanism.noise_at_server and not releases.rounded
    for name, array in record.items():
        codes = releases.rounded and name == CODES
        try:
            check_tensor(array, travelling[name], types=_BYTES if codes else _FLOATS)
            values = values_of(array)
        except FederationError as error:
            raise FederationError(f"client {client} sent {error}") from None
        # Sums in float32 would depend on how the images are split among the clients.
        wanted = np.float32 if releases.statistics is None else np.float64
        if not codes and values.dtype != wanted:
            raise FederationError(f"client {client} sent a tensor of another type than agreed")
        if not clipped and not np.isfinite(values).all():
            raise NotFiniteError(f"client {client} sent a tensor with values that are not finite")


def check_tensor(array: Array, shape: tuple[int, ...], *, types: tuple[str, ...] = _FLOATS) -> None:
    """Refuse a tensor by its header, before its bytes are read.

    A few bytes can claim to be a tensor of any size, and a reader would reserve the memory.

    Raises:
        FederationError: The tensor is not of one of NumPy's `types`, or has another shape.
    """
    if isinstance(array, HeldArray):
        # Values of this process, with no bytes that could claim anything else.
        if array.values.shape != tuple(shape) or array.values.dtype.str not in types:
            raise FederationError("a tensor of another type or shape than agreed")
        return
    if array.stype != _NUMPY:
        raise FederationError("a tensor that numpy did not write")
    try:
        stream = BytesIO(array.data)
        read = {(1, 0): read_array_header_1_0, (2, 0): read_array_header_2_0}[read_magic(stream)]
        claimed, _, dtype = read(stream)
        whole = len(array.data) - stream.tell() == dtype.itemsize * math.prod(shape)
    # numpy's reader raises errors of many types on forged bytes.
    except Exception as error:
        raise FederationError(f"a tensor that cannot be read ({type(error).__name__})") from None
    if tuple(claimed) != tuple(shape) or dtype.str not in types or not whole:
        raise FederationError("a tensor of another type or shape than agreed")
