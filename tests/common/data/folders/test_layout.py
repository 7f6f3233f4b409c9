"""Layouts of folders: which folders are classes, which are parts, and what is refused with a root to name."""

from pathlib import Path

import pytest

from common.errors import DataError
from tests.support.data.folders import counts_of, open_at, write_folder

CAT_DOG = ({"cat": 2, "dog": 1}, {})
WITH_TEST = ({"cat": 2, "dog": 1}, {"cat": 1, "dog": 1})


def parts(train: str, test: str, *more: str) -> str:
    """A listing of two parts with cats and dogs, and whatever lies beside them."""
    return "|".join([f"{train}/cat*2", f"{train}/dog*1", f"{test}/cat*1", f"{test}/dog*1", *more])


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        pytest.param("cat*2 dog*1", CAT_DOG, id="classes"),
        pytest.param("cat/a*1 cat/b/c*1 dog*1", CAT_DOG, id="folders inside a class"),
        pytest.param("cat/ward-1*1 cat/ward-2*1 dog/ward-3*1", CAT_DOG, id="a patient inside a class"),
        pytest.param("cat/images*2 dog/images*1", CAT_DOG, id="one inner wrapper for each class"),
        pytest.param(parts("train", "test"), WITH_TEST, id="train and test"),
        pytest.param(parts("Training", "Testing"), WITH_TEST, id="Training and Testing"),
        pytest.param(parts("TRAIN", "Test"), WITH_TEST, id="case"),
        pytest.param(parts("Training Set", "Test Set"), WITH_TEST, id="two words"),
        pytest.param(parts("seg_train", "seg_test"), WITH_TEST, id="a common word before"),
        pytest.param(parts("train2017", "test2017"), WITH_TEST, id="a common year"),
        pytest.param(parts("train/train", "test/test"), WITH_TEST, id="a part's name twice"),
        pytest.param(parts("train", "test", "val/cat*5"), WITH_TEST, id="val is dropped"),
        pytest.param(parts("train", "test", "unlabelled*5", "docs/a.txt"), WITH_TEST, id="other folders beside parts"),
        pytest.param(parts("train", "test", ".cache/cat*5"), WITH_TEST, id="a hidden folder beside parts"),
        pytest.param("train/cat*2 train/dog*1 dev/cat*1 dev/dog*1", CAT_DOG, id="train and dev"),
        pytest.param("train/cat*2 train/dog*1 val/cat*1 .git/cat*1", CAT_DOG, id="hidden beside train and val"),
        pytest.param("train/cat*2 train/dog*1 val/cat*1 __MACOSX/cat*1", CAT_DOG, id="archive's folder beside parts"),
        pytest.param("train/cat*2 train/dog*1 test/", CAT_DOG, id="an empty test part"),
        pytest.param("train/cat*2 train/dog*1", CAT_DOG, id="train alone"),
        pytest.param("train/cat*2 train/dog*1 test*4", CAT_DOG, id="a test part without labels"),
        pytest.param("cat/train*2 dog/train*1 cat/test*1 dog/test*1", WITH_TEST, id="parts inside the classes"),
        pytest.param("cat/Train*2 dog/train*1 cat/val*3", CAT_DOG, id="val inside the classes is dropped"),
        pytest.param("train*2 plane*1", ({"train": 2, "plane": 1}, {}), id="train as a class"),
        pytest.param("test_tube*2 train_track*1", ({"test_tube": 2, "train_track": 1}, {}), id="words in classes"),
        pytest.param("train/cat*2 train/dog*1 test1*4", CAT_DOG, id="a numbered test part without labels"),
        pytest.param(parts("train", "test1"), WITH_TEST, id="a numbered test part"),
        pytest.param(parts("train_images", "test"), WITH_TEST, id="a word in one part alone"),
        pytest.param(parts("train2017", "val2018").replace("val", "test"), WITH_TEST, id="parts of two years"),
        pytest.param("grade_1*2 grade_2*1", ({"grade_1": 2, "grade_2": 1}, {}), id="classes that end in a number"),
        pytest.param("images*2 other*1", ({"images": 2, "other": 1}, {}), id="a common word as a class"),
        pytest.param("101*2 102*1", ({"101": 2, "102": 1}, {}), id="numbers of three digits"),
        pytest.param("cat/images/raw*2 dog/images/raw*1", CAT_DOG, id="two inner wrappers for each class"),
        pytest.param("cat*2 dog*1 My.lrdata/A*1 x.photoslibrary/cat*1", CAT_DOG, id="catalogues of programs"),
        pytest.param("Person_01*2 Person_02*1", ({"Person_01": 2, "Person_02": 1}, {}), id="faces"),
        pytest.param("cat*2 dog*1 Cat/", CAT_DOG, id="an empty class that is alike"),
        pytest.param("cat/2019*1 cat/2020*1 dog/2019*1", CAT_DOG, id="years inside the classes"),
        pytest.param("cat/2019/07*1 cat/2019/12*1 dog/2019/07*1", CAT_DOG, id="months inside the classes"),
        pytest.param("1990*2 dog*1", ({"1990": 2, "dog": 1}, {}), id="a year as a class"),
        pytest.param("01*2 02*1", ({"01": 2, "02": 1}, {}), id="numbers as classes"),
        pytest.param("train/steam*2 plane/jet*1", ({"train": 2, "plane": 1}, {}), id="train as a class with kinds"),
        pytest.param("cat*2 dog*1 lost+found/x*1 @eaDir/x*1", CAT_DOG, id="folders of systems"),
        pytest.param("cat*2 dog*1 empty/", CAT_DOG, id="an empty class"),
        pytest.param("cat*1 cat/more->emu/x emu/x*2", ({"cat": 3, "emu": 2}, {}), id="a linked sub-folder"),
        pytest.param("cat*2 dog*1 dog/more->dog", CAT_DOG, id="a link to itself"),
    ],
)
def test_read_layout_finds_classes_and_parts(
    tmp_path: Path, listed: str, expected: tuple[dict[str, int], dict[str, int]]
) -> None:
    source = open_at(write_folder(tmp_path / "pets", listed))

    assert counts_of(source) == expected
    # A refusal alone would not tell: a client that has joined reads the same.
    assert counts_of(open_at(tmp_path / "pets", joined=True)) == expected


