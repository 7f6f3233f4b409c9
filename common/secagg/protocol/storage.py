"""States as bytes that a fresh process can go on from."""

import json
import math
import operator
import zlib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.secagg.protocol.messages import Advert
from common.secagg.protocol.terms import Terms
from common.secagg.refusals import Refusal, SecureSumError

_END = b"\n"


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """Return a header of plain JSON and byte arrays as one sequence of bytes.

    The first line is a checksum of the rest, the second one of JSON that says what follows, array behind array.
    """
    shapes = {name: array.shape for name, array in arrays.items()}
    text = json.dumps({**header, "shapes": shapes}).encode()
    content = b"".join([text, _END, *(array.tobytes() for array in arrays.values())])
    return _checksum(content) + _END + content


def unpack(raw: bytes, kind: str) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """Return the header and the writable arrays of packed bytes.

    Raises:
        SecureSumError: The bytes are damaged, or of another kind or version.
    """
    checksum, _, rest = raw.partition(_END)
    text, _, content = rest.partition(_END)
    try:
        header = json.loads(text)
        if checksum != _checksum(rest) or header["kind"] != kind:
            raise SecureSumError(Refusal.STORED)
        shapes = {name: tuple(map(operator.index, shape)) for name, shape in header["shapes"].items()}
        ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
        parts = np.split(np.frombuffer(bytearray(content), dtype=np.uint8), ends)
        # The last part is what no array takes.
        if len(parts.pop()):
            raise SecureSumError(Refusal.STORED)
        return header, {name: part.reshape(shape) for part, (name, shape) in zip(parts, shapes.items(), strict=True)}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise SecureSumError(Refusal.STORED) from None


def _checksum(content: bytes) -> bytes:
    return b"%08x" % zlib.crc32(content)


def terms_to_json(terms: Terms) -> dict[str, Any]:
    """Return the constants as plain JSON."""
    stored = {field.name: getattr(terms, field.name) for field in fields(terms)}
    return stored | {"roster": terms.roster.hex(), "plan": terms.plan.hex()}


def terms_from_json(stored: Mapping[str, Any]) -> Terms:
    """Return the constants of plain JSON."""
    texts = {name: bytes.fromhex(stored[name]) for name in ("roster", "plan")}
    return Terms(**(dict(stored) | texts | {"lengths": tuple(stored["lengths"])}))


def advert_to_json(advert: Advert) -> dict[str, Any]:
    """Return an advert as plain JSON."""
    stored = {field.name: getattr(advert, field.name) for field in fields(advert)}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in stored.items()}


def advert_from_json(stored: Mapping[str, Any]) -> Advert:
    """Return the advert of plain JSON."""
    values: dict[str, Any] = {name: bytes.fromhex(value) for name, value in stored.items() if name != "index"}
    return Advert(index=int(stored["index"]), **values)
