"""The messages of a secure sum as Flower's records.

Requests and replies each have one record of plain values. What they mean is decided by `common.secagg`, which checks
every size, digest and signature.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.config.loading import Scalar
from common.errors import FederationError
from common.messages.codec import CONFIG, run_config
from common.messages.fields import ARRAYS, METRICS, NUM_EXAMPLES, SECURE, WORDS
from common.messages.serialization import digest_of
from common.models.weight_files import RANDOM
from common.secagg.protocol.messages import Advert, Announcement, Delivery, UnmaskReply, UnmaskRequest
from common.secagg.protocol.roster import Roster

_T = TypeVar("_T")
# Settings of the process or the holder. They may differ between clients, and after a run is resumed.
_OWN = ("resume", "output-dir", "data.source", "data.path", "data.validation", "privacy.policy")
_ADVERT = ("index", "channel-key", "mask-keys-digest", "seeds-digest", "signature")


@dataclass(frozen=True)
class SetupRequest:
    """The server's question that begins a set-up.

    `attempt` is another number for each set-up. `sizes` are the declared numbers of units of those who are asked.
    """

    attempt: int
    sizes: Mapping[str, int]


def context_of(asked: RecordDict, settings: Mapping[str, Scalar]) -> bytes:
    """Return the digest of everything that decides what a client computes, 32 bytes.

    That is the round's message and the run's settings, which travel apart from it. Without the settings a server could
    let all clients but one make no step, and the sum would be that one's update.

    >>> context_of(RecordDict(), {"seed": 1}) == context_of(RecordDict(), {"seed": 2})
    False
    """
    agreed = {key: value for key, value in settings.items() if key not in _OWN and not key.startswith("system.")}
    # Each client has a file of its own, whose content is declared. Whether there is one is the run's choice.
    if agreed.get("model.weights") not in (None, "", RANDOM):
        agreed["model.weights"] = "file"
    digest = hashlib.sha256(json.dumps(agreed, sort_keys=True).encode())
    digest.update(bytes.fromhex(digest_of(asked)))
    return digest.digest()


def request_content(run_id: str, values: Mapping[str, Any]) -> RecordDict:
    """Return the content of a message of a secure sum."""
    return RecordDict({CONFIG: run_config(run_id), SECURE: ConfigRecord(dict(values))})


def reply_content(values: Mapping[str, Any]) -> RecordDict:
    """Return the content of a reply of a secure sum."""
    return RecordDict({SECURE: ConfigRecord(dict(values))})


def words_content(words: np.ndarray, num_units: int) -> RecordDict:
    """Return the masked reply of a round, of words packed into bytes."""
    metrics = MetricRecord({NUM_EXAMPLES: num_units})
    return RecordDict({ARRAYS: ArrayRecord({WORDS: Array(words)}), METRICS: metrics})


def setup_values(request: SetupRequest) -> dict[str, Any]:
    """Encode the question that begins a set-up."""
    return {"attempt": request.attempt, "names": list(request.sizes), "sizes": list(request.sizes.values())}


def setup_request(content: RecordDict) -> SetupRequest:
    """Decode the question that begins a set-up.

    Raises:
        FederationError: A value is missing or of the wrong type.
    """

    def read(record: ConfigRecord) -> SetupRequest:
        sizes = dict(zip(_texts(record["names"]), _numbers(record["sizes"]), strict=True))
        if min(sizes.values()) < 1:
            raise ValueError
        return SetupRequest(_number(record["attempt"]), sizes)

    return _decoded(content, read)


def announcement_values(announcement: Announcement, roster: Roster) -> dict[str, Any]:
    """Encode a client's announcement, with the roster that it goes by."""
    keys = {"mask-keys": announcement.mask_keys, "seed-commitments": announcement.seed_commitments}
    public = {"names": list(roster.names), "identity-keys": list(roster.keys)}
    return dict(zip(_ADVERT, _advert_parts(announcement.advert), strict=True)) | keys | public