@pytest.mark.parametrize(
    ("validation", "expected"),
    [
        ("drop", ({"cat": 2, "dog": 1}, {"cat": 1, "dog": 1})),
        ("train", ({"cat": 5, "dog": 2}, {"cat": 1, "dog": 1})),
        ("test", ({"cat": 2, "dog": 1}, {"cat": 4, "dog": 2})),
    ],
)
@pytest.mark.parametrize("name", ["val", "valid", "Validation", "dev"])
def test_read_layout_uses_val_as_the_user_says(
    tmp_path: Path, name: str, validation: str, expected: tuple[dict[str, int], dict[str, int]]
) -> None:
    write_folder(tmp_path, parts("train", "test", f"{name}/cat*3", f"{name}/dog*1"))

    assert counts_of(open_at(tmp_path, validation=validation)) == expected


def test_read_layout_takes_val_for_test_where_there_is_no_test(tmp_path: Path) -> None:
    write_folder(tmp_path, "train/cat*2 train/dog*1 val/cat*1 val/dog*1")

    assert counts_of(open_at(tmp_path, validation="test")) == WITH_TEST
    inner = write_folder(tmp_path / "inner", "cat/train*2 cat/val*1 dog/train*1 dog/val*1")
    assert counts_of(open_at(inner, validation="test")) == WITH_TEST


