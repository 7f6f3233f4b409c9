"""Settings that list several values, joined by commas."""

import csv
import io
from collections.abc import Iterable

# Value of `training.class-weights` under which weights follow from the number of images of each class.
BALANCED = "balanced"


def listed_weights(setting: str) -> tuple[float, ...]:
    """Return the class weights that a setting lists.

    An empty setting and a balanced one list none.

    >>> listed_weights("1, 2.5"), listed_weights("balanced")
    ((1.0, 2.5), ())
    """
    return () if setting == BALANCED else tuple(map(float, split_list(setting)))


def listed_window(setting: str) -> tuple[int, int] | None:
    """Return the two values of a window, None for an empty setting.

    >>> listed_window("-1000, 400"), listed_window("")
    ((-1000, 400), None)

    Raises:
        ValueError: The setting is not empty and not two whole numbers.
    """
    if not setting.strip():
        return None
    try:
        low, high = map(int, split_list(setting))
    except ValueError:
        raise ValueError("use two whole numbers, joined by a comma") from None
    return low, high


def split_list(listed: str) -> tuple[str, ...]:
    """Return the items of a setting that is a list.

    They are joined by commas, or by spaces alone.

    >>> split_list("crop, flip"), split_list("crop flip"), split_list("")
    (('crop', 'flip'), ('crop', 'flip'), ())
    """
    items = listed.split(",") if "," in listed else listed.split()
    return tuple(item.strip() for item in items if item.strip())


def split_names(listed: str) -> tuple[str, ...]:
    """Return the class names of a setting.

    A name may hold spaces. One with a comma stands in double quotes.

    >>> split_names('cat, "ape, great"')
    ('cat', 'ape, great')
    """
    rows = csv.reader([listed], skipinitialspace=True) if '"' in listed else [listed.split(",")]
    return tuple(name.strip() for row in rows for name in row if name.strip())


def join_names(names: Iterable[str]) -> str:
    """Return class names as the value of a setting.

    >>> join_names(["cat", "ape, great"])
    'cat,"ape, great"'
    """
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()
