"""Layout of a folder of images, as classes or as parts with classes.

Pure functions over the tree: they read no file.
"""

import re
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from common.data.folders.folder_tree import Folder
from common.data.folders.name_labels import advice_on_names
from common.data.folders.similar_names import nearest, nearest_words

Validation = Literal["drop", "train", "test"]
Part = Literal["train", "test", "val"]
_WORDS: dict[str, Part] = {
    **dict.fromkeys(("train", "training", "trn", "trainset"), "train"),
    **dict.fromkeys(("test", "testing", "tst", "testset"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "valset", "devset"), "val"),
}
_Parts = dict[Part, Folder]
# Years, months and days as cameras and archives write them: 2019, 2019-07, 2019_07_31, 20190731.
_DATE = re.compile(r"(19|20)\d\d(?:[-_. ]?(0[1-9]|1[0-2])(?:[-_. ]?(0[1-9]|[12]\d|3[01]))?)?")
# Words of folders into which one set was cut, and names that cameras give theirs, such as 100CANON.
_PIECES = frozenset(
    [
        *("images", "image", "imgs", "img", "pictures", "pics", "photos", "files", "data", "part", "parts", "batch"),
        *("chunk", "shard", "piece", "volume", "vol", "disk", "disc", "archive", "set", "subset", "export", "upload"),
        *(
            "folder",
            "patient",
            "patients",
            "subject",
            "sub",
            "case",
            "participant",
            "study",
            "series",
            "session",
            "scan",
        ),
    ]
)
_CAMERA = re.compile(r"[1-9]\d\d(?!\d{5})[A-Za-z0-9_]{5}")
_SITES = "sites, years, folds or parts"
_MONTH = re.compile(r"0?[1-9]|1[0-2]")
_Groups = dict[tuple[str, ...], list[tuple[Part, Folder]]]  # other words of their names -> folders of parts
_MAX_NAMES = 5


@dataclass(frozen=True)
class ClassFolder:
    """A folder whose images are all of one class."""

    name: str
    folder: Folder


@dataclass(frozen=True)
class Layout:
    """The class folders of a source.

    Attributes:
        train: Class folders to train on, empty ones included.
        test: Class folders of the source's own test part.
        dropped: Folders with images that are not used.
        unsorted: Folders that hold class folders, where a loose image has no class.
        doubt: Why this reading may be wrong and what to name instead; empty if it is plain.
    """

    train: tuple[ClassFolder, ...]
    test: tuple[ClassFolder, ...] = ()
    dropped: tuple[Folder, ...] = ()
    unsorted: tuple[Folder, ...] = ()
    doubt: str = ""


def read_layout(root: Folder, validation: Validation) -> Layout:
    """Return the class folders below a root.

    Parts are known by their names, in any case and with common words beside them. A folder that only resembles a set of
    classes is read as one and carries a doubt, so that a client that has joined reads it without a refusal.
    """
    parts, doubt = _parts_of(root)
    if parts:
        return _of_parts(root, parts, doubt, validation)
    inner = _parts_in_classes(root.filled)
    if inner is not None:
        return _of_inner_parts(root, inner, validation)
    return Layout(_classes(root), unsorted=(root,), doubt=doubt or _doubt_of_classes(root))


def _classes(*folders: Folder) -> tuple[ClassFolder, ...]:
    return tuple(ClassFolder(child.name, child) for folder in folders for child in folder.folders)


def part_of(name: str) -> tuple[Part | None, tuple[str, ...]]:
    """Return the part that a folder's name means, with its other words.

    >>> part_of("Training"), part_of("seg_test"), part_of("train2017"), part_of("latest")
    (('train', ()), ('test', ('seg',)), ('train', ('2017',)), (None, ('latest',)))
    """
    words = re.findall(r"[^\W\d_]+|\d+", name.casefold())
    named = [word for word in words if word in _WORDS]
    rest = tuple(word for word in words if word not in _WORDS)
    return (_WORDS[named[0]] if len(named) == 1 else None), rest


