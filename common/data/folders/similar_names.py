"""Search of the known name that a wrong one most likely means."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

_CUTOFF = 0.6
_MAX_SHOWN = 5
# What systems add to a second folder of one name.
_COPY = re.compile(r"( -)? copy( \d+)?$| ?\(\d+\)$", re.IGNORECASE)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most like a name, None if none is.

    Names that differ in case, spaces, Unicode form, plural or decimals alone come before any other.

    >>> nearest("cat", ["Dogs", "Cats"]), nearest("1", ["0.0", "1.0"]), nearest("cat", ["emu"])
    ('Cats', '1.0', None)
    """
    folded = {other: _fold(other) for other in sorted(known) if other != name}
    for same in (_fold, lambda text: _singular(_fold(text)), _number):
        for other in folded:
            if same(other) == same(name):
                return other
    close = difflib.get_close_matches(_fold(name), folded.values(), n=1, cutoff=_CUTOFF)
    return next((other for other, text in folded.items() if text in close), None)


def alike_names(names: Iterable[str]) -> str:
    """Return a doubt about class names that only look different.

    Single letters are left alone, because small and capital ones can be classes.

    >>> alike_names(["cat", "Cat ", "a", "A", "dog"]).splitlines()[0]
    "the classes 'Cat ' and 'cat' differ in letter case, spaces, Unicode form or the mark of a copy alone"
    """
    groups: dict[str, list[str]] = {}
    known = sorted(set(names))
    forms = {name: _form(name) for name in known}
    for name, form in forms.items():
        original = _form(_COPY.sub("", name))
        groups.setdefault(original if original in forms.values() else form, []).append(name)
    alike = [group for folded, group in groups.items() if len(group) > 1 and len(folded) > 1]
    if not alike:
        return ""
    # Names that look the same are shown by the numbers of their letters.
    shown = "; ".join(" and ".join(map(repr if _readable(group) else ascii, group)) for group in alike[:_MAX_SHOWN])
    return (
        f"the classes {shown} differ in letter case, spaces, Unicode form or the mark of a copy alone\n  give each "
        "class one name, or list the classes with data.classes if these are different"
    )


def _form(name: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


def _readable(names: Iterable[str]) -> bool:
    """Return whether names look different when they are printed."""
    forms = [unicodedata.normalize("NFKC", name) for name in names]
    return len(set(forms)) == len(forms)


def nearest_words(found: str | None) -> str:
    """Return a nearest name as it follows the wrong one in a message."""
    if found is None:
        return ""
    # Letters with marks can look alike in two forms, which no reader would tell apart.
    form = "" if found.isascii() else f", in Unicode form {'NFC' if unicodedata.is_normalized('NFC', found) else 'NFD'}"
    return f" (nearest: {found}{form})"


def _fold(text: str) -> str:
    return re.sub(r"[\s_.-]+", " ", unicodedata.normalize("NFKC", text).casefold()).strip()


def _singular(text: str) -> str:
    return re.sub(r"ies$", "y", text) if text.endswith("ies") else re.sub(r"(?<=s|x|h)es$|s$", "", text)


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
