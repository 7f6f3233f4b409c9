"""The nearest known name, as a reader would choose it."""

import unicodedata

import pytest

from common.data.folders.similar_names import nearest, nearest_words

COMPOSED = "caf\u00e9"


@pytest.mark.parametrize(
    ("name", "known", "expected"),
    [
        ("dog", ["Dog", "dogs", "doge"], "Dog"),
        ("dog", ["cat", "dogs"], "dogs"),
        ("berries", ["berry", "cherries"], "berry"),
        ("boxes", ["box", "fox"], "box"),
        ("dgo", ["dog", "emu"], "dog"),
        ("pneumonia", ["Pneumonia ", "normal"], "Pneumonia "),
        ("great ape", ["great_ape", "ape"], "great_ape"),
        ("great-ape", ["Great  Ape", "ape"], "Great  Ape"),
        ("1", ["0.0", "1.0"], "1.0"),
        ("01", ["1", "10"], "1"),
        (COMPOSED, [unicodedata.normalize("NFD", COMPOSED), "cafe"], unicodedata.normalize("NFD", COMPOSED)),
        ("dog", ["emu", "yak"], None),
        ("dog", ["dog"], None),
        ("dog", [], None),
    ],
)
def test_nearest_prefers_the_smallest_difference(name: str, known: list[str], expected: str | None) -> None:
    assert nearest(name, known) == expected


def test_nearest_words_name_the_unicode_form() -> None:
    assert nearest_words(None) == ""
    assert nearest_words("Dog") == " (nearest: Dog)"
    assert nearest_words(COMPOSED).endswith("in Unicode form NFC)")
    assert nearest_words(unicodedata.normalize("NFD", COMPOSED)).endswith("in Unicode form NFD)")
