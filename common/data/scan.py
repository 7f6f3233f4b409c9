"""Scan of a source for the size, format, digests and fault of each entry.

Each image is decoded once. The results are kept below `$BRACT_HOME/cache/scans`, one file per source, so that a later
run reads them back and decodes only the files that have changed.
"""

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.array_files import save_arrays
from common.data.decoding import BadImage, decode_in_order, deep_digest, file_digest, pixel_digest, read_image
from common.data.partitioning.privacy_units import natural_clients
from common.data.sources.base_source import Entries, ImageSource
from common.data.tones.value_facts import ValueFacts, value_facts
from common.errors import DataError
from common.system.paths import cache_folder
from common.system.progress import ProgressFactory

if TYPE_CHECKING:
    from PIL.Image import Image

FORMAT = 4  # raise it when the same file would give another digest, or the stored scan changes its fields
_MAX_SHOWN = 20

Sink = Callable[[int, "Image", bytes], None]
Keep = Callable[["Image", bytes, ValueFacts], None]


@dataclass(frozen=True)
class Fault:
    """An entry that cannot be used, by its file or number, with the reason."""

    place: str
    reason: str

    @property
    def line(self) -> str:
        """Place and reason on one line, safe to print."""
        # Imported here, because a scan in a client must not load the terminal library.
        from common.system.console import printable

        return printable(f"{self.place}: {self.reason}", keep="")


@dataclass(frozen=True)
class Scan:
    """Labels, digests, sizes and faults of the n entries of a source.

    Attributes:
        fingerprint: Fingerprint of the source that was scanned.
        labels: (n,) int64, -1 where the class is unknown.
        digests: (n, 32) uint8, SHA-256 of the pixels; zeros where unusable.
        earlier_digests: (n, 32) uint8, what `digests` was in scans of format 2; zeros where it is the same.
        file_digests: (n, 32) uint8, SHA-256 of the file's bytes; zeros where unusable.
        usable: (n,) bool, true where the image decodes and has a label.
        widths: (n,) int32 pixels; 0 where unusable, as in heights and channels.
        heights: (n,) int32 pixels.
        channels: (n,) int8, 1 or 3.
        depths: (n,) int8 bits of a channel, negative if values have a sign; see `ValueFacts` for this and what follows.
        lows: (n,) int32 smallest stored values.
        highs: (n,) int32 largest stored values.
        constant: (n,) bool, true if all pixels are equal.
        transparency: (n,) int8, `OPAQUE`, `TRANSPARENT` or `BLACK_BELOW`.
        plain: (n,) bool, true if neutral tones render the image as the canonical decode does.
        formats: (n,) names such as "JPEG"; "" where unusable.
        num_train: Number of training entries, which come first; the others are the source's own test set.
        classes: Class names.
        unit_digests: (n, 32) uint8, SHA-256 of the name of the entry's unit, or the entry's own digest where it has no
            unit; None if the source has no units.
        owners: (n,) int32 index into `client_names`, -1 for no client; None if the source has no clients.
        client_names: The clients that the source itself names, sorted.
        faults: One fault for each entry that is not usable, in order; they never leave this machine.
        fault: `Entries.fault`, kept because a client that has joined scans such entries too.
    """

    fingerprint: str
    labels: np.ndarray
    digests: np.ndarray
    earlier_digests: np.ndarray
    file_digests: np.ndarray
    usable: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    channels: np.ndarray
    depths: np.ndarray
    lows: np.ndarray
    highs: np.ndarray
    constant: np.ndarray
    transparency: np.ndarray
    plain: np.ndarray
    formats: tuple[str, ...]
    num_train: int
    classes: tuple[str, ...]
    unit_digests: np.ndarray | None
    owners: np.ndarray | None
    client_names: tuple[str, ...]
    faults: tuple[Fault, ...]
    fault: str = ""


_VALUE_ARRAYS = tuple(field.name for field in fields(ValueFacts))
_DECODED_ARRAYS = (
    "digests",
    "earlier_digests",
    "file_digests",
    "usable",
    "widths",
    "heights",
    "channels",
    *_VALUE_ARRAYS,
)
_ARRAYS = ("labels", *_DECODED_ARRAYS)
_OPTIONAL_ARRAYS = ("unit_digests", "owners")


def scan_source(
    source: ImageSource, *, progress: ProgressFactory, sink: Sink | None = None, keep: Keep | None = None
) -> Scan:
    """Decode every entry that no earlier scan has decoded.

    Guarantee: one bad file is a `Fault`, never an exception. A process that stops half-way leaves no broken file. Of
    several processes one scans and the others read. `sink` gets each good image that had to be decoded, in row order;
    `keep` gets it in the thread that decoded it.

    Raises:
        DataError: The source as a whole cannot be read.
    """
    from filelock import FileLock

    file = _scan_file(source)
    with FileLock(file.with_suffix(".lock"), mode=0o600):
        stored = _read(file)
        if stored is not None and stored[0].fingerprint == source.fingerprint:
            source.refuse_fault(stored[0].fault)
            return stored[0]
        scan = _scan_entries(source, stored, progress, sink, keep)
        _write(file, scan, source.entries.item_keys)
    return scan


