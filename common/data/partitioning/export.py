"""Export of a partition as one folder of images per client."""

import csv
import itertools
import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.data.image_formats import IMAGE_FORMATS, IMAGE_SUFFIXES
from common.data.partition_plot import draw_partition
from common.data.partitioning.assignment import make_partition
from common.data.partitioning.partition import Partition, class_counts
from common.data.partitioning.privacy_units import group_rows
from common.data.scan import Scan, refuse_if_too_bad, refuse_single_class, scan_source
from common.data.sources.base_source import Entries, ImageSource
from common.errors import DataError
from common.system.files import make_folder
from common.system.progress import ProgressFactory

MANIFEST = "manifest.csv"
_SUFFIX = {row.name: row.suffixes[0] for row in IMAGE_FORMATS}
# Windows reserves these names for devices.
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
_MAX_NAME_BYTES = 80


def export_partition(config: RunConfig, source: ImageSource, folder: Path, progress: ProgressFactory) -> dict[str, Any]:
    """Divide a source among clients into one folder of images each.

    Guarantee: `folder/client-<number>/{train,test}/<class>/` hold the bytes of each usable image as they were, so each
    class and part has the same images when the folder is read as a source. Either everything is written or nothing; a
    folder that is not empty is left alone. Unusable images are left out and counted. Where images share units, read
    `manifest.csv` beside `train/` instead: it names the units. Returns the content of `partition.json`.

    Raises:
        DataError: The source cannot be divided, a client would have nothing to train on, or the folder is not empty,
            inside the source or cannot be written.
    """
    folder = folder.resolve()
    _check_target(folder, source)
    scan = scan_source(source, progress=progress)
    refuse_if_too_bad(scan, max_bad_fraction=config.data.max_bad_fraction)
    refuse_single_class(scan)
    partition = make_partition(scan, config.data, num_clients=config.num_clients, seed=config.seed)
    facts = _facts(source.name, scan, partition, natural=config.data.partitioner == "natural")
    settings = {k: v for k, v in resolved(config).items() if k in ("seed", "num-clients") or k.startswith("data.")}
    facts |= {"settings": settings, "bract": version("bract")}
    try:
        make_folder(folder.parent)
        # mkdtemp makes a folder that only its owner can read.
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}-"))
        try:
            _write_images(scratch, source.entries, scan, partition, facts, progress)
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
    """Return a folder name for each class, all different and valid on every system.

    >>> folder_names(("cat", "T-shirt/top", "T-shirt:top", "Cat"))
    ('cat', 'T-shirt_top', 'T-shirt_top-2', 'Cat-2')
    """
    names: list[str] = []
    taken: set[str] = set()
    for wanted in classes:
        plain = _safe(wanted) or "class"
        name, number = plain, 1
        # Windows and macOS take "Cat" and "cat" for one folder.
        while name.casefold() in taken:
            number += 1
            name = f"{plain}-{number}"
        taken.add(name.casefold())
        names.append(name)
    return tuple(names)


def _safe(text: str) -> str:
    """Return a text with every character replaced that a file name must not hold."""
    kept = "".join(c if c.isalnum() or c in "-_.+ " else "_" for c in unicodedata.normalize("NFC", text))
    while len(kept.encode()) > _MAX_NAME_BYTES:
        kept = kept[:-1]
    kept = kept.strip(" .")
    return f"{kept}_" if _RESERVED.fullmatch(kept) else kept


def _check_target(folder: Path, source: ImageSource) -> None:
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} exists and is not an empty folder: name a new one with --out")
    place = Path(source.place) if source.place else None
    if place is not None and place.is_dir() and folder.resolve().is_relative_to(place.resolve()):
        raise DataError(f"{folder} lies inside the source {place}: its copies would be read as new images")


def _facts(name: str, scan: Scan, partition: Partition, *, natural: bool) -> dict[str, Any]:
    clients, num_clients = [], len(partition.num_units)
    for client in range(num_clients):
        own = partition.rows_of(client)
        own = own[scan.usable[own]]
        held_out = partition.held_out[own]
        train = int((~held_out & (own < scan.num_train)).sum())
        if not train:
            raise DataError(
                f"client {client} of {num_clients} would have no usable image to train on: raise "
                "data.min-client-size, lower data.test-fraction or use fewer clients"
            )
        title = scan.client_names[client] if natural else None
        test = int(held_out.sum())
        clients.append({"folder": f"client-{client:05d}", "name": title, "train": train, "test": test})
    return {
        "source": name,
        "clients": clients,
        "classes": list(scan.classes),
        "class_folders": list(folder_names(scan.classes)),
        "images_unused": partition.images_unused,
        "images_unusable": int((~scan.usable).sum()),
        "units": group_rows(scan.unit_digests, scan.digests) is not None,
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
        # An empty folder says that a class is known and has no image here. Parts that lack it would disagree.
        for part, name in itertools.product(("train", "test"), facts["class_folders"]):
            (client / part / name).mkdir(parents=True)
    for row, cell in entries.cells(rows):
        name, part = facts["class_folders"][scan.labels[row]], "test" if partition.held_out[row] else "train"
        place = Path(part, name, _file_name(row, cell["path"], scan.formats[row]))
        file = folders[partition.owner[row]] / place
        if cell["bytes"] is not None:
            file.write_bytes(cell["bytes"])
        else:
            shutil.copyfile(cell["path"], file)
        unit = entries.units[row] if entries.units else ""
        tables[partition.owner[row]].append({"path": place.as_posix(), "label": name, "unit": unit, "split": part})
        advance(1)
    if facts["units"]:
        for client, table in zip(folders, tables, strict=True):
            _write_manifest(client / MANIFEST, table)


def _write_manifest(file: Path, table: Sequence[Mapping[str, str]]) -> None:
    """Write the table that names the unit of each image."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(table[0]))
        writer.writeheader()
        writer.writerows(table)


def _file_name(row: int, path: str | None, image_format: str) -> str:
    """Return a file name of the entry's number and its original name."""
    # The number keeps files of equal names apart.
    original = Path(path or "")
    suffix = original.suffix.lower()
    stem = _safe(original.stem)
    return f"{row:06d}{'-' if stem else ''}{stem}{suffix if suffix in IMAGE_SUFFIXES else _SUFFIX[image_format]}"


def _write_facts(folder: Path, facts: Mapping[str, Any], counts: np.ndarray, classes: Sequence[str]) -> None:
    (folder / "partition.json").write_text(json.dumps(facts, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    draw_partition(folder / "partition.png", counts, classes, images_unused=facts["images_unused"])
    lines = [
        f"{name}\t{' '.join(original.split())}" for name, original in zip(facts["class_folders"], classes, strict=True)
    ]
    (folder / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
