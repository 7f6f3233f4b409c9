"""States as bytes that a fresh process can go on from."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.secagg.protocol.messages import Advert
from common.secagg.protocol.terms import Terms
from common.secagg.refusals import Refusal, SecureSumError

_HEADER = "header"


def pack(header: Mapping[str, Any], arrays: Mapping[str, NDArray[np.uint8]]) -> bytes:
    """Return a header of plain JSON and byte arrays as one sequence of bytes."""
    text = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    target = io.BytesIO()
    np.savez(target, allow_pickle=False, **{_HEADER: text}, **arrays)
    return target.getvalue()


def unpack(raw: bytes, kind: str) -> tuple[dict[str, Any], dict[str, NDArray[np.uint8]]]:
    """Return the header and the arrays of packed bytes.

    Raises:
        SecureSumError: The bytes are damaged, or of another kind or version.
    """
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(arrays.pop(_HEADER).tobytes())
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile):
        raise SecureSumError(Refusal.MALFORMED) from None
    if header.get("kind") != kind:
        raise SecureSumError(Refusal.MALFORMED)
    return header, arrays


def terms_to_json(terms: Terms) -> dict[str, Any]:
    """Return the constants as plain JSON."""
    return asdict(terms) | {"roster": terms.roster.hex(), "plan": terms.plan.hex()}


def terms_from_json(stored: Mapping[str, Any]) -> Terms:
    """Return the constants of plain JSON."""
    texts = {name: bytes.fromhex(stored[name]) for name in ("roster", "plan")}
    return Terms(**(dict(stored) | texts | {"lengths": tuple(stored["lengths"])}))


def advert_to_json(advert: Advert) -> dict[str, Any]:
    """Return an advert as plain JSON."""
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in asdict(advert).items()}


def advert_from_json(stored: Mapping[str, Any]) -> Advert:
    """Return the advert of plain JSON."""
    values: dict[str, Any] = {name: bytes.fromhex(value) for name, value in stored.items() if name != "index"}
    return Advert(index=int(stored["index"]), **values)