def refuse_if_too_bad(scan: Scan, *, max_bad_fraction: float) -> None:
    """Refuse a source in which too many images cannot be used.

    Entries of classes outside `data.classes` are not counted, because the user left them out on purpose.

    Raises:
        DataError: The fraction is larger; the message holds the counts and the first faults.
    """
    known = int((scan.labels >= 0).sum())
    bad = int((~scan.usable & (scan.labels >= 0)).sum())
    if bad <= max_bad_fraction * known:
        return
    unusable = np.flatnonzero(~scan.usable)
    faults = [fault for row, fault in zip(unusable, scan.faults, strict=True) if scan.labels[row] >= 0]
    lines = [f"  {fault.line}" for fault in faults[:_MAX_SHOWN]]
    if bad > _MAX_SHOWN:
        lines.append(f"  and {bad - _MAX_SHOWN} more")
    raise DataError(
        f"{bad} of {known} images cannot be used ({bad / known:.1%}), more than data.max-bad-fraction="
        f"{max_bad_fraction:g} allows\n" + "\n".join(lines) + "\n  `bract data inspect` lists all: fix or remove "
        "them, or raise data.max-bad-fraction"
    )


def refuse_single_class(scan: Scan) -> None:
    """Refuse a source whose training images are all of one class.

    Raises:
        DataError: The usable training images are of fewer than two classes.
    """
    check_training_labels(scan.labels[: scan.num_train][scan.usable[: scan.num_train]], scan.classes)


def check_training_labels(labels: np.ndarray, classes: tuple[str, ...]) -> None:
    """Refuse labels of usable training images that are all of one class.

    Raises:
        DataError: They are of fewer than two classes.
    """
    present = np.unique(labels)
    if len(present) < 2:
        names = "".join(f", {classes[label]}" for label in present)
        raise DataError(
            f"the usable training images are of {len(present)} class{'es' if not len(present) else ''}{names}: a "
            f"classifier needs at least two\n  the class list is {', '.join(classes)}; `bract data inspect` shows "
            "how many images each class has"
        )


def refuse_nothing_usable(scan: Scan, remarks: Sequence[str]) -> None:
    """Refuse a source that has no usable image to train on.

    Raises:
        DataError: There is none; the message holds the remarks on the class list.
    """
    if not scan.usable[: scan.num_train].any():
        lines = "".join(f"\n  {remark}" for remark in remarks)
        raise DataError(f"none of {scan.num_train} training images can be used{lines}")


class _Draft:
    """Arrays of a scan that is being made."""

    def __init__(self, count: int, reasons: Mapping[int, str]) -> None:
        self.digests, self.earlier_digests, self.file_digests = np.zeros((3, count, 32), np.uint8)
        self.usable, self.channels = np.zeros(count, bool), np.zeros(count, np.int8)
        self.widths, self.heights, self.lows, self.highs = np.zeros((4, count), np.int32)
        self.depths, self.transparency = np.zeros((2, count), np.int8)
        self.constant, self.plain = np.zeros((2, count), bool)
        self.formats, self.reasons = [""] * count, dict(reasons)

    def note(self, row: int, decoded: "_Decoded") -> None:
        image = decoded.image
        self.digests[row] = np.frombuffer(decoded.digest, dtype=np.uint8)
        self.earlier_digests[row] = np.frombuffer(decoded.earlier_digest, dtype=np.uint8)
        self.file_digests[row] = np.frombuffer(decoded.file_digest, dtype=np.uint8)
        self.usable[row] = True
        self.widths[row], self.heights[row] = image.size
        self.channels[row] = len(image.getbands())
        for name in _VALUE_ARRAYS:
            getattr(self, name)[row] = getattr(decoded.facts, name)
        self.formats[row] = image.format or ""

    def copy(self, row: int, scan: Scan, old: int) -> None:
        for name in _DECODED_ARRAYS:
            getattr(self, name)[row] = getattr(scan, name)[old]
        self.formats[row] = scan.formats[old]


_Stored = tuple[Scan, np.ndarray | None]


def _scan_entries(
    source: ImageSource, stored: _Stored | None, progress: ProgressFactory, sink: Sink | None, keep: Keep | None
) -> Scan:
    entries = source.entries
    draft = _Draft(len(entries.labels), entries.label_faults)
    # An entry without a label cannot be used, whatever its image shows, so it is not decoded.
    wanted = [row for row in _changed_rows(draft, entries, stored) if entries.labels[row] >= 0]
    advance = progress(len(wanted), "Reading images")
    cells = entries.cells(np.array(wanted, dtype=np.int64))
    for row, decoded in decode_in_order(partial(_decode_cell, keep=keep), cells):
        if isinstance(decoded, BadImage):
            draft.reasons[row] = str(decoded)
        else:
            draft.note(row, decoded)
            if sink is not None:
                sink(row, decoded.image, decoded.digest)
        advance(1)
    return _finish(source.fingerprint, entries, draft)


