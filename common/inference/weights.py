"""Weights of a stored model, read only if they are those of its card."""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from common.arrays import Arrays
from common.errors import ModelError
from common.inference.card import CLASSES_KEY, ModelCard

# A header names tensors only. Networks of thousands of tensors stay far below.
_MAX_HEADER_BYTES = 4_000_000


def read_weights(file: Path, card: ModelCard) -> Arrays:
    """Read all tensors of a model's weights, float32.

    Nothing is read into memory before sizes, names and shapes agree with the card.

    Raises:
        ModelError: The file is not safetensors, is cut short, or holds other tensors, classes or bytes than its card
            says, or values that are not finite.
    """
    _check_size(file, card)
    _check_digest(file, card)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as stored:
            _check_tensors(file, stored, card)
            _check_classes(file, (stored.metadata() or {}).get(CLASSES_KEY), card)
            arrays = {name: np.array(stored.get_tensor(name)) for name in card.tensors}
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{file} is not a safetensors file, or is damaged ({type(error).__name__})") from None
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise ModelError(f"{file} holds values that are not finite, such as in {broken[0]!r}: training diverged")
    return arrays


def _check_size(file: Path, card: ModelCard) -> None:
    """Refuse a file whose length is not what header and card ask for."""
    if not file.is_file():
        raise ModelError(f"{file} is missing: the model cannot be used without its weights")
    try:
        with file.open("rb") as stream:
            start = stream.read(8)
    except OSError as error:
        raise ModelError(f"{file} cannot be read ({error.strerror})") from None
    header = int.from_bytes(start, "little")
    # Read before the library parses the header: a header of gigabytes would fill the memory.
    if len(start) < 8 or not 2 <= header <= _MAX_HEADER_BYTES:
        raise ModelError(f"{file} is not a safetensors file that Bract writes (its header would have {header:,} bytes)")
    actual = file.stat().st_size
    wanted = 8 + header + 4 * sum(math.prod(shape) for shape in card.tensors.values())
    if actual != wanted:
        kind = "is cut short" if actual < wanted else "holds more than its card says"
        raise ModelError(f"{file} {kind}: {actual:,} bytes, and its card asks for {wanted:,}")


def _check_digest(file: Path, card: ModelCard) -> None:
    with file.open("rb") as stream:
        actual = hashlib.file_digest(stream, "sha256").hexdigest()
    if card.model_sha256 and actual != card.model_sha256:
        raise ModelError(
            f"{file} is not the file of its card: SHA-256 {actual[:16]}..., the card says {card.model_sha256[:16]}..."
        )


def _check_tensors(file: Path, stored: Any, card: ModelCard) -> None:
    names = set(stored.keys())
    if names != set(card.tensors):
        odd = sorted(names ^ set(card.tensors))[0]
        raise ModelError(f"{file} holds other tensors than its card says, such as {odd!r}")
    for name, shape in card.tensors.items():
        part = stored.get_slice(name)
        if part.get_dtype() != "F32" or tuple(part.get_shape()) != shape:
            raise ModelError(f"{file}: {name!r} has another type or shape than its card says")


def _check_classes(file: Path, named: str | None, card: ModelCard) -> None:
    """Refuse a card whose classes are not those that the weights name."""
    # Weights of 0.1.0 name none. Their number is checked where the network is built.
    if named is None:
        return
    try:
        classes = json.loads(named)
    except (ValueError, RecursionError):
        classes = None
    if classes != list(card.classes):
        raise ModelError(f"{file} was trained for other classes, or in another order, than its card says")
