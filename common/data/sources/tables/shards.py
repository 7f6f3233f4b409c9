"""Files into which one table or data set is split, numbered as in `train-00001-of-00003.parquet`."""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from common.data.folders.layout import part_of
from common.data.sources.tables.parquet_tables import PARQUET_SUFFIXES
from common.data.sources.tables.parts import kind_of

_NUMBERED = re.compile(r"(?P<start>.*?)(?P<number>\d+)[-_]of[-_](?P<total>\d+)(?!\d)", re.IGNORECASE)
_MAX_TOTAL = 100_000  # larger numbers are part of a name
_MAX_SHOWN = 5


def shards_of(folder: Path) -> list[Path]:
    """Return a folder's Parquet files, none if it may be a folder of images."""
    try:
        return _listed_shards(folder)
    # Who reads folders of images names the one that is closed, or is silent once its client has joined.
    except OSError:
        return []


def _listed_shards(folder: Path) -> list[Path]:
    inner = [place for place in folder.iterdir() if place.is_dir() and not place.name.startswith(".")]
    if any(place.name.lower() != "data" and kind_of(place.name) is None for place in inner):
        return []
    found = [
        sorted(file for file in place.iterdir() if file.suffix.lower() in PARQUET_SUFFIXES and file.is_file())
        for place in sorted(inner)
    ]
    # A table beside folders of images does not make them a set of shards.
    if not all(found):
        return []
    here = sorted(file for file in folder.iterdir() if file.suffix.lower() in PARQUET_SUFFIXES and file.is_file())
    return [*here, *(file for files in found for file in files)]


def parts_of_shards(root: Path, files: Sequence[Path]) -> dict[str, list[Path]]:
    """Return the files of each part under its name.

    The name is the word that the first file has for it. Where no file names a part, all are for training.
    """
    words, parts = dict[str, str](), dict[str, list[Path]]()
    for file in files:
        named = file.stem if part_of(file.stem)[0] or file.parent == root else file.parent.name
        # The words and numbers around it are those of the set and of the shard.
        kind = part_of(named)[0]
        word = next((word for word in re.findall(r"[^\W\d_]+", named) if kind_of(word)), file.stem.partition("-")[0])
        parts.setdefault(words.setdefault(kind or word, word), []).append(file)
    return parts if {"train", "test", "val"} & words.keys() else {"train": list(files)}


def missing_shards(files: Iterable[Path]) -> list[str]:
    """Return the names of files that the numbers of the others promise."""
    sets: dict[tuple[Path, str, str], dict[int, tuple[Path, re.Match[str]]]] = {}
    for file in files:
        if match := _numbered(file):
            group = sets.setdefault((file.parent, match["start"].lower(), match["total"]), {})
            group[int(match["number"])] = (file, match)
    return [name for found in sets.values() for name in _missing(found)]


def refusal_of_missing(files: Sequence[Path]) -> str:
    """Return a refusal of a set that lacks shards."""
    if not (missing := missing_shards(files)):
        return ""
    more = f" and {len(missing) - _MAX_SHOWN} more" if len(missing) > _MAX_SHOWN else ""
    # The facts that `datasets` saved beside its files name them, so they keep their names.
    alone = "" if missing[0].endswith(".arrow") else "; to use the others alone, take -of- out of their names"
    return (
        f"{files[0].parent}: numbered files are missing ({len(missing)}): {', '.join(missing[:_MAX_SHOWN])}{more}\n"
        f"  copy or download them again{alone}"
    )


def describe_siblings(file: Path) -> tuple[str, ...]:
    """Return a phrase on the other shards or parts of a set."""
    if parts := _other_parts(file):
        return (f"{', '.join(parts[:_MAX_SHOWN])} beside it (one table with a column split can hold all parts)",)
    match = _numbered(file)
    if match is None or int(match["total"]) < 2:
        return ()
    others = int(match["total"]) - 1
    count = "other file" if others == 1 else f"{others:,} other files"
    folder = file.suffix.lower() in PARQUET_SUFFIXES
    use = "name their folder to read all" if folder else "join them into one table to read all"
    return (f"the {count} of the set that {file.name} is of ({use})",)


def _other_parts(file: Path) -> list[str]:
    """Return tables of other parts that lie beside a file."""
    kind, rest = part_of(file.stem)
    if kind is None:
        return []
    try:
        beside = sorted(other for other in file.parent.iterdir() if other.suffix.lower() == file.suffix.lower())
    # What cannot be listed can still hold the table.
    except OSError:
        return []
    parts = [(part_of(other.stem), other.name) for other in beside]
    return [name for (other, words), name in parts if other not in (None, kind) and words == rest]


def _numbered(file: Path) -> re.Match[str] | None:
    match = _NUMBERED.match(file.name)
    return match if match and int(match["number"]) <= int(match["total"]) <= _MAX_TOTAL else None


def _missing(found: dict[int, tuple[Path, re.Match[str]]]) -> list[str]:
    file, match = next(iter(found.values()))
    total, width = int(match["total"]), len(match["number"])
    # Most programs count from 0. Only where one counts from 1 is the last number the total.
    first = 1 if total in found else 0
    return [
        f"{file.name[: match.start('number')]}{number:0{width}}{file.name[match.end('number') :]}"
        for number in range(first, first + total)
        if number not in found
    ]
