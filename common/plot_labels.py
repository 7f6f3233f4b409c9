"""Labels of classes that fit on the axes of a plot."""

from collections.abc import Sequence

_MAX_LABELS = 40


def short_label(name: str, max_length: int = 24) -> str:
    r"""Return a name for a plot, cut to a length.

    >>> short_label("price in $"), short_label("a" * 30, 8)
    ('price in \\$', 'aaaaa...')
    """
    name = name if len(name) <= max_length else f"{name[: max_length - 3]}..."
    # A dollar sign would start a formula.
    return name.replace("$", r"\$")


def thinned_labels(names: Sequence[str], max_labels: int = _MAX_LABELS) -> tuple[range, list[str], str]:
    """Return places and labels of every n-th name with a remark on it.

    The remark is empty if every name has a label.

    >>> thinned_labels(["cat", "dog", "owl"], 2)
    (range(0, 3, 2), ['cat', 'owl'], ' (one name in 2)')
    """
    step = max(1, -(-len(names) // max_labels))
    places = range(0, len(names), step)
    return places, [short_label(names[place]) for place in places], "" if step == 1 else f" (one name in {step})"
