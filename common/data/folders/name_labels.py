"""Classes that the names of files tell, as in `cat.17.jpg`."""

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

_FIRST = re.compile(r"(?P<name>[^\W\d_][^\d]*?)[ ._(-]*\d.*")
_LAST = re.compile(r".*\d[ ._-]+(?P<name>[^\W\d_][^\d]*?)")
_LEAST_FILES = 2  # a class has
_LEAST_SHARE = 0.9  # of all files are named so
_MAX_SHOWN = 5


def advice_on_names(files: Sequence[Path]) -> str:
    """Return what to do with loose images that are named after classes.

    It is empty if their names tell none.
    """
    for pattern in (_FIRST, _LAST):
        named = [(match["name"], file) for file in files if (match := pattern.fullmatch(file.stem))]
        counts = Counter(name for name, _ in named)
        if len(counts) > 1 and min(counts.values()) >= _LEAST_FILES and len(named) >= _LEAST_SHARE * len(files):
            more = f" and {len(counts) - _MAX_SHOWN} more" if len(counts) > _MAX_SHOWN else ""
            name, file = named[0]
            row = f"{file.name},{name} below the header path,label"
            return (
                f"the files are named after {', '.join(sorted(counts)[:_MAX_SHOWN])}{more}: if these are the classes, "
                f"put the files of each into a folder of its name, or write a manifest with rows such as {row}"
            )
    return ""
