"""Made-up features in place of a source's images."""

from pathlib import Path

import numpy as np

from common.data.preprocessing import Preparation, Prepared
from common.data.scan import Scan
from common.system.content_store import StoredRows

_NUM_CLASSES = 10
_CHUNK = 10_000


def synthetic_features(folder: Path, *, number: int, width: int) -> Prepared:
    """Return normal features around a direction of each class, mapped from a file.

    Args:
        folder: Where the file is written, unless it is there.
        number: Number of images.
        width: Values of each.
    """
    labels = np.arange(number, dtype=np.int64) % _NUM_CLASSES
    file = folder / f"features-{number}-{width}.npy"
    if not file.is_file():
        rng = np.random.default_rng(0)
        centres = rng.standard_normal((_NUM_CLASSES, width), dtype=np.float32)
        rows = np.lib.format.open_memmap(file, "w+", np.float32, (number, width))
        for start in range(0, number, _CHUNK):
            own = labels[start : start + _CHUNK]
            values = centres[own] + 2 * rng.standard_normal((len(own), width), dtype=np.float32)
            rows[start : start + _CHUNK] = values / np.linalg.norm(values, axis=1, keepdims=True)
        rows.flush()
    features = StoredRows(np.load(file, mmap_mode="r"), np.arange(number))
    return Prepared(inputs=features, scan=_scan(labels), seconds=0.0, key=f"synthetic-{number}-{width}")


def put_in_place(prepared: Prepared) -> None:
    """Give all runs of this process these features instead of a source's images."""

    def enter(preparation: Preparation) -> Preparation:
        preparation.scanned = prepared
        return preparation

    Preparation.__enter__ = enter  # type: ignore[method-assign]
    Preparation.finish = lambda self: prepared  # type: ignore[method-assign]  # noqa: ARG005


def _scan(labels: np.ndarray) -> Scan:
    number = len(labels)
    digests = np.random.default_rng(1).integers(0, 256, (number, 32), dtype=np.uint8)
    nothing, side = np.zeros(number, dtype=bool), np.full(number, 8, dtype=np.int32)
    return Scan(
        fingerprint=f"synthetic {number}",
        labels=labels,
        digests=digests,
        earlier_digests=np.zeros_like(digests),
        file_digests=digests[:, ::-1].copy(),
        usable=~nothing,
        widths=side,
        heights=side,
        channels=np.full(number, 3, dtype=np.int8),
        depths=np.full(number, 8, dtype=np.int8),
        lows=np.zeros(number, dtype=np.int32),
        highs=np.full(number, 255, dtype=np.int32),
        constant=nothing,
        transparency=np.zeros(number, dtype=np.int8),
        plain=~nothing,
        formats=("",) * number,
        num_train=number,
        classes=tuple(str(name) for name in range(_NUM_CLASSES)),
        unit_digests=None,
        owners=None,
        client_names=(),
        faults=(),
    )
