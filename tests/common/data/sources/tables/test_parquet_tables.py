"""Parquet files of data frames and of the hub: which columns are read, and how a folder of them is divided."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from datasets import Image as ImageColumn
from pyarrow import parquet

from common.config.schema import RunConfig
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source
from common.errors import DataError
from tests.support.data.hostile_files import encode, picture

Open = Callable[[Path], ImageSource]
PETS = ClassLabel(names=["cat", "dog"])


@pytest.fixture
def opened(make_config: Callable[..., RunConfig]) -> Open:
    """Open a source by its path."""
    return lambda source: open_source(make_config({"data.source": str(source)}).data)


def _png(number: int) -> bytes:
    return encode(picture(0, seed=number))


def _hub(numbers: Sequence[int], image: str = "img", label: str = "label", kind: Any = PETS) -> Dataset:
    """Rows as `datasets` writes them for the hub."""
    columns = {image: [{"bytes": _png(n), "path": None} for n in numbers], label: [n % 2 for n in numbers]}
    return Dataset.from_dict(columns, features=Features({image: ImageColumn(), label: kind}))


def _classes(source: ImageSource) -> tuple[str, ...]:
    entries = source.entries
    return tuple(entries.classes[label] if label >= 0 else "" for label in entries.labels)


@pytest.mark.parametrize(
    ("image", "label", "kind", "classes"),
    [
        ("image", "label", PETS, ("cat", "dog", "cat")),
        ("img", "label", PETS, ("cat", "dog", "cat")),
        ("image", "labels", PETS, ("cat", "dog", "cat")),
        ("img", "fine_label", PETS, ("cat", "dog", "cat")),
        ("pic", "species", PETS, ("cat", "dog", "cat")),
        ("img", "labels", Value("int64"), ("0", "1", "0")),
        ("img", "target", Value("float64"), ("0", "1", "0")),
        ("photo", "class", Value("string"), ("0", "1", "0")),
    ],
)
def test_parquet_of_the_hub_is_read_by_the_types_of_its_columns(
    opened: Open, tmp_path: Path, image: str, label: str, kind: Any, classes: tuple[str, ...]
) -> None:
    _hub(range(3), image, label, kind).to_parquet(str(tmp_path / "t.parquet"))
    (tmp_path / "set").mkdir()
    _hub(range(3), image, label, kind).to_parquet(str(tmp_path / "set" / "train-00000-of-00001.parquet"))

    alone, in_folder = opened(tmp_path / "t.parquet"), opened(tmp_path / "set")

    assert _classes(alone) == _classes(in_folder) == classes
    for source in (alone, in_folder):
        assert [cell["bytes"] for cell in source.entries.images[:]["image"]] == [_png(n) for n in range(3)]


@pytest.mark.parametrize(
    ("columns", "classes", "units"),
    [
        ({"img": ["0", "1"], "labels": [0.0, None]}, ("0", ""), None),
        ({"image": ["0", "1"], "class": ["a", "None"]}, ("a", ""), None),
        ({"image": ["0", "1"], "label": ["a", "b"], "Patient ID": [7, None]}, ("a", "b"), ("7", "")),
        ({"image": ["0", "1"], "label": ["a", "b"], "path": ["x", "y"]}, ("a", "b"), None),
        ({"scan": ["0", "1"], "dx": ["a", "b"], "age": [1, 2]}, ("a", "b"), None),
    ],
)
def test_parquet_of_a_data_frame_is_read_by_names(
    opened: Open, tmp_path: Path, columns: Mapping[str, Any], classes: Sequence[str], units: Sequence[str] | None
) -> None:
    first = next(iter(columns))
    table = pa.table({**columns, first: pa.array([_png(0), _png(1)], type=pa.binary())})
    parquet.write_table(table, tmp_path / "T.PARQUET")

    source = opened(tmp_path / "T.PARQUET")

    assert (_classes(source), source.entries.units) == (classes, units)
    assert [cell["bytes"] for cell in source.entries.images[:]["image"]] == [_png(0), _png(1)]


def test_parquet_with_paths_leaves_other_bytes_alone(opened: Open, tmp_path: Path) -> None:
    table = pa.table({"filename": ["0.png", "1.png"], "class": pa.array(["a", "b"]).dictionary_encode()})
    parquet.write_table(table.append_column("thumb", pa.array([b"x", b"y"])), tmp_path / "t.pq")

    source = opened(tmp_path / "t.pq")

    assert source.notes[0] == "columns of t.pq: path from filename, label from class; not used: thumb"
    assert source.entries.images[0]["image"] == {"bytes": None, "path": str(tmp_path / "0.png")}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"image": [1, 2], "label": [0, 1]}, "column image must hold encoded images as bytes"),
        ({"img": [b"x", b"y"], "labels": [[0], [1, 2]]}, "column labels holds list"),
        ({"img": [b"x", b"y"], "lable": [0, 1]}, "is lable the label"),
        ({"label": [0, 1], "age": [0, 1]}, "lacks the column path or image"),
        ({"image": [b"x", b"y"], "class": [0, 1], "dx": [0, 1]}, "class and dx could each be the label"),
    ],
)
def test_parquet_that_cannot_be_read_is_refused(
    opened: Open, tmp_path: Path, columns: Mapping[str, Any], said: str
) -> None:
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")

    with pytest.raises(DataError, match=said):
        opened(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("files", "num_train", "num_test"),
    [
        ({"data/train-00000-of-00002": 3, "data/train-00001-of-00002": 2, "data/test-00000-of-00001": 1}, 5, 1),
        ({"train-00000-of-00001": 3, "validation-00000-of-00001": 2}, 3, 0),
        ({"pets-train": 3, "pets-test": 2}, 3, 2),
        ({"train": 3, "test": 2, "validation": 1}, 3, 2),
        ({"TRAIN/a": 3, "dev/a": 2, "Test/a": 1}, 3, 1),
        ({"train/0000": 2, "train/0001": 1, "test/0000": 2}, 3, 2),
        ({"part-0": 2, "part-1": 3}, 5, 0),
        ({"0000": 2, "0001": 3}, 5, 0),
        ({"Training-0": 2, "Testing-0": 3}, 2, 3),
        ({"train-0": 2, "unsupervised-0": 3}, 2, 0),
    ],
)
def test_folder_of_shards_is_one_set_divided_by_the_names_of_its_files(
    opened: Open, tmp_path: Path, files: Mapping[str, int], num_train: int, num_test: int
) -> None:
    for name, count in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        _hub(range(count)).to_parquet(str(tmp_path / f"{name}.parquet"))
    (tmp_path / "README.md").write_text("about the set")

    entries = opened(tmp_path).entries

    assert (entries.num_train, len(entries.labels) - entries.num_train) == (num_train, num_test)
    assert entries.classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("parts", "table"),
    [(("",), ""), (("train/", "test/"), ""), (("train/", "test/"), "train/"), (("train/", "test/"), "test/")],
)
def test_folder_of_images_stays_one_beside_a_table(
    opened: Open, tmp_path: Path, parts: Sequence[str], table: str
) -> None:
    files = [f"{part}{name}" for part in parts for name in ("cat/0.png", "dog/1.png")]
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(_png(0))
    _hub(range(3)).to_parquet(str(tmp_path / table / "features.parquet"))

    entries = opened(tmp_path).entries

    assert sorted(entries.place(row) for row in range(len(entries.labels))) == sorted(files)


def test_shards_that_do_not_fit_are_refused_by_name(opened: Open, tmp_path: Path) -> None:
    _hub(range(2)).to_parquet(str(tmp_path / "train-0.parquet"))
    _hub(range(2), "image").to_parquet(str(tmp_path / "train-1.parquet"))

    with pytest.raises(DataError, match=r"train-1\.parquet has other columns than train-0\.parquet"):
        _ = opened(tmp_path).entries
    (tmp_path / "train-1.parquet").write_text("cut short")
    with pytest.raises(DataError, match=r"train-1\.parquet is not a Parquet file"):
        _ = opened(tmp_path).entries


def test_shards_change_their_fingerprint_with_each_file(opened: Open, tmp_path: Path) -> None:
    _hub(range(2)).to_parquet(str(tmp_path / "train-0.parquet"))
    before = opened(tmp_path).fingerprint

    _hub(range(2)).to_parquet(str(tmp_path / "train-1.parquet"))

    assert opened(tmp_path).fingerprint != before
