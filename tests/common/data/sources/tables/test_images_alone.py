"""Tables that are read for their images alone, whatever their other columns are.

Drives `common.data.sources.manifest`.
"""

from collections.abc import Callable
from pathlib import Path

import openpyxl
import pyarrow as pa
import pytest
from pyarrow import parquet

from common.config.schema import RunConfig
from common.data.sources.base_source import ImageSource
from common.data.sources.manifest import read_column, read_images
from common.errors import DataError

OpenTable = Callable[..., ImageSource]


@pytest.mark.parametrize(
    "content",
    [
        "path,class,category\ns/1.png,a,b\ns/0.png,a,b\n",
        "path;patient_id;subject_id\ns/1.png;7;8\ns/0.png;7;8\n",
        "path,note,note\ns/1.png,7,8\ns/0.png,7,8\n",
        'path,label\ns/1.png,"a\nb"\ns/0.png,c\n',
        "path,\ns/1.png,a\ns/0.png,b\n",
    ],
)
@pytest.mark.parametrize("name", ["t.csv", ".csv"])
def test_images_are_read_beside_columns_that_leave_a_doubt(tmp_path: Path, content: str, name: str) -> None:
    (tmp_path / name).write_text(content)

    entries = read_images(tmp_path / name)

    assert [entries.place(row) for row in range(2)] == ["s/1.png", "s/0.png"]


def test_images_are_read_from_a_workbook_with_a_title_and_two_labels(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    for row in (["Images of 2026"], ["path", "class", "category"], ["s/1.png", "a", "b"]):
        book.active.append(row)
    book.save(tmp_path / "t.xlsx")

    assert read_images(tmp_path / "t.xlsx").place(0) == "s/1.png"


def test_images_are_read_from_a_parquet_table_with_two_labels(tmp_path: Path) -> None:
    columns = {"image": [b"x", b"y"], "class": ["a", "b"], "dx": [[0], [1]], "patient": [1, 2], "subject": [1, 2]}
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")

    assert [row["bytes"] for row in read_images(tmp_path / "t.parquet").images[:]["image"]] == [b"x", b"y"]


def test_images_of_two_columns_of_paths_stay_in_doubt(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("Path,PATH\ns/1.png,s/0.png\n")

    with pytest.raises(DataError, match="could each be the path"):
        read_images(tmp_path / "t.csv")


@pytest.mark.parametrize("name", [".csv", ".tsv"])
def test_table_called_by_its_suffix_alone_is_opened(open_table: OpenTable, name: str) -> None:
    source = open_table("path,label,\ns/0.png,a,1\ns/1.png,b,2\n", name)

    assert (source.entries.classes, source.name) == (("a", "b"), name)


def test_column_without_a_name_is_never_the_column_that_was_asked_for(
    open_table: OpenTable, make_config: Callable[..., RunConfig], tmp_path: Path
) -> None:
    open_table("path,label,\ns/0.png,a,1\ns/1.png,b,2\n")
    data = make_config({"data.source": str(tmp_path / "t.csv")}).data

    with pytest.raises(DataError, match="lacks the column"):
        read_column(data, "")
    assert read_column(data, "label") == ("a", "b")


def test_file_that_is_not_a_table_is_refused_with_the_kinds_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "t.json").touch()

    with pytest.raises(DataError, match=r"its name must end in \.csv"):
        read_images(tmp_path / "t.json")