def announced(content: RecordDict) -> tuple[Announcement, Roster]:
    """Decode a client's announcement and its roster.

    Raises:
        FederationError: A value is missing or of the wrong type.
        SecureSumError: The roster has a key twice.
    """

    def read(record: ConfigRecord) -> tuple[Announcement, Roster]:
        advert = Advert(_number(record["index"]), *(_bytes(record[key]) for key in _ADVERT[1:]))
        roster = Roster.of(dict(zip(_texts(record["names"]), _blobs(record["identity-keys"]), strict=True)))
        return Announcement(advert, _bytes(record["mask-keys"]), _bytes(record["seed-commitments"])), roster

    return _decoded(content, read)


def delivery_values(delivery: Delivery) -> dict[str, Any]:
    """Encode what one client must know of the others."""
    columns = zip(*map(_advert_parts, delivery.adverts), strict=True)
    adverts = {key: list(column) for key, column in zip(_ADVERT, columns, strict=True)}
    return adverts | {"neighbours": list(delivery.mask_keys), "mask-keys": list(delivery.mask_keys.values())}


def delivered(content: RecordDict) -> Delivery:
    """Decode what one client must know of the others.

    Raises:
        FederationError: A value is missing or of the wrong type.
    """

    def read(record: ConfigRecord) -> Delivery:
        columns = [_numbers(record["index"]), *(_blobs(record[key]) for key in _ADVERT[1:])]
        adverts = tuple(Advert(*row) for row in zip(*columns, strict=True))
        keys = dict(zip(_numbers(record["neighbours"]), _blobs(record["mask-keys"]), strict=True))
        return Delivery(adverts, keys)

    return _decoded(content, read)


def box_values(boxes: Mapping[int, bytes]) -> dict[str, Any]:
    """Encode sealed shares by the index of the other client."""
    return {"members": list(boxes), "boxes": list(boxes.values())}


def boxes_in(content: RecordDict) -> dict[int, bytes]:
    """Decode sealed shares.

    Raises:
        FederationError: A value is missing or of the wrong type.
    """
    return _decoded(
        content, lambda record: dict(zip(_numbers(record["members"]), _blobs(record["boxes"]), strict=True))
    )


def unmask_values(request: UnmaskRequest) -> dict[str, Any]:
    """Encode the question at the end of a round."""
    survivors, responders = list(request.survivors), list(request.responders)
    return {"round": request.round_number, "survivors": survivors, "responders": responders}


def unmask_request(content: RecordDict) -> UnmaskRequest:
    """Decode the question at the end of a round.

    Raises:
        FederationError: A value is missing or of the wrong type.
    """

    def read(record: ConfigRecord) -> UnmaskRequest:
        survivors, responders = tuple(_numbers(record["survivors"])), tuple(_numbers(record["responders"]))
        return UnmaskRequest(_number(record["round"]), survivors, responders)

    return _decoded(content, read)


def answer_values(reply: UnmaskReply) -> dict[str, Any]:
    """Encode a member's answer at the end of a round."""
    return {"index": reply.index, "request": reply.request, "shares": reply.shares}


def answer_in(content: RecordDict) -> UnmaskReply:
    """Decode a member's answer.

    Raises:
        FederationError: A value is missing or of the wrong type.
    """
    return _decoded(
        content,
        lambda record: UnmaskReply(_number(record["index"]), _bytes(record["request"]), _bytes(record["shares"])),
    )


def _advert_parts(advert: Advert) -> tuple[Any, ...]:
    return (
        advert.index,
        advert.channel_key,
        advert.mask_keys_digest,
        advert.seeds_digest,
        advert.signature,
    )


def _decoded(content: RecordDict, read: Callable[[ConfigRecord], _T]) -> _T:
    try:
        return read(content.config_records[SECURE])
    except (KeyError, TypeError, ValueError):
        raise FederationError("a message of a secure sum lacks a value, or has one of another type") from None


def _number(value: object) -> int:
    if type(value) is not int or value < 0:
        raise TypeError
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError
    return value


def _listed(value: object, check: Callable[[object], _T]) -> list[_T]:
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise TypeError
    return [check(item) for item in value]


def _numbers(value: object) -> list[int]:
    return _listed(value, _number)


def _blobs(value: object) -> list[bytes]:
    return _listed(value, _bytes)


def _texts(value: object) -> list[str]:
    texts = _listed(value, str)
    if not isinstance(value, Sequence) or texts != list(value):
        raise TypeError
    return texts
