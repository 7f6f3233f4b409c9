"""The nearest known name, as a reader would choose it."""

import unicodedata

import pytest

from common.data.folders.similar_names import alike_names, nearest, nearest_words

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


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["cat", "Cat", "dog"], "'Cat' and 'cat'"),
        (["dog", "dog "], "'dog' and 'dog '"),
        (["grade 1", "grade  1"], "'grade  1' and 'grade 1'"),
        (["n\u00e4vus", "na\u0308vus"], r"'na\u0308vus' and 'n\xe4vus'"),
        (["\uff21b", "Ab"], r"'Ab' and '\uff21b'"),
        (["cat", "cat (1)", "dog"], "'cat' and 'cat (1)'"),
        (["cat", "cat - Copy"], "'cat' and 'cat - Copy'"),
        (["cat", "cat copy 2", "CAT"], "'CAT' and 'cat' and 'cat copy 2'"),
        (["grade (1)", "grade (2)"], ""),
        (["a", "A", "b", "B"], ""),
        (["-1", "1"], ""),
        (["cat", "cats", "great ape", "great_ape"], ""),
    ],
)
def test_alike_names_are_told_where_a_reader_may_not_see_a_difference(names: list[str], said: str) -> None:
    doubt = alike_names(names)

    assert said in doubt
    assert bool(doubt) == bool(said)
