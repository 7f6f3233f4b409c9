"""Arrays and metrics of a message as bytes and back: what a ledger keeps of a reply, and what names a request."""

import hashlib
import json
from typing import cast

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from common.errors import LedgerError


def pack(content: RecordDict) -> bytes:
    """Records of arrays and metrics as bytes; equal contents give equal bytes."""
    return b"".join(_parts(content))


def _parts(content: RecordDict) -> list[bytes]:
    """A header, and the arrays' bytes as Flower holds them."""
    arrays = {name: dict(record.items()) for name, record in content.array_records.items()}
    described = {
        "arrays": {
            name: [[key, array.dtype, list(array.shape), array.stype, len(array.data)] for key, array in record.items()]
            for name, record in arrays.items()
        },
        "metrics": {name: dict(record) for name, record in content.metric_records.items()},
    }
    header = json.dumps(described).encode()
    blocks = [array.data for record in arrays.values() for array in record.values()]
    return [len(header).to_bytes(8, "big"), header, *blocks]


def unpack(packed: bytes) -> RecordDict:
    """The inverse of `pack`.

    Raises:
        LedgerError: The bytes were not made by `pack`.
    """
    try:
        at = 8 + int.from_bytes(packed[:8], "big")
        described = json.loads(packed[8:at])
        content = RecordDict()
        for name, rows in described["arrays"].items():
            arrays = {}
            for key, dtype, shape, stype, size in rows:
                arrays[key] = Array(dtype=dtype, shape=tuple(shape), stype=stype, data=packed[at : at + size])
                at += size
            content[name] = ArrayRecord(arrays)
        for name, metrics in described["metrics"].items():
            content[name] = MetricRecord(cast(dict[str, int | float | list[int] | list[float]], metrics))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"a kept reply is damaged ({type(error).__name__})") from None
    if at != len(packed):
        raise LedgerError("a kept reply is damaged: it is too short or too long")
    return content


def digest_of(content: RecordDict) -> str:
    """What names the model and the settings in a message: 64 hex digits."""
    settings = {name: dict(record) for name, record in content.config_records.items()}
    whole = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for part in _parts(content):
        whole.update(part)
    return whole.hexdigest()
