"""Class lists and sources that differ, with the nearest name."""

import re
import unicodedata
from pathlib import Path

import pytest

from common.config.listed_values import join_names, split_names
from common.errors import DataError
from tests.support.data.folders import counts_of, open_at, write_folder


@pytest.mark.parametrize(
    ("folders", "classes", "said"),
    [
        ("cat*2 dog*1", "cat,dog", []),
        ("cat*2 dog*1", "cat,yak", ["no image of yak", "data.classes leaves out dog (1 images)"]),
        ("cat*2 Dog*1", "cat,dog", ["no image of dog (nearest: Dog)", "data.classes leaves out Dog (1 images)"]),
        ("cats*2 dog*1", "cat,dog", ["no image of cat (nearest: cats)", "data.classes leaves out cats (2 images)"]),
        ("0*2 1*1", "0.0,1", ["no image of 0.0 (nearest: 0)", "data.classes leaves out 0 (2 images)"]),
        ("0.0*2 1.0*1", "0,1", ["no image of 0 (nearest: 0.0), 1 (nearest: 1.0)"]),
        ("cat*2 dog*1 emu/", "cat,dog,emu", ["no image of emu"]),
        ("mel*2 nevus*1", "melanoma,nevus", ["no image of melanoma"]),
        (
            "cat*2 dog*1 emu*1",
            "cat,dog emu",
            ["no image of dog emu (dog and emu are classes: put a comma between them)"],
        ),
        (
            "cat*2 dog*1 emu*1",
            "cat;dog,emu",
            ["no image of cat;dog (cat and dog are classes: put a comma between them)"],
        ),
        ("great_ape*2 dog*1", "great ape,dog", ["no image of great ape (nearest: great_ape)"]),
    ],
)
def test_missing_and_left_out_classes_are_named(tmp_path: Path, folders: str, classes: str, said: list[str]) -> None:
    remarks = open_at(write_folder(tmp_path, folders), classes=classes).entries.class_remarks

    assert list(remarks[: len(said)]) == said
    assert bool(remarks) == bool(said)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_of_another_unicode_form_are_named_with_it(tmp_path: Path, form: str) -> None:
    other = "NFD" if form == "NFC" else "NFC"
    on_disk, wanted = (unicodedata.normalize(name, "n\u00e4vus") for name in (form, other))

    remarks = open_at(write_folder(tmp_path, f"{on_disk}*1 dog*1"), classes=f"{wanted},dog").entries.class_remarks

    assert f"(nearest: {on_disk}, in Unicode form {form})" in remarks[0]


@pytest.mark.parametrize(
    "names",
    [
        ["cat", "dog"],
        ["ape, great", "dog"],
        ['the "big" one', "dog"],
        ['"quoted"', "dog"],
        ["a,b", "c,d", "e"],
        ["n\u00e4vus, blue", "x"],
    ],
)
def test_class_names_survive_the_setting(names: list[str]) -> None:
    assert list(split_names(join_names(names))) == names


def test_a_list_without_quotes_is_split_as_ever() -> None:
    assert split_names(' cat, "dog" ,,emu') == ("cat", "dog", "emu")
    assert split_names("it's, a 5 inch") == ("it's", "a 5 inch")


def test_a_class_with_a_comma_is_read(tmp_path: Path) -> None:
    root = write_folder(tmp_path, "ape, great*2|dog*1")

    source = open_at(root, classes=join_names(["dog", "ape, great"]))

    assert source.entries.classes == ("dog", "ape, great")
    assert counts_of(source) == ({"dog": 1, "ape, great": 2}, {})


@pytest.mark.parametrize(
    ("classes", "said"),
    [
        ("cat dog", "if it is 2: cat,dog, or --class once for each name"),
        ("cat;dog", "if it is 2: cat,dog,"),
        ("cat | dog", "if it is 2: cat,dog,"),
        ("[cat dog emu]", "if it is 3: cat,dog,emu,"),
        ('"cat,dog"', "if it is 2: cat,dog,"),
        ("cat\ndog", "if it is 2: cat,dog,"),
        ("cat,", "give at least two different names, joined by commas"),
        ("cat,cat", "give at least two different names, joined by commas"),
    ],
)
def test_names_that_are_joined_by_something_else_are_told_apart(tmp_path: Path, classes: str, said: str) -> None:
    with pytest.raises(DataError, match=re.escape(said)) as refused:
        open_at(write_folder(tmp_path, "cat*2 dog*1"), classes=classes)

    assert ("is one name here" in str(refused.value)) == ("if it is" in said)
