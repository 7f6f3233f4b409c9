"""Record of a simulation's images, by which a resumed run finds those that changed."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from common.config.loading import load_file
from common.config.sections import DataConfig
from common.data.array_files import save_arrays
from common.data.folders.unread import HELD_OUT
from common.data.preprocessing import Scanned
from common.data.sources.base_source import Entries
from common.data.sources.registry import names_a_place
from common.errors import ConfigError, DataError
from server.state.checkpoint import CHECKPOINT

FILE, PUBLIC_FILE = "images.npz", "public-images.npz"
_DIGEST_BYTES = 16
_MAX_SHOWN = 10


@dataclass(frozen=True)
class ImageRecord:
    """Images of a source in order, each with its name, class and pixels.

    `names` are files below the source's folder, or numbers where images have no files. `pixels` has a part of the
    digest of each image, (n, 16) uint8, and zeros where it could not be used.
    """

    names: tuple[str, ...]
    classes: tuple[str, ...]
    pixels: np.ndarray

    @classmethod
    def of(cls, scanned: Scanned, data: DataConfig) -> "ImageRecord":
        """Return the record of a run's images."""
        scan, source = scanned.scan, scanned.source
        has_files = names_a_place(data.source) and source is not None and source.entries.item_keys is not None
        names = _names(source.entries) if has_files and source is not None else _numbers(len(scan.labels))
        classes = ("", *scan.classes)
        return cls(
            tuple(names), tuple(classes[label + 1] for label in scan.labels), scan.digests[:, :_DIGEST_BYTES].copy()
        )

    def save(self, folder: Path, file: str = FILE) -> None:
        """Write the record into the folder of a run."""
        save_arrays(
            folder / file, {"names": _packed(self.names), "classes": _packed(self.classes), "pixels": self.pixels}
        )

    @classmethod
    def load(cls, folder: Path, file: str = FILE) -> "ImageRecord | None":
        """Return the record of a run, None without a readable one."""
        try:
            with np.load(folder / file) as saved:
                return cls(_unpacked(saved["names"]), _unpacked(saved["classes"]), saved["pixels"])
        except (OSError, ValueError, KeyError):
            return None

    def changes_since(self, earlier: "ImageRecord") -> Iterator[str]:
        """Yield a line on each image that is not as it was."""
        before, now = earlier._by_name, self._by_name
        for name in (*before, *(name for name in now if name not in before)):
            (old_class, old_pixels), (new_class, new_pixels) = before.get(name, _ABSENT), now.get(name, _ABSENT)
            if name not in now:
                yield f"missing: {name}"
            elif name not in before:
                yield f"new: {name}"
            elif old_class != new_class:
                yield f"class {new_class or 'unknown'} instead of {old_class or 'unknown'}: {name}"
            elif old_pixels != new_pixels:
                yield f"{'other pixels' if any(new_pixels) else 'cannot be used any more'}: {name}"
        if before == now and self.names != earlier.names:
            yield "the rows are in another order"

    @property
    def _by_name(self) -> dict[str, tuple[str, bytes]]:
        rows = zip(self.names, self.classes, self.pixels, strict=True)
        return {name: (label, pixels.tobytes()) for name, label, pixels in rows}


_ABSENT = ("", b"")


def has_record(folder: Path) -> bool:
    """Return whether a run's folder has a record of its images."""
    return os.path.isfile(folder / FILE)


def refuse_changed_images(folder: Path, data: DataConfig, record: ImageRecord, not_read: Sequence[str] = ()) -> None:
    """Refuse to resume a run whose images are not those that it began with.

    Runs of before this record are not checked, unless their data moved or are used in another way today.

    Args:
        folder: Folder of the run.
        data: Its settings.
        record: Its images as they are now.
        not_read: What is left out of its source.

    Raises:
        ConfigError: The data moved, and the run has no record to compare them with.
        DataError: Images changed; the text names the first ones.
    """
    earlier = ImageRecord.load(folder)
    began_earlier = earlier is None and (folder / CHECKPOINT).is_file()
    if (began_earlier or (earlier is not None and len(earlier.names) > len(record.names))) and _tested_on_validation(
        not_read
    ):
        # Images that were trained on would be tested on, so the figures would be too good.
        raise DataError(
            f"--resume {folder}: an earlier version began this run and tested it on a part that is left out now\n  "
            f"{'; '.join(not_read)}\n  finish the run with the version that began it, or start a new run with "
            "data.validation=test"
        )
    if earlier is None:
        if load_file(folder / "config.toml").get("data.source", data.source) != data.source:
            raise ConfigError(
                f"--resume {folder}: the run has no record of its images ({FILE}), so other data could not be told "
                "from its own: put them back where they were"
            )
        return
    _refuse_changes(folder, earlier, record)


def _tested_on_validation(not_read: Sequence[str]) -> bool:
    """Return whether earlier versions tested on a part that is left out."""
    # Folders and tables never did: only parts of a data set have this word before their name.
    return any(phrase.startswith("the part ") and HELD_OUT in phrase for phrase in not_read)


def refuse_changed_public_images(folder: Path, record: ImageRecord) -> None:
    """Refuse to resume a run whose `evaluation.folder` is not as it was.

    Raises:
        DataError: Images changed; the text names the first ones.
    """
    # A run that was killed before it wrote the record has no figures yet.
    earlier = ImageRecord.load(folder, PUBLIC_FILE)
    if earlier is not None:
        _refuse_changes(folder, earlier, record)


def _refuse_changes(folder: Path, earlier: ImageRecord, record: ImageRecord) -> None:
    changes = record.changes_since(earlier)
    if lines := list(islice(changes, _MAX_SHOWN)):
        more = sum(1 for _ in changes)
        lines += [f"and {more:,} more"] if more else []
        listed = "\n".join(f"  {line}" for line in lines)
        raise DataError(
            f"--resume {folder}: images are not as they were when the run began\n{listed}\n  put them back, or start a "
            "new run"
        )


def _names(entries: Entries) -> Iterator[str]:
    root = f"{entries.root}/"
    for _, cell in entries.cells(np.arange(len(entries.labels))):
        yield str(cell["path"] or "").removeprefix(root)


def _numbers(count: int) -> Iterator[str]:
    return (f"image number {row}" for row in range(count))


def _packed(texts: tuple[str, ...]) -> np.ndarray:
    """Return texts as bytes."""
    # An array of texts would be as wide as its longest one.
    return np.frombuffer("\0".join(texts).encode(errors="surrogateescape"), np.uint8)


def _unpacked(content: np.ndarray) -> tuple[str, ...]:
    return tuple(content.tobytes().decode(errors="surrogateescape").split("\0"))
