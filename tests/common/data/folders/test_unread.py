"""The line on what a folder holds and a source does not read.

Drives `common.data.folders.folder_tree`.
"""

import os
from contextlib import nullcontext
from pathlib import Path

import pytest

from common.data.folders.unread import HELD_OUT, TABLES
from common.data.sources.manifest import MANIFEST_SUFFIXES
from common.errors import DataError
from tests.support.data.folders import open_at, write_folder
from tests.support.ordinary_user import rights_given_up

PETS = "cat*2 dog*1 "
NAME_TABLES = " (a table is read if data.source names it)"


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        (PETS, ""),
        (PETS + "cat/.DS_Store .git/config", ""),
        (PETS + "loose.png", "Not read: 1 loose image outside the class folders (loose.png)"),
        (PETS + "a.png b.jpg c.jfif", "Not read: 3 loose images outside the class folders (a.png, b.jpg, c.jfif)"),
        (PETS + "emu/ frog/x/", "Not read: empty class folders: emu, frog"),
        (PETS + "emu/notes.txt", "Not read: files .txt 1; empty class folders: emu"),
        (
            PETS + "cat/a.txt dog/b.TXT labels.csv readme",
            "Not read: files .txt 2, .csv 1, without suffix 1" + NAME_TABLES,
        ),
        (PETS + "cat/a.xlsx b.parquet c.TSV", "Not read: files .parquet 1, .tsv 1, .xlsx 1" + NAME_TABLES),
        (
            PETS + "cat/a.heic",
            "Not read: files HEIC 1 (convert to JPEG or PNG, such as `heif-convert IN OUT.png`)",
        ),
        (
            PETS + "cat/a.DCM cat/b.dcm",
            "Not read: files DICOM 2 (convert to 16-bit PNG, such as `dcmj2pnm +on2 IN OUT.png`)",
        ),
        (PETS + "cat/a.nef", "Not read: files camera raw 1 (develop to TIFF, PNG or JPEG)"),
        (PETS + "cat/a.svs", "Not read: files whole slide 1 (cut into tiles of PNG or JPEG)"),
        (
            "train/cat*2 train/dog*1 val/cat*40 test/cat*1 test/dog*1",
            "Not read: val/, 40 images (data.validation=train or test uses them)",
        ),
        (
            "train/cat*2 train/dog*1 Dev/cat*1",
            f"Not read: Dev/, 1 image{HELD_OUT} (data.validation=train or test uses them)",
        ),
        ("train/cat*2 train/dog*1 test/cat*1 test/dog*1 extra*3", "Not read: extra/, 3 images"),
        (
            "train/cat*2 train/dog*1 train/x.png test/cat*1 test/dog/",
            "loose image outside the class folders",
        ),
        ("train/cat*2 train/dog*1 test/cat*1 test/dog/", "Not read: empty class folders: test/dog"),
        ("train/cat*2 train/dog*1 test*9", "Not read: test/, 9 images (it has no class folders)"),
        ("train/cat*2 train/dog*1 test/", "Not read: empty class folders: test"),
        (
            "cat/train*2 dog/train*1 dog/val*3",
            f"Not read: dog/val/, 3 images{HELD_OUT} (data.validation=train or test uses them)",
        ),
        (
            "cat/train*2 dog/train*1 dog/val*3 cat/val*1",
            f"Not read: cat/val/, dog/val/, 4 images{HELD_OUT} (data.validation=train or test uses them)",
        ),
        ("cat*2 dog*1 dog/more->dog", "Not read: links to a folder above: dog/more"),
        ("cat*2 dog*1 dog/up->.", "Not read: links to a folder above: dog/up"),
    ],
)
def test_describe_unread_names_each_kind_once(tmp_path: Path, listed: str, said: str) -> None:
    lines = open_at(write_folder(tmp_path, listed)).remarks()

    assert len(lines) == (1 if said else 0)
    assert said in "".join(lines)
    if said.startswith("Not read"):
        assert lines == [said]


def test_tables_are_those_of_manifests() -> None:
    assert {*TABLES, ".txt"} == {*MANIFEST_SUFFIXES}


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("train*2 test*2 train/metadata.csv test/metadata.csv", ".csv"),
        ("train*2 val*1 labels.XLSX", ".xlsx"),
        ("a/cat*1 a/dog*1 b/cat*1 b/dog*1 index.tsv notes.txt all.parquet", ".parquet, .tsv"),
        ("archive/cat*1 archive/dog*1 archive/list.csv", ".csv"),
        ("train*2 test*2 notes.txt", ""),
    ],
)
def test_refusal_of_a_folder_names_the_tables_in_it(tmp_path: Path, listed: str, found: str) -> None:
    with pytest.raises(DataError) as caught:
        open_at(write_folder(tmp_path, listed))

    lines = str(caught.value).splitlines()
    assert (lines[-1] == f"  a table is read if data.source names it; found here: {found}") is bool(found), lines


def test_describe_unread_shortens_long_lists(tmp_path: Path) -> None:
    lines = open_at(write_folder(tmp_path, PETS + " ".join(f"empty{n:02d}/" for n in range(30)))).remarks()

    assert lines[0].endswith("empty07 and 22 more")


def test_a_folder_that_cannot_be_entered_is_refused_by_name(tmp_path: Path) -> None:
    root = write_folder(tmp_path, PETS)
    (root / "cat").chmod(0)
    try:
        with rights_given_up() if os.geteuid() == 0 else nullcontext():
            with pytest.raises(DataError, match=r"cannot be listed.*cat \(Permission denied\)"):
                open_at(root)
            assert open_at(root, joined=True).entries.num_train == 1
    finally:
        (root / "cat").chmod(0o700)


def test_a_folder_that_fails_to_list_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write_folder(tmp_path, PETS)
    scandir = os.scandir

    def fail(path: Path) -> object:
        if Path(path).name == "cat":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("common.data.folders.folder_tree.os.scandir", fail)

    with pytest.raises(DataError, match=r"cannot be listed.*cat \(Permission denied\)"):
        open_at(root)
    assert open_at(root, joined=True).entries.num_train == 1


@pytest.mark.parametrize("listed", ["", "cat/ dog/", "a.png b.png", "cat/notes.txt", "cat/a.heic", ".hidden/cat*2"])
def test_a_folder_without_images_is_refused_and_read_as_empty_by_a_joined_client(tmp_path: Path, listed: str) -> None:
    root = write_folder(tmp_path, listed)

    with pytest.raises(DataError, match="no images found"):
        open_at(root)
    assert len(open_at(root, joined=True, classes="x,y").entries.labels) == 0


def test_a_class_folder_is_refused_with_the_folder_above_it(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "pets", PETS)

    with pytest.raises(DataError, match=f"name the folder above: {root}$"):
        open_at(root / "cat")
