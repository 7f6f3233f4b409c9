"""Search for the files that a table names."""

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from common.data.image_formats import IMAGE_SUFFIXES

_ABSOLUTE = re.compile(r"[A-Za-z]:[\\/]|[\\/]")
_SAMPLE = 50  # paths of another machine that are tried below the root


@dataclass(frozen=True)
class FoundFiles:
    """Files of the rows of a table.

    Attributes:
        files: File of each row; None for a row that names none. A file that was not found keeps its plain path.
        unclear: Name in the table -> files of which each could be meant.
        left_out: First folders of the table's paths that were left out, "" for none.
        advice: Where the files may be instead; empty if some were found.
    """

    files: list[Path | None]
    unclear: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    left_out: str = ""
    advice: str = ""


def find_files(names: Sequence[str], root: Path) -> FoundFiles:
    r"""Return the files that the names in a table stand for.

    A name is an absolute path or one from the root. Where there is no such file, one that fits alone is taken: for a
    path with `\` for `/`, in other letter case, without its suffix, or without the first folders on its way; for an
    absolute path of another machine, and for a relative one from a folder above, without the first folders that all
    such paths share.
    """
    files = [root / name if name else None for name in names]
    missing = [name for name, file in zip(names, files, strict=True) if file is not None and not os.path.isfile(file)]
    if not missing:
        return FoundFiles(files)
    tree = _Tree(root)
    fitting = {name: tree.below(_keys(name)) for name in missing if not _ABSOLUTE.match(name)}
    foreign = [name for name in dict.fromkeys(missing) if _ABSOLUTE.match(name)]
    # A table may have been written in a folder above: the first folder of its paths is then the root itself.
    above = [] if foreign else [name for name, found in fitting.items() if not found]
    start = _foreign_start([_keys(name) for name in (foreign or above)[:_SAMPLE]], tree)
    if start is not None:
        moved = {n: tree.at(_keys(n)[len(start) :]) for n in foreign or above if _keys(n)[: len(start)] == start}
        taken = {root.joinpath(*_split(name)) for name in names}.union(*fitting.values())
        # A file that another row names says that this folder is missing, and is not one above the root.
        if above and any(taken.intersection(found) for found in moved.values()):
            start, moved = None, {}
        fitting |= moved
    files = [
        fitting[name][0] if len(fitting.get(name, ())) == 1 else file for name, file in zip(names, files, strict=True)
    ]
    shown = next((_split(name) for name in foreign or above if start and len(fitting.get(name, ())) == 1), [])
    left_out = "/".join(shown[: len(start or ())])
    unclear = {name: found for name, found in fitting.items() if len(found) > 1}
    # Only of a table of which no file is there is the place in doubt, and not the rows.
    nowhere = len(missing) == sum(map(bool, names)) and not any(fitting.values())
    return FoundFiles(files, unclear, left_out, _advice(missing[0], root, tree) if nowhere else "")


def _advice(name: str, root: Path, tree: "_Tree") -> str:
    """Return what to do where no file of a table is there."""
    if "://" in name:
        return "download the images, and write the names of their files into the table"
    keys = _keys(name)
    for count in range(len(keys)):
        if found := tree.below(keys[count:]):
            place = found[0].relative_to(root)
            folder = Path(root, *place.parts[: len(place.parts) - len(keys) + count])
            return f"{found[0]} may be meant: name the folder from which the paths lead, such as data.path={folder}"
    return f"paths lead from {root}: name another folder with data.path"


def _split(name: str) -> list[str]:
    return [part for part in name.replace("\\", "/").split("/") if part not in ("", ".")]


def _key(part: str) -> str:
    # macOS writes accents as characters of their own, and Windows does not tell letter cases apart.
    return unicodedata.normalize("NFC", part).casefold()


def _keys(name: str) -> tuple[str, ...]:
    return tuple(_key(part) for part in _split(name))


def _foreign_start(paths: Sequence[tuple[str, ...]], tree: "_Tree") -> tuple[str, ...] | None:
    """Return the first folders without which most paths are in the tree.

    One start is chosen for all paths: with a start of its own, each path could end at the file of another. The result
    is None if no path is in the tree.
    """
    starts = Counter(path[:count] for path in paths for count in range(len(path)) if len(tree.at(path[count:])) == 1)
    return max(starts, key=lambda start: (starts[start], -len(start)), default=None)


class _Tree:
    """Files below a folder, found by the ends of their paths."""

    def __init__(self, root: Path) -> None:
        self._root = root

    @cached_property
    def _by_name(self) -> dict[str, list[tuple[tuple[str, ...], bool, Path]]]:
        """Files by their name and by their stem.

        Each has the folders on the way to it and whether this is its whole name.
        """
        found: dict[str, list[tuple[tuple[str, ...], bool, Path]]] = {}
        for parent, folders, files in os.walk(self._root):
            folders[:] = [name for name in folders if not name.startswith(".")]
            way = tuple(_key(part) for part in Path(parent).relative_to(self._root).parts)
            for name in files:
                stem, suffix = os.path.splitext(name)
                found.setdefault(_key(name), []).append((way, True, Path(parent, name)))
                if suffix.lower() in IMAGE_SUFFIXES:
                    found.setdefault(_key(stem), []).append((way, False, Path(parent, name)))
        return found

    def below(self, keys: tuple[str, ...]) -> tuple[Path, ...]:
        """Return the files that a path fits from any folder, those that fit best."""
        return self.at(keys) or self._fitting(keys, lambda way: way[len(way) - len(keys) + 1 :] == keys[:-1])

    def at(self, keys: tuple[str, ...]) -> tuple[Path, ...]:
        """Return the files that a path from the root fits."""
        return self._fitting(keys, lambda way: way == keys[:-1])

    def _fitting(self, keys: tuple[str, ...], fits: Callable[[tuple[str, ...]], bool]) -> tuple[Path, ...]:
        found = [entry for entry in self._by_name.get(keys[-1], ()) if fits(entry[0])] if keys else []
        whole = [entry for entry in found if entry[1]]
        return tuple(sorted(file for _, _, file in whole or found))
