"""What every entry of a source is: size, format, digest, and whether it can be used at all.

A source is decoded once. What was found is kept below `$BRACT_HOME/cache/scans`
in one file a source, so that a later run reads it back, and a changed file is the
only one that is decoded again.
"""

import hashlib
import json
import os
import zipfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.decoding import BadImage, decode, file_digest, pixel_digest
from common.data.sources.base_source import Entries, ImageSource
from common.errors import DataError
from common.system.files import atomic_stream
from common.system.paths import cache_folder
from common.system.progress import ProgressFactory

if TYPE_CHECKING:
    from datasets import Dataset
    from PIL.Image import Image

FORMAT = 2  # raise it when the same file would give another digest, or the kept file changes its shape
_SHOWN = 20
_READ_AHEAD = 256  # rows of encoded images in memory at once

Sink = Callable[[int, "Image", bytes], None]


@dataclass(frozen=True)
class Fault:
    """An entry that cannot be used.

    Attributes:
        place: Its file, seen from the source, or its number.
        reason: Why.
    """

    place: str
    reason: str

    @property
    def line(self) -> str:
        """Both for a person's eyes: a file's name cannot bring line breaks or terminal codes along."""
        from common.system.console import printable

        return printable(f"{self.place}: {self.reason}", keep="")


@dataclass(frozen=True)
class Scan:
    """What is known about the n entries of a source, in its order.

    Attributes:
        fingerprint: Of the source that was scanned.
        labels: (n,) int64, -1 where the class is unknown.
        digests: (n, 32) uint8, SHA-256 of the pixels; zeros where unusable.
        file_digests: (n, 32) uint8, SHA-256 of the file's bytes; zeros where unusable.
        usable: (n,) bool, whether it decodes and has a label.
        widths: (n,) int32, 0 where unusable; so are heights and channels.
        heights: (n,) int32.
        channels: (n,) int8, 1 or 3.
        formats: (n,) such as "JPEG"; "" where unusable.
        num_train: The first so many entries are for training.
        classes: Class names.
        unit_digests: (n, 32) uint8, SHA-256 of the unit's name, or the entry's own digest where it
            names none; None if the source has no units.
        owners: (n,) int32 index into `client_names`, -1 for no client; None if the source has no clients.
        client_names: Natural clients, sorted.
        faults: One for each entry that is not usable, in order.
    """

    fingerprint: str
    labels: np.ndarray
    digests: np.ndarray
    file_digests: np.ndarray
    usable: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    channels: np.ndarray
    formats: tuple[str, ...]
    num_train: int
    classes: tuple[str, ...]
    unit_digests: np.ndarray | None
    owners: np.ndarray | None
    client_names: tuple[str, ...]
    faults: tuple[Fault, ...]


_ARRAYS = ("labels", "digests", "file_digests", "usable", "widths", "heights", "channels")
_OPEN_ARRAYS = ("unit_digests", "owners")


def scan_source(source: ImageSource, *, progress: ProgressFactory, sink: Sink | None = None) -> Scan:
    """Look at every entry once; read back what an earlier scan of the same files found.

    Guarantee: one bad file is a `Fault`, never an exception. A process that stops
    half-way leaves no broken file; of several processes one scans, the others read.

    Args:
        source: What to look at.
        progress: Called with a total and a label; returns what to call with each advance.
        sink: Called in row order with each good image that had to be decoded: row, image, digest.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    from filelock import FileLock

    file = _file(source)
    with FileLock(file.with_suffix(".lock"), mode=0o600):
        kept = _read(file)
        if kept is not None and kept[0].fingerprint == source.fingerprint:
            return kept[0]
        entries = source_entries(source)
        scan, keys = _look(source.fingerprint, entries, kept, progress, sink)
        _write(file, scan, keys)
    return scan


def source_entries(source: ImageSource) -> Entries:
    """The entries of a source, read once; for those who need pixels again.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    return source.entries


