"""Search of the known name that a wrong one most likely means."""

import difflib
import re
import unicodedata
from collections.abc import Iterable

_CUTOFF = 0.6


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
