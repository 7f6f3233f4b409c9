"""Write one folder of images a client, for a real deployment."""

import csv
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.data.decoding import IMAGE_SUFFIXES
from common.data.partition_plot import draw_partition
from common.data.partitioning.assignment import make_partition
from common.data.partitioning.partition import Partition, class_counts
from common.data.partitioning.privacy_units import group_rows
from common.data.scan import Scan, refuse_if_too_bad, refuse_single_class, scan_source, source_entries
from common.data.sources.base_source import Entries, ImageSource
from common.errors import DataError
from common.system.progress import ProgressFactory

MANIFEST = "manifest.csv"
_SUFFIX = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # no file names on Windows
_READ_AHEAD = 256
_LONGEST = 80


def export_partition(config: RunConfig, source: ImageSource, folder: Path, progress: ProgressFactory) -> dict[str, Any]:
    """Deal a source and write each client's share as a folder that is a source again.

    Guarantee: `folder/client-<number>/{train,test}/<class>/` hold the bytes of each
    usable image as they were, so each class and part has the same images when the
    folder is read back. Either everything is written or nothing; a folder that holds
    anything is left alone. Unusable images are left out and counted. Where images
    share units, `manifest.csv` beside `train/` says which, and is what to read back.

    Args:
        config: The run; seed, number of clients and the data section matter.
        source: What is dealt.
        folder: Where to write; made if it is not there.
        progress: Called with a total and a label; returns what to call with each advance.

    Returns:
        What `partition.json` holds: sizes, class names and their folders, settings.

    Raises:
        DataError: The source cannot be dealt, a client would have nothing to train
            on, or the folder is not empty, inside the source or cannot be written.
    """
    folder = folder.resolve()
    _check_target(folder, source)
    scan = scan_source(source, progress=progress)
    refuse_if_too_bad(scan, max_bad_fraction=config.data.max_bad_fraction)
    refuse_single_class(scan)
    partition = make_partition(config, scan)
    facts = _facts(config, source, scan, partition)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))  # for its owner only
        try:
            _write_images(scratch, source_entries(source), scan, partition, facts, progress)
            _write_facts(scratch, facts, class_counts(scan, partition), scan.classes)
            _move(scratch, folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise DataError(f"cannot write to {folder}: {error.strerror or error}; nothing was left there") from None
    return facts


def _move(scratch: Path, folder: Path) -> None:
    if not folder.exists():
        os.replace(scratch, folder)
        return
    for item in sorted(scratch.iterdir()):
        os.replace(item, folder / item.name)


def folder_names(classes: Sequence[str]) -> tuple[str, ...]:
    """A folder name for each class: valid on every system, all different, free of commas.

    >>> folder_names(("cat", "T-shirt/top", "T-shirt:top", "Cat"))
    ('cat', 'T-shirt_top', 'T-shirt_top-2', 'Cat-2')
    """
    names: list[str] = []
    taken: set[str] = set()
    for wanted in classes:
        plain = _safe(wanted) or "class"
        name, number = plain, 1
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return tuple(names)


def _safe(text: str) -> str:
    """Letters and figures of any script, and what no system and no shell takes amiss."""
    kept = "".join(c if c.isalnum() or c in "-_.+ " else "_" for c in unicodedata.normalize("NFC", text))
    while len(kept.encode()) > _LONGEST:
        kept = kept[:-1]
    kept = kept.strip(" .")
    return f"{kept}_" if _RESERVED.fullmatch(kept) else kept


def _check_target(folder: Path, source: ImageSource) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} is there and not an empty folder: name a new one with --out")
    place = Path(source.place) if source.place else None
    if place is not None and place.is_dir() and folder.resolve().is_relative_to(place.resolve()):
        raise DataError(f"{folder} lies inside the source {place}: its copies would be read as new images")


def _facts(config: RunConfig, source: ImageSource, scan: Scan, partition: Partition) -> dict[str, Any]:
    shown = {"seed", "num-clients"}
    settings = {key: value for key, value in resolved(config).items() if key in shown or key.startswith("data.")}
    clients = []
    for client in range(config.num_clients):
        mine = (partition.owner == client) & scan.usable
        train = mine & ~partition.held_out & (np.arange(len(mine)) < scan.num_train)
        if not train.any():
            raise DataError(
                f"client {client} of {config.num_clients} would have no usable image to train on: raise "
                "data.min-client-size, lower data.test-fraction or use fewer clients"
            )
        named = scan.client_names[client] if config.data.partitioner == "natural" else None
        test = int((mine & partition.held_out).sum())
        clients.append({"folder": f"client-{client:05d}", "name": named, "train": int(train.sum()), "test": test})
    return {
        "source": source.name,
        "clients": clients,
        "classes": list(scan.classes),
        "class_folders": list(folder_names(scan.classes)),
        "images_unused": partition.images_unused,
        "images_unusable": int((~scan.usable).sum()),
        "units": group_rows(scan.unit_digests, scan.digests) is not None,
        "settings": settings,
        "bract": version("bract"),
    }


def _write_images(
    folder: Path,
    entries: Entries,
    scan: Scan,
    partition: Partition,
    facts: Mapping[str, Any],
    progress: ProgressFactory,
) -> None:
    rows = np.flatnonzero(scan.usable & (partition.owner >= 0))
    advance = progress(len(rows), "Writing images")
    folders = [folder / client["folder"] for client in facts["clients"]]
    tables: list[list[dict[str, str]]] = [[] for _ in folders]
    for client in folders:
        for part in ("train", "test"):
            (client / part).mkdir(parents=True)
    for row, cell in _cells(entries, rows):
        name, part = facts["class_folders"][scan.labels[row]], "test" if partition.held_out[row] else "train"
        place = Path(part, name, _file_name(row, cell["path"], scan.formats[row]))
        file = folders[partition.owner[row]] / place
        file.parent.mkdir(exist_ok=True)
        _write_image(file, cell)
        unit = entries.units[row] if entries.units else ""
        tables[partition.owner[row]].append({"path": place.as_posix(), "label": name, "unit": unit, "split": part})
        advance(1)
    if facts["units"]:
        for client, table in zip(folders, tables, strict=True):
            _write_manifest(client / MANIFEST, table)


def _write_manifest(file: Path, table: Sequence[Mapping[str, str]]) -> None:
    """The units, which folders of classes cannot say."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def _cells(entries: Entries, rows: np.ndarray) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for start in range(0, len(rows), _READ_AHEAD):
        block = rows[start : start + _READ_AHEAD].tolist()
        yield from zip(block, entries.images[block]["image"], strict=True)


def _write_image(file: Path, cell: Mapping[str, Any]) -> None:
    if cell["bytes"] is not None:
        file.write_bytes(cell["bytes"])
    else:
        shutil.copyfile(cell["path"], file)


def _file_name(row: int, path: str | None, kind: str) -> str:
    """The number of the entry, which keeps names apart, and the name it had."""
    original = Path(path or "")
    suffix = original.suffix.lower()
    stem = _safe(original.stem)
    return f"{row:06d}{'-' if stem else ''}{stem}{suffix if suffix in IMAGE_SUFFIXES else _SUFFIX[kind]}"


def _write_facts(folder: Path, facts: Mapping[str, Any], counts: np.ndarray, classes: Sequence[str]) -> None:
    (folder / "partition.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_partition(folder / "partition.png", counts, classes, images_unused=facts["images_unused"])
    lines = [
        f"{name}\t{' '.join(original.split())}" for name, original in zip(facts["class_folders"], classes, strict=True)
    ]
    (folder / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