def refuse_if_too_bad(scan: Scan, *, max_bad_fraction: float) -> None:
    """Stop before training on what is left of a broken source.

    Entries of classes that the run does not know are not counted: they are left
    out by intention of `data.classes`.

    Args:
        scan: What was found.
        max_bad_fraction: `data.max-bad-fraction`; equal to it is allowed.

    Raises:
        DataError: More entries are unreadable; holds the counts and the first of the list.
    """
    known = int((scan.labels >= 0).sum())
    bad = int((~scan.usable & (scan.labels >= 0)).sum())
    if bad <= max_bad_fraction * known:
        return
    unusable = np.flatnonzero(~scan.usable)
    listed = [fault for row, fault in zip(unusable, scan.faults, strict=True) if scan.labels[row] >= 0]
    lines = [f"  {fault.line}" for fault in listed[:_SHOWN]]
    if bad > _SHOWN:
        lines.append(f"  and {bad - _SHOWN} more")
    raise DataError(
        f"{bad} of {known} images cannot be used ({bad / known:.1%}), more than data.max-bad-fraction="
        f"{max_bad_fraction:g} allows\n" + "\n".join(lines) + "\n  `bract data inspect` lists all: mend or remove "
        "them, or raise data.max-bad-fraction"
    )


def refuse_single_class(scan: Scan) -> None:
    """Refuse what no classifier can be trained on.

    Raises:
        DataError: The usable training images are of fewer than two classes.
    """
    own = scan.labels[: scan.num_train][scan.usable[: scan.num_train]]
    present = np.unique(own)
    if len(present) < 2:
        names = "".join(f", {scan.classes[label]}" for label in present)
        raise DataError(
            f"the usable training images are of {len(present)} class{'es' if not len(present) else ''}{names}: a "
            f"classifier needs at least two\n  the class list is {', '.join(scan.classes)}; `bract data inspect` shows "
            "what was found"
        )


@dataclass
class _Draft:
    """Arrays of a scan that is being made."""

    digests: np.ndarray
    file_digests: np.ndarray
    usable: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    channels: np.ndarray
    formats: list[str]
    reasons: dict[int, str]

    @classmethod
    def empty(cls, count: int) -> "_Draft":
        widths, heights, channels = (np.zeros(count, dtype=kind) for kind in (np.int32, np.int32, np.int8))
        digests, files = np.zeros((count, 32), np.uint8), np.zeros((count, 32), np.uint8)
        return cls(digests, files, np.zeros(count, bool), widths, heights, channels, [""] * count, {})

    def note(self, row: int, found: "_Found") -> None:
        image = found.image
        self.digests[row] = np.frombuffer(found.digest, dtype=np.uint8)
        self.file_digests[row] = np.frombuffer(found.file_digest, dtype=np.uint8)
        self.usable[row] = True
        self.widths[row], self.heights[row] = image.size
        self.channels[row] = len(image.getbands())
        self.formats[row] = image.format or ""

    def copy(self, row: int, scan: Scan, old: int) -> None:
        for name in ("digests", "file_digests", "usable", "widths", "heights", "channels"):
            getattr(self, name)[row] = getattr(scan, name)[old]
        self.formats[row] = scan.formats[old]


_Kept = tuple[Scan, np.ndarray | None]


def _look(
    fingerprint: str, entries: Entries, kept: _Kept | None, progress: ProgressFactory, sink: Sink | None
) -> tuple[Scan, np.ndarray | None]:
    draft = _Draft.empty(len(entries.labels))
    draft.reasons |= entries.label_faults
    wanted = [row for row in _reuse(draft, entries, kept) if entries.labels[row] >= 0]
    advance = progress(len(wanted), "Reading images")
    for row, found in _decoded(entries.images, wanted):
        if isinstance(found, BadImage):
            draft.reasons[row] = str(found)
        else:
            draft.note(row, found)
            if sink is not None:
                sink(row, found.image, found.digest)
        advance(1)
    return _finished(fingerprint, entries, draft), entries.item_keys


def _reuse(draft: _Draft, entries: Entries, kept: _Kept | None) -> Iterator[int]:
    """Fill in what an earlier scan knows; yield the rows that it does not."""
    scan, keys = kept or (None, None)
    if scan is None or keys is None or entries.item_keys is None:
        yield from range(len(entries.labels))
        return
    faults = dict(zip(np.flatnonzero(~scan.usable).tolist(), scan.faults, strict=True))
    # What had no label was not decoded, so nothing is known about it.
    known = {key: row for row, key in enumerate(keys.tolist()) if scan.labels[row] >= 0}
    for row, key in enumerate(entries.item_keys.tolist()):
        old = known.get(key)
        if old is None:
            yield row
        elif entries.labels[row] >= 0:
            draft.copy(row, scan, old)
            if old in faults:
                draft.reasons[row] = faults[old].reason