SITES = "site-a/cat*2 site-a/dog*1 site-b/cat*1 site-b/dog*1"
DRIVE = "pets-001/pets/cat*2 pets-001/pets/dog*1 pets-002/pets/cat*1 pets-002/pets/dog*1"
YEARS_MONTHS = " ".join(
    f"{year}/{month}/{name}*1" for year in (2019, 2020) for month in ("01", "02") for name in CAT_DOG[0]
)


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        pytest.param(SITES, "site-a, site-b hold the same sub-folders, cat, dog", id="sites"),
        pytest.param(SITES + " site-c/cat*1", "site-a, site-b, site-c hold the same", id="a site that lacks a class"),
        pytest.param(SITES.replace("site-b/cat", "site-b/Cat"), "name one, such as {root}/site-a", id="case"),
        pytest.param("0/cat*1 0/dog*1 1/cat*1 1/dog*1", "name one, such as {root}/0", id="folds"),
        pytest.param(
            " ".join(f"{site}/{part}/{name}*1" for site in "ab" for part in ("train", "test") for name in CAT_DOG[0]),
            "name one, such as {root}/a",
            id="sites with parts",
        ),
        pytest.param(
            SITES.replace("site-a", "2019").replace("site-b", "2020"), "such as 2019/cat/0.png,cat", id="years"
        ),
        pytest.param(YEARS_MONTHS, "name one, such as {root}/2019/01; for all", id="years with months"),
        pytest.param(YEARS_MONTHS, "(such as 2019/01/cat/0.png,cat)", id="a row of years with months"),
        pytest.param("2019/01/cat*1 2019/02/dog*1 2020/12/cat*1", "look like years or days", id="months of one year"),
        pytest.param("2019-07*1 2019-08*1", "2019-07, 2019-08 hold images: they look like years", id="months alone"),
        pytest.param("20190701/cat*1 20190702/dog*1", "look like years or days", id="days"),
        pytest.param("images_001/images*2 images_002/images*1", "numbered pieces of one set", id="numbered images"),
        pytest.param("HAM_images_part_1*2 HAM_images_part_2*1", "numbered pieces of one set", id="parts of images"),
        pytest.param("batch1/cat*2 batch2/cat*1", "numbered pieces of one set", id="batches"),
        pytest.param("100CANON*2 101CANON*1", "numbered pieces of one set", id="folders of a camera"),
        pytest.param("100MSDCF*2 101_PANA*1 102APPLE*1", "numbered pieces of one set", id="folders of cameras"),
        pytest.param("Data (1)*2|Data (2)*1", "numbered pieces of one set", id="folders with numbers in brackets"),
        pytest.param("patient01*2 patient02*1", "numbered pieces of one set, or patients", id="patients"),
        pytest.param("train/subject-1/a*2 train/subject-2/a*1", "or patients", id="patients in a part"),
        pytest.param("Case 1*2|Case 2*1", "or patients", id="cases"),
        pytest.param(
            "cat/p*1 cat/q*1 dog/p*1 dog/q*1", "the columns path and label, and client", id="no row of a guess"
        ),
        pytest.param("train*2 test1*1", "train have no class folders", id="numbered part without classes"),
        pytest.param(DRIVE, "name one, such as {root}/pets-001/pets; for all", id="pieces of a download"),
        pytest.param(DRIVE.replace("pets/", "home/me/pets/"), "hold the same", id="deep pieces"),
        pytest.param("cat*2 Cat*1", "'Cat' and 'cat' differ in letter case", id="classes alike"),
        pytest.param("cat*2|cat (1)*1|dog*1", "'cat' and 'cat (1)' differ", id="a copy of a class"),
        pytest.param(
            "train/cat*2 train/dog*1 test/cat*1 test/dog*1 train/Dog*1 test/Dog*1", "differ in", id="in parts"
        ),
        pytest.param("2019*3 2020*2", "list them with data.classes", id="years that may be classes"),
        pytest.param(
            " ".join(f"{site}/{year}/{name}*1" for site in "ab" for year in (2019, 2020) for name in CAT_DOG[0]),
            "name one, such as {root}/a/2019",
            id="sites with years",
        ),
        pytest.param("cat/images*1 cat/masks*1 dog/images*1 dog/masks*1", "images, masks", id="images and masks"),
        pytest.param("archive/cat*2 archive/dog*1", "name {root}/archive", id="a wrapper"),
        pytest.param("archive/cat*2 archive/dog*1 docs/a.txt", "name {root}/archive", id="a wrapper beside texts"),
        pytest.param("a/b/c/cat*2 a/b/c/dog*1", "name {root}/a/b/c", id="three wrappers"),
        pytest.param("pets/train/cat*2 pets/train/dog*1 pets/test/cat*1", "name {root}/pets", id="over parts"),
        pytest.param("pets/cat*2 pets/dog*1 __MACOSX/pets/cat*2", "name {root}/pets", id="as an archive of a Mac"),
        pytest.param("train/images/cat*2 train/images/dog*1 test/cat*1 test/dog*1", "disagree", id="in one part"),
        pytest.param(
            "train/images/cat*2 train/images/dog*1 test/images/cat*1", "name {root}/train/images", id="in both parts"
        ),
        pytest.param("test/cat*2 test/dog*1", "no part to train on: name one, such as {root}/test", id="test alone"),
        pytest.param("val/cat*2 test/dog*1", "no part to train on: name one, such as {root}/", id="val and test"),
        pytest.param("train/cat*2 Train/dog*1 test/cat*1", "two parts of one kind", id="train twice"),
        pytest.param("train*3 test*2", "test, train have no class folders", id="parts without classes"),
        pytest.param("Training*3 Testing*2 Validation*1", "have no class folders", id="three parts without classes"),
    ],
)
def test_read_layout_refuses_what_only_resembles_classes(tmp_path: Path, listed: str, said: str) -> None:
    root = write_folder(tmp_path / "root", listed)

    with pytest.raises(DataError) as caught:
        open_at(root)

    assert said.format(root=root) in str(caught.value)
    assert str(caught.value).startswith(f"data.source={str(root)!r}: ")
    # A server must not learn of the layout: a client that has joined has images of no class of the run at most.
    assert open_at(root, joined=True, classes="x,y").entries.classes == ("x", "y")


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("train/cat*1 train/dog*1 test/cat*1", "dog in train/ alone"),
        ("train/cat*1 train/dog*1 test/cat*1 test/dog*1 test/emu*1", "emu in test/ alone"),
        ("train/cat*1 train/dog*1 test/Cat*1 test/dog*1", "cat (nearest: Cat) in train/ alone; Cat (nearest: cat)"),
        ("train/cat*1 train/dog*1 test/cats*1 test/dogs*1", "dogs (nearest: dog) in test/ alone"),
        ("train/0*1 train/1*1 test/0.0*1 test/1*1", "0 (nearest: 0.0) in train/ alone"),
        ("Training/a*1 Training/b*1 Testing/c*1", "a, b in Training/ alone; c in Testing/ alone"),
    ],
)
def test_read_layout_refuses_parts_that_disagree(tmp_path: Path, listed: str, said: str) -> None:
    with pytest.raises(DataError) as caught:
        open_at(write_folder(tmp_path, listed))

    assert said in str(caught.value)


