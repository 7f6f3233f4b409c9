"""Names of files in tables: the file that each stands for, or why none is taken."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from common.data.sources.base_source import ImageSource
from common.data.sources.tables.image_paths import find_files
from common.errors import DataError

OpenTable = Callable[..., ImageSource]
RowsOf = Callable[[ImageSource], list[tuple[str, str]]]

HAM = ("part_1/I0.jpg", "part_1/I1.jpg", "part_2/I2.jpg")
FLAT = ("0.png", "1.png")


@pytest.mark.parametrize(
    ("images", "written", "found"),
    [
        (FLAT, ["0.png", "./1.png"], ["0.png", "1.png"]),
        (("s/0.png",), [r"s\0.png"], ["s/0.png"]),
        (("s/0.png",), [r".\s\0.png"], ["s/0.png"]),
        (("a b/c/0.png",), [r"a b\c\0.png"], ["a b/c/0.png"]),
        (("s/0.PNG",), ["S/0.png"], ["s/0.PNG"]),
        (("s/Ä.png",), ["s/A\u0308.png"], ["s/Ä.png"]),
        (FLAT, ["0", "1"], ["0.png", "1.png"]),
        (("s/I.0.png",), ["s/I.0"], ["s/I.0.png"]),
        (HAM, ["I0", "I2", "I1"], ["part_1/I0.jpg", "part_2/I2.jpg", "part_1/I1.jpg"]),
        (HAM, ["I0.jpg", "part_2/I2"], ["part_1/I0.jpg", "part_2/I2.jpg"]),
        (("0.png", "old/0.png"), ["0"], ["0.png"]),
        (("0.png", "old/0.PNG"), ["old/0.png"], ["old/0.PNG"]),
        (("0.png", "0.txt"), ["0"], ["0.png"]),
        (("s/0.png", "s/1.png"), [r"C:\me\s\0.png", r"C:\me\s\1.png"], ["s/0.png", "s/1.png"]),
        (("s/0.png", "s/1.png"), ["C:/me/s/0.png", "c:/ME/s/1"], ["s/0.png", "s/1.png"]),
        (("0.png", "1.png"), [r"C:\me\s\0.png", r"C:\me\s\1.png"], ["0.png", "1.png"]),
        (("s/0.png",), [r"\\server\share\s\0.png"], ["s/0.png"]),
        (("s/0.png",), ["/home/me/data/s/0.png"], ["s/0.png"]),
        (("s/0.png",), ["/s/0.png"], ["s/0.png"]),
        (("a/0.png", "b/0.png"), ["/x/a/0.png", "/x/b/0.png"], ["a/0.png", "b/0.png"]),
        # Nothing fits: the name is kept, and the row is bad.
        (("s/0.png",), ["x/0.png", "s/gone.png"], ["x/0.png", "s/gone.png"]),
        (("s/0.png",), ["s/0.jpg", "s"], ["s/0.jpg", "s"]),
        (("s/.0.png",), ["0.png"], ["0.png"]),
        # One start for all absolute paths: row by row, the last one would end at the file of another image.
        (("0.png", "1.png", "s/2.png"), ["/x/0.png", "/x/1.png", "/y/s/2.png"], ["0.png", "1.png", "/y/s/2.png"]),
    ],
)
def test_name_in_a_table_stands_for_the_file_that_fits(
    open_table: OpenTable, rows_of: RowsOf, images: Sequence[str], written: Sequence[str], found: Sequence[str]
) -> None:
    source = open_table("path,label\n" + "".join(f"{name},a\n" for name in written), images=images)

    assert [file for file, _ in rows_of(source)] == list(found)


@pytest.mark.parametrize(
    ("images", "written", "shown"),
    [
        (("a/0.png", "b/0.png"), "0", "a/0.png, b/0.png"),
        (("0.jpg", "0.png"), "0", "0.jpg, 0.png"),
        (("A.png", "a.png"), "A", "A.png, a.png"),
        (("a/s/0.png", "b/s/0.png"), r"s\0.png", "a/s/0.png, b/s/0.png"),
        (("s/A.PNG", "s/a.png"), "s/A.png", "s/A.PNG, s/a.png"),
    ],
)
def test_name_that_fits_several_files_is_refused(
    open_table: OpenTable, images: Sequence[str], written: str, shown: str
) -> None:
    with pytest.raises(DataError) as caught:
        open_table(f"path,label\n{written},a\n", images=images)

    assert f"{written} may be any of 2 files ({shown})" in str(caught.value)


def test_start_that_is_left_out_is_said(open_table: OpenTable) -> None:
    source = open_table("path,label\nC:\\Users\\Me\\s\\0.png,a\nC:\\Users\\Me\\s\\1.png,b\n")

    assert source.notes[1].startswith("paths below C:/Users/Me are read from ")


@pytest.mark.parametrize(
    ("images", "written", "found"),
    [
        # The table names the folder that it lies in, as that of CheXpert does.
        ("train/p1/a.jpg train/p2/a.jpg", "set/train/p1/a.jpg set/train/p2/a.jpg", "train/p1/a.jpg train/p2/a.jpg"),
        ("train/a.jpg", "my/big/set/train/a.jpg", "train/a.jpg"),
        ("train/a.jpg b.jpg", "set/train/a.jpg b.jpg", "train/a.jpg b.jpg"),
        ("train/a.jpg", "https://example.org/train/a.jpg", "train/a.jpg"),
        ("train/a.jpg", "SET\\Train\\A.JPG", "train/a.jpg"),
        # A start of its own for each path would lead to a file that another one means.
        ("a.jpg x/b.jpg", "one/a.jpg two/x/b.jpg", "a.jpg two/x/b.jpg"),
        # A folder that was not copied: its paths must not lead to the files of others.
        ("c/1.jpg d/2.jpg", "c/1.jpg d/2.jpg more/c/1.jpg more/d/2.jpg", "c/1.jpg d/2.jpg more/c/1.jpg more/d/2.jpg"),
        ("c/1.jpg", "C\\1.jpg more/c/1.jpg", "c/1.jpg more/c/1.jpg"),
    ],
)
def test_a_relative_path_from_a_folder_above_is_found(tmp_path: Path, images: str, written: str, found: str) -> None:
    for image in images.split():
        (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / image).touch()

    files = find_files(written.split(), tmp_path).files

    assert [str(file.relative_to(tmp_path)) for file in files if file is not None] == found.split()


@pytest.mark.parametrize(
    ("image", "written", "said"),
    [
        (
            "media/upload/3/a.jpg",
            "/data/upload/3/a.jpg",
            "name the folder from which the paths lead, such as .*/media$",
        ),
        ("x/y/a.jpg", "C:\\me\\y\\a.jpg", "such as .*/x$"),
        ("x/a.jpg", "/other/a.jpg", "such as .*/x$"),
        ("b.jpg", "https://example.org/a.jpg", "download the images"),
        ("b.jpg", "gs://bucket/a.jpg", "download the images"),
        ("a.jpg", "b.jpg", "name another folder with data.path"),
        ("a.jpg", "a.jpg", ""),
    ],
)
def test_advice_says_where_the_files_of_a_table_may_be(tmp_path: Path, image: str, written: str, said: str) -> None:
    (tmp_path / image).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / image).touch()

    advice = find_files([written], tmp_path).advice

    assert re.search(said, advice)
    assert bool(advice) == bool(said)
