"""The arrays and metrics of a message as bytes and as a digest.

A ledger keeps a reply as these bytes, and names a request by this digest.
"""

import hashlib
import json
from typing import cast

from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict

from common.errors import LedgerError
from common.messages.held_array import array_records_in


def pack(content: RecordDict) -> bytes:
    """Turn the arrays and metrics of a message into bytes, equal for equal contents."""
    return b"".join(_parts(content))


def _parts(content: RecordDict) -> list[bytes]:
    """Return a header and the bytes of each array as Flower holds them."""
    arrays = {name: dict(record.items()) for name, record in array_records_in(content).items()}
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
    """Turn bytes that `pack` made into a message.

    Raises:
        LedgerError: The bytes were not made by `pack`.
    """
    try:
        position = 8 + int.from_bytes(packed[:8], "big")
        described = json.loads(packed[8:position])
        content = RecordDict()
        for name, rows in described["arrays"].items():
            arrays = {}
            for key, dtype, shape, stype, size in rows:
                arrays[key] = Array(
                    dtype=dtype, shape=tuple(shape), stype=stype, data=packed[position : position + size]
                )
                position += size
            content[name] = ArrayRecord(arrays)
        for name, metrics in described["metrics"].items():
            content[name] = MetricRecord(cast(dict[str, int | float | list[int] | list[float]], metrics))
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"a stored reply is damaged ({type(error).__name__})") from None
    # A truncated file would give short arrays without an error above.
    if position != len(packed):
        raise LedgerError("a stored reply is damaged: it is too short or too long")
    return content


def digest_of(content: RecordDict) -> str:
    """Return 64 hex digits that name the model, metrics and settings of a message."""
    settings = {name: dict(record) for name, record in content.config_records.items()}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for part in _parts(content):
        digest.update(part)
    return digest.hexdigest()
