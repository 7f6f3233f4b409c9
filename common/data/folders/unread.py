"""Summary of what a folder holds and a source does not read."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from common.data.folders.folder_tree import Folder
from common.data.folders.layout import Layout, part_of
from common.data.image_formats import FOREIGN_FORMATS

# Text files are more often notes than tables, so `.txt` is not among them.
TABLES = (".csv", ".tsv", ".tab", ".xlsx", ".xlsm", ".parquet", ".pq")
TABLE_ADVICE = "a table is read if data.source names it"
# Follows a validation part that is left out.
HELD_OUT = ", and as there is no test part, images to test on are held out of the training images"
_MAX_NAMES = 8
_REMEDIES = {row.name: row.remedy for row in FOREIGN_FORMATS}


def describe_unread(root: Folder, layout: Layout) -> tuple[str, ...]:
    """Return a phrase on each kind of thing that is left out."""
    everything = list(root.walk())
    loose = [file for folder in layout.unsorted for file in folder.images]
    empty = [
        row.folder for row in (*layout.train, *layout.test) if not row.folder.count and not _faults(row.folder)
    ] + [folder for folder in root.folders if part_of(folder.name)[0] and not folder.count and not _faults(folder)]
    phrases = [_dropped(root, use, folders) for use, folders in _by_use(root, layout).items()]
    if loose:
        phrases.append(f"{_count(len(loose), 'loose image')} outside the class folders ({_names(_below(root, loose))})")
    if others := Counter(kind for folder in everything for kind in folder.others):
        advice = f" ({TABLE_ADVICE})" if others.keys() & set(TABLES) else ""
        phrases.append("files " + ", ".join(_kind(kind, count) for kind, count in others.most_common()) + advice)
    if empty:
        phrases.append(f"empty class folders: {_names(sorted(set(_below(root, (row.path for row in empty)))))}")
    if loops := [folder.path / name for folder in everything for name in folder.loops]:
        phrases.append(f"links to a folder above: {_names(_below(root, loops))}")
    return tuple(phrases)


def describe_faults(root: Folder) -> str:
    """Return the folders that could not be listed, empty if there are none."""
    return _names([f"{folder.path} ({folder.fault})" for folder in _faults(root)])


def _faults(root: Folder) -> list[Folder]:
    return [folder for folder in root.walk() if folder.fault]


def _by_use(root: Folder, layout: Layout) -> dict[str, list[Folder]]:
    """Return dropped folders by the words that say how to use them."""
    uses = {
        "val": f"{'' if layout.test else HELD_OUT} (data.validation=train or test uses them)",
        "test": " (it has no class folders)",
    }
    found: dict[str, list[Folder]] = {}
    for folder in layout.dropped:
        kind = part_of(folder.name)[0] or ""
        # Loose images of a validation part have no class, whatever it is used for.
        kind = "test" if kind == "val" and folder.path.parent == root.path and not folder.filled else kind
        found.setdefault(uses.get(kind, ""), []).append(folder)
    return found


def _dropped(root: Folder, use: str, folders: list[Folder]) -> str:
    names = _names([f"{name}/" for name in _below(root, (folder.path for folder in folders))])
    return f"{names}, {_count(sum(folder.count for folder in folders), 'image')}{use}"


def _kind(kind: str, count: int) -> str:
    return f"{kind} {count:,}" + (f" ({_REMEDIES[kind]})" if kind in _REMEDIES else "")


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _below(root: Folder, files: Iterable[Path]) -> list[str]:
    return [str(file.relative_to(root.path)) for file in files]


def _names(names: list[str]) -> str:
    more = len(names) - _MAX_NAMES
    return ", ".join(names[:_MAX_NAMES]) + (f" and {more:,} more" if more > 0 else "")