def _decoded(images: "Dataset", rows: list[int]) -> Iterator[tuple[int, "_Found | BadImage"]]:
    """Each row decoded, in order; a few at once, since decoding frees the interpreter."""
    workers = min(8, os.cpu_count() or 1)
    pending: deque[tuple[int, Future[Any]]] = deque()
    pool = ThreadPoolExecutor(workers)
    try:
        for start in range(0, len(rows), _READ_AHEAD):
            block = rows[start : start + _READ_AHEAD]
            for row, cell in zip(block, images[block]["image"], strict=True):
                pending.append((row, pool.submit(_try, cell)))
                if len(pending) > 2 * workers:
                    first, future = pending.popleft()
                    yield first, future.result()
        while pending:
            first, future = pending.popleft()
            yield first, future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@dataclass(frozen=True)
class _Found:
    """One good image, and what names it."""

    image: "Image"
    digest: bytes
    file_digest: bytes


def _try(cell: dict[str, Any]) -> "_Found | BadImage":
    try:
        image = decode(cell)
        return _Found(image, pixel_digest(image), file_digest(cell))
    except BadImage as error:
        return error


def _finished(fingerprint: str, entries: Entries, draft: _Draft) -> Scan:
    clients = entries.clients
    names = tuple(sorted({name for name in clients if name})) if clients is not None else ()
    number = {name: index for index, name in enumerate(names)}
    bad = np.flatnonzero(~draft.usable).tolist()
    return Scan(
        fingerprint=fingerprint,
        labels=entries.labels,
        digests=draft.digests,
        file_digests=draft.file_digests,
        usable=draft.usable,
        widths=draft.widths,
        heights=draft.heights,
        channels=draft.channels,
        formats=tuple(draft.formats),
        num_train=entries.num_train,
        classes=entries.classes,
        unit_digests=None if entries.units is None else _unit_digests(entries.units, draft.digests),
        owners=None if clients is None else np.array([number.get(name, -1) for name in clients], dtype=np.int32),
        client_names=names,
        faults=tuple(Fault(entries.place(row), draft.reasons.get(row, "no label")) for row in bad),
    )


def _unit_digests(units: tuple[str, ...], digests: np.ndarray) -> np.ndarray:
    chosen = digests.copy()
    for row, unit in enumerate(units):
        if unit:
            chosen[row] = np.frombuffer(hashlib.sha256(unit.encode()).digest(), dtype=np.uint8)
    return chosen


def _file(source: ImageSource) -> Path:
    name = hashlib.sha256(f"{FORMAT}\0{source.name}\0{source.place}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder("scans") / f"{name[:32]}.npz"


def _read(file: Path) -> _Kept | None:
    """An earlier scan and its item keys; None if there is none, or none that can be read."""
    try:
        with file.open("rb") as stream, np.load(stream) as saved:
            meta = json.loads(saved["meta"].tobytes())
            faults = tuple(Fault(*fault) for fault in meta["faults"])
            arrays = {name: saved[name] for name in _ARRAYS}
            arrays |= {name: saved.get(name) for name in _OPEN_ARRAYS}
            scan = Scan(
                fingerprint=meta["fingerprint"],
                formats=tuple(saved["formats"].tolist()),
                num_train=meta["num_train"],
                classes=tuple(meta["classes"]),
                client_names=tuple(meta["client_names"]),
                faults=faults,
                **arrays,
            )
            return scan, saved.get("item_keys")
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _write(file: Path, scan: Scan, keys: np.ndarray | None) -> None:
    meta = {
        "fingerprint": scan.fingerprint,
        "num_train": scan.num_train,
        "classes": scan.classes,
        "client_names": scan.client_names,
        "faults": [[fault.place, fault.reason] for fault in scan.faults],
    }
    arrays = {name: getattr(scan, name) for name in (*_ARRAYS, *_OPEN_ARRAYS)} | {"item_keys": keys}
    arrays |= {
        "formats": np.array(scan.formats, dtype="U8"),
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
    }
    with atomic_stream(file, durable=False, mode=0o600) as stream:
        np.savez(stream, **{name: array for name, array in arrays.items() if array is not None})