def _changed_rows(draft: _Draft, entries: Entries, stored: _Stored | None) -> Iterator[int]:
    """Copy the results of an earlier scan and yield the rows it lacks."""
    scan, keys = stored or (None, None)
    if scan is None or keys is None or entries.item_keys is None:
        yield from range(len(entries.labels))
        return
    faults = dict(zip(np.flatnonzero(~scan.usable).tolist(), scan.faults, strict=True))
    # Entries without a label were not decoded, so nothing is known of them.
    known = {key: row for row, key in enumerate(keys.tolist()) if scan.labels[row] >= 0}
    for row, key in enumerate(entries.item_keys.tolist()):
        old = known.get(key)
        if old is None:
            yield row
        elif entries.labels[row] >= 0:
            draft.copy(row, scan, old)
            if old in faults:
                draft.reasons[row] = faults[old].reason


@dataclass(frozen=True)
class _Decoded:
    """Canonical pixels of a good image, its digests and the facts about its values."""

    image: "Image"
    facts: ValueFacts
    digest: bytes
    earlier_digest: bytes
    file_digest: bytes


def _decode_cell(cell: Mapping[str, Any], keep: Keep | None) -> _Decoded | BadImage:
    decoded = _decoded(cell)
    if keep is not None and isinstance(decoded, _Decoded):
        keep(decoded.image, decoded.digest, decoded.facts)
    return decoded


def _decoded(cell: Mapping[str, Any]) -> _Decoded | BadImage:
    try:
        stored = read_image(cell)
        canonical = np.asarray(stored.canonical)
        pixels, deep = pixel_digest(canonical), deep_digest(stored)
        names = (pixels, bytes(len(pixels))) if deep is None else (deep, pixels)
        return _Decoded(stored.canonical, value_facts(stored, canonical), *names, file_digest(cell))
    except BadImage as error:
        return error
    # One odd file must not stop a client, whose answer would then tell of it.
    except (ValueError, TypeError, OverflowError, MemoryError) as error:
        return BadImage(f"its values cannot be read ({type(error).__name__})")


def _finish(fingerprint: str, entries: Entries, draft: _Draft) -> Scan:
    client_names, owners = natural_clients(entries.clients)
    bad = np.flatnonzero(~draft.usable).tolist()
    return Scan(
        fingerprint=fingerprint,
        labels=entries.labels,
        formats=tuple(draft.formats),
        num_train=entries.num_train,
        classes=entries.classes,
        unit_digests=None if entries.units is None else _unit_digests(entries.units, draft.digests),
        owners=owners,
        client_names=client_names,
        faults=tuple(Fault(entries.place(row), draft.reasons.get(row, "no label")) for row in bad),
        fault=entries.fault,
        **{name: getattr(draft, name) for name in _DECODED_ARRAYS},
    )


def _unit_digests(units: tuple[str, ...], digests: np.ndarray) -> np.ndarray:
    unit_digests = digests.copy()
    for row, unit in enumerate(units):
        if unit:
            unit_digests[row] = np.frombuffer(hashlib.sha256(unit.encode()).digest(), dtype=np.uint8)
    return unit_digests


def _scan_file(source: ImageSource) -> Path:
    name = hashlib.sha256(f"{FORMAT}\0{source.name}\0{source.place}".encode("utf-8", "surrogateescape")).hexdigest()
    return cache_folder("scans") / f"{name[:32]}.npz"


def _read(file: Path) -> _Stored | None:
    """Return an earlier scan with its item keys, unless it is damaged."""
    try:
        with file.open("rb") as stream, np.load(stream) as saved:
            meta = json.loads(saved["meta"].tobytes())
            scan = Scan(
                fingerprint=meta["fingerprint"],
                formats=tuple(saved["formats"].tolist()),
                num_train=meta["num_train"],
                classes=tuple(meta["classes"]),
                client_names=tuple(meta["client_names"]),
                faults=tuple(Fault(*fault) for fault in meta["faults"]),
                fault=meta.get("fault", ""),
                **{name: saved[name] for name in _ARRAYS},
                **{name: saved.get(name) for name in _OPTIONAL_ARRAYS},
            )
            return scan, saved.get("item_keys")
    # A damaged cache file is no reason to stop: the scan is made again.
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None


def _write(file: Path, scan: Scan, keys: np.ndarray | None) -> None:
    meta = {
        "fingerprint": scan.fingerprint,
        "num_train": scan.num_train,
        "classes": scan.classes,
        "client_names": scan.client_names,
        "faults": [[fault.place, fault.reason] for fault in scan.faults],
        "fault": scan.fault,
    }
    arrays = {name: getattr(scan, name) for name in (*_ARRAYS, *_OPTIONAL_ARRAYS)} | {"item_keys": keys}
    arrays |= {
        "formats": np.array(scan.formats, dtype="U8"),
        "meta": np.frombuffer(json.dumps(meta).encode(), np.uint8),
    }
    save_arrays(file, {name: array for name, array in arrays.items() if array is not None})
