"""Small folders that are written in one line of a table."""

from pathlib import Path

from common.config.sections import DataConfig
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source

_SETTINGS = DataConfig.model_construct(source="", path="", classes="", validation="drop")


def write_folder(root: Path, listed: str) -> Path:
    """Write files that only look like images.

    Args:
        root: Where to write.
        listed: Paths below the root, one space between two. `cat*3` is a folder with three images, `cat/` an empty
            folder, `cat/a.txt` a file, `new->old` a link to a folder beside it.
    """
    root.mkdir(parents=True, exist_ok=True)
    for item in listed.split("|") if "|" in listed else listed.split():
        name, _, number = item.strip().partition("*")
        link, arrow, target = name.partition("->")
        if arrow:
            (root / link).parent.mkdir(parents=True, exist_ok=True)
            (root / link).symlink_to(root / target, target_is_directory=True)
        elif number:
            (root / name).mkdir(parents=True, exist_ok=True)
            for row in range(int(number)):
                (root / name / f"{row}.png").write_bytes(b"looks like an image")
        elif name.endswith("/"):
            (root / name).mkdir(parents=True, exist_ok=True)
        else:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(b"looks like a file")
    return root


def open_at(root: Path, *, joined: bool = False, **settings: str) -> ImageSource:
    """Open a folder under a few settings."""
    return open_source(_SETTINGS.model_copy(update={"source": str(root), **settings}), joined=joined)


def counts_of(source: ImageSource) -> tuple[dict[str, int], dict[str, int]]:
    """Return class -> number of training entries, and of test entries, without the classes that have none."""
    entries = source.entries
    counts: tuple[dict[str, int], dict[str, int]] = ({}, {})
    for row, label in enumerate(entries.labels.tolist()):
        part = counts[row >= entries.num_train]
        if label >= 0:
            part[entries.classes[label]] = part.get(entries.classes[label], 0) + 1
    return counts