def _parts_of(root: Folder) -> tuple[_Parts, str]:
    """Return the parts in a root and a doubt about them."""
    by_rest: _Groups = {}
    for folder in root.folders:
        part, rest = part_of(folder.name)
        if part is not None:
            by_rest.setdefault(rest, []).append((part, folder))
    # Names such as "test tube" and "train track" have no other words in common: they are classes.
    rest, group = _largest(by_rest)
    # Kaggle's test1/ lies beside train/: numbers and words such as images tell no parts apart.
    if len({part for part, _ in group}) < 2:
        alike: _Groups = {}
        for words, rows in by_rest.items():
            alike.setdefault(_telling(words), []).extend(rows)
        rest, group = _largest(alike)
    alone = len({part for part, _ in group}) < 2
    beside = {folder.path for folder in root.filled} - {folder.path for _, folder in group}
    if not group or (alone and (rest or beside or not all(folder.holds_folders for _, folder in group))):
        return {}, ""
    names, parts = _listed([folder.name for _, folder in group]), [row for row in group if row[1].filled]
    kinds = Counter(part for part, _ in parts)
    if not kinds:
        # Files of a test part are often named by numbers alone.
        advice = next(filter(None, (advice_on_names(folder.images) for _, folder in group)), "")
        return {}, (
            f"{names} have no class folders: sort the images of each into one sub-folder per class, or write a "
            "manifest with the columns path, label and split" + (f"\n  {advice}" if advice else "")
        )
    if "train" not in kinds or max(kinds.values()) > 1:
        why = "no part to train on" if "train" not in kinds else "two parts of one kind"
        return {}, f"{names} are parts of a data set, with {why}: name one, such as {parts[0][1].path}"
    return {part: _inside(folder) for part, folder in parts}, ""


def _largest(groups: _Groups) -> tuple[tuple[str, ...], list[tuple[Part, Folder]]]:
    """Return the words and the folders of the group with most parts."""
    return max(groups.items(), key=lambda item: (len({part for part, _ in item[1]}), not item[0]), default=((), []))


def _telling(words: tuple[str, ...]) -> tuple[str, ...]:
    """Return the words of a name that tell what is in a folder."""
    return tuple(word for word in words if not word.isdecimal() and word not in _PIECES)


def _inside(part: Folder) -> Folder:
    """Return the folder that holds a part's class folders."""
    # Archives often repeat a part's name: train/train/cat.
    while len(part.filled) == 1 and part.filled[0].holds_folders and part.filled[0].name == part.name:
        part = part.filled[0]
    return part


def _of_parts(root: Folder, parts: _Parts, doubt: str, validation: Validation) -> Layout:
    train, test = [parts["train"]], [parts["test"]] if "test" in parts else []
    if "val" in parts and validation != "drop":
        (train if validation == "train" else test).append(parts["val"])
    used = [*train, *test]
    dropped = [folder for folder in root.filled if not any(part.path.is_relative_to(folder.path) for part in used)]
    doubt = doubt or _disagreement(train, test)
    for part in used if not doubt else ():
        doubt = doubt or _doubt_of_classes(part)
    return Layout(_classes(*train), _classes(*test), tuple(dropped), (root, *used), doubt)


def _disagreement(train: list[Folder], test: list[Folder]) -> str:
    """Return a doubt where training and test parts have other classes."""
    left, right = ({child.name for part in parts for child in part.folders} for parts in (train, test))
    if not test or left == right:
        return ""
    only = [
        f"{_listed(sorted(mine - others), others)} in {parts[0].name}/ alone"
        for parts, mine, others in ((train, left, right), (test, right, left))
        if mine - others
    ]
    return (
        f"the class folders of {train[0].name}/ and {test[0].name}/ disagree: {'; '.join(only)}: rename or move them, "
        "or name the classes with data.classes"
    )


def _parts_in_classes(folders: tuple[Folder, ...]) -> list[tuple[str, _Parts]] | None:
    """Return the parts inside each class folder, None where there are none."""
    found = []
    for folder in folders:
        kinds = {part_of(child.name)[0]: child for child in folder.filled}
        # A part that holds the same class folders as another lies below a site: that is no class.
        if None in kinds or "train" not in kinds or not folder.holds_folders or _share(folder.filled):
            return None
        found.append((folder.name, {part: child for part, child in kinds.items() if part is not None}))
    return found if any(len(parts) > 1 for _, parts in found) else None


def _of_inner_parts(root: Folder, inner: list[tuple[str, _Parts]], validation: Validation) -> Layout:
    wanted: dict[Part, str] = {"train": "train", "test": "test", "val": validation}
    picked: dict[str, list[ClassFolder]] = {"train": [], "test": [], "drop": []}
    for name, parts in inner:
        for part, folder in parts.items():
            picked[wanted[part]].append(ClassFolder(name, folder))
    empty = [ClassFolder(folder.name, folder) for folder in root.folders if not folder.count]
    dropped = tuple(row.folder for row in picked["drop"])
    return Layout((*picked["train"], *empty), tuple(picked["test"]), dropped, (root, *root.filled))