def test_read_layout_takes_an_empty_class_of_a_part_for_agreement(tmp_path: Path) -> None:
    write_folder(tmp_path, "train/cat*1 train/dog*1 test/cat*1 test/dog/")

    assert counts_of(open_at(tmp_path)) == ({"cat": 1, "dog": 1}, {"cat": 1})


@pytest.mark.parametrize(
    ("listed", "classes", "expected"),
    [
        (SITES, "site-a,site-b", ({"site-a": 3, "site-b": 2}, {})),
        ("train/cat*1 train/dog*1 test/cat*1", "cat,dog", ({"cat": 1, "dog": 1}, {"cat": 1})),
        ("cat/ward-1*1 cat/ward-2*1", "cat,dog", ({"cat": 2}, {})),
    ],
)
def test_a_class_list_settles_a_doubt(
    tmp_path: Path, listed: str, classes: str, expected: tuple[dict[str, int], dict[str, int]]
) -> None:
    root = write_folder(tmp_path, listed)
    with pytest.raises(DataError):
        open_at(root)

    assert counts_of(open_at(root, classes=classes)) == expected
    with pytest.raises(DataError):
        open_at(root, classes="x,y")


def test_reading_of_a_joined_client_follows_from_its_folders_alone(tmp_path: Path) -> None:
    root = write_folder(tmp_path, SITES)

    readings = [open_at(root, joined=True, classes=names).entries.num_train for names in ("", "cat,dog", "site-a,x")]

    assert readings == [5, 5, 5]