def _doubt_of_classes(root: Folder) -> str:
    """Return why the folders of a root may be no classes."""
    folders = root.filled
    if len(folders) == 1 and folders[0].holds_folders:
        likely = folders[0]
        while len(likely.filled) == 1 and likely.filled[0].holds_folders:
            likely = likely.filled[0]
        if len(likely.filled) > 1:
            return (
                f"{root.path} holds one folder with images, {folders[0].name}, and {likely.path} holds "
                f"{_listed([folder.name for folder in likely.filled])}: name {likely.path}, or if "
                f"{folders[0].name} is a class, list the classes with data.classes"
            )
    dates = _are_dates(folders)
    if len(folders) > 1 and _are_pieces(folders):
        return _doubt_of_groups(folders, "numbered pieces of one set, or patients")
    if len(folders) > 1 and (dates or (_share(folders) and not _sorted_by_date(folders))):
        return _doubt_of_groups(folders, "years or days" if dates else _SITES)
    return ""


def _doubt_of_groups(folders: tuple[Folder, ...], kinds: str) -> str:
    """Return a doubt about folders that look like groups of images."""
    levels, one, last = [], folders[0], folders
    # Below years may be months, and below sites years: the classes are below the last of these levels.
    while _share(last) or (_are_dates(last) and all(folder.holds_folders for folder in last)):
        one, below = last[0], _children(last)
        levels.append(_listed(sorted({folder.name for folder in below})))
        last = below
    same = "same sub-folders," if _share(folders) else "sub-folders"
    held = f"hold the {same} {', and these hold '.join(levels)}" if levels else "hold images"
    file = last[0].all_images()[0].relative_to(folders[0].path.parent)
    # Below classes too there may be such levels, and then the last folder is not a class.
    row = f" (such as {file},{last[0].name})" if levels and kinds != _SITES else ""
    return (
        f"{_listed([folder.name for folder in folders])} {held}: they look like {kinds}, not like classes\n  name one, "
        f"such as {one.path}; for all together write a manifest with the columns path and label{row}, and client if "
        "each is a client of its own; if they are the classes, list them with data.classes"
    )


def _children(folders: tuple[Folder, ...]) -> tuple[Folder, ...]:
    return tuple(child for folder in folders for child in folder.filled)


def _are_dates(folders: tuple[Folder, ...]) -> bool:
    return bool(folders) and all(_DATE.fullmatch(folder.name) for folder in folders)


def _are_pieces(folders: tuple[Folder, ...]) -> bool:
    """Return whether names differ in a number alone."""
    words = [tuple(re.findall(r"[^\W\d_]+|\d+", folder.name.casefold())) for folder in folders]
    texts = {frozenset(word for word in name if not word.isdecimal()) for name in words}
    numbered = len(texts) == 1 and bool(texts.pop() & _PIECES)
    return numbered or all(_CAMERA.fullmatch(folder.name) for folder in folders)


def _sorted_by_date(folders: tuple[Folder, ...]) -> bool:
    """Return whether folders hold years, months or days without classes below."""
    level = _children(folders)
    if not _are_dates(level):
        return False
    while (below := _children(level)) and all(_DATE.fullmatch(f.name) or _MONTH.fullmatch(f.name) for f in below):
        level = below
    return not _share(level)


def _share(folders: tuple[Folder, ...]) -> bool:
    """Return whether folders hold sub-folders of the same names, at least two."""
    if len(folders) < 2 or not all(folder.holds_folders for folder in folders):
        return False
    # Each download of a folder in pieces has that folder inside.
    if all(len(folder.filled) == 1 and folder.filled[0].holds_folders for folder in folders):
        inner = _children(folders)
        return len({folder.name for folder in inner}) == 1 and _share(inner)
    names = [{child.name.casefold() for child in folder.filled} for folder in folders]
    union = set().union(*names)
    common = {name for name in union if sum(name in some for some in names) > 1}
    # A site or a fold may lack a class. Patients or dates below classes are nowhere the same.
    return len(union) > 1 and all(2 * len(some) >= len(union) for some in (common, *names))


def _listed(names: list[str], known: set[str] | frozenset[str] = frozenset()) -> str:
    """Join a few names, each with the nearest known one."""
    shown = [name + nearest_words(nearest(name, known)) for name in names[:_MAX_NAMES]]
    return ", ".join(shown) + (f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else "")
