"""Numbered files of one set: which of them are missing, to which part they belong, and what is said of one alone."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features
from datasets import Image as ImageColumn

from common.config.schema import RunConfig
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source
from common.data.sources.tables.shards import missing_shards, parts_of_shards
from common.errors import DataError
from common.inference.inputs import name_images
from tests.support.data.folders import open_at, write_folder
from tests.support.data.hostile_files import encode, picture

pytestmark = pytest.mark.usefixtures("own_home")


def pets(rows: int = 4) -> Dataset:
    cells = [{"bytes": encode(picture(0, seed=number)), "path": None} for number in range(rows)]
    kinds = Features({"image": ImageColumn(), "label": ClassLabel(names=["cat", "dog"])})
    return Dataset.from_dict({"image": cells, "label": [number % 2 for number in range(rows)]}, features=kinds)


@pytest.mark.parametrize(
    ("names", "missing"),
    [
        ("train-00000-of-00003 train-00002-of-00003", "train-00001-of-00003"),
        ("train-00000-of-00003", "train-00001-of-00003 train-00002-of-00003"),
        ("train-00000-of-00002-a1b2c3 train-00001-of-00002-d4e5f6", ""),
        ("train-00000-of-00002-a1b2c3", "train-00001-of-00002-a1b2c3"),
        ("train-00000-of-00001 test-00001-of-00002", "test-00000-of-00002"),
        ("pets_1_of_3 pets_3_of_3", "pets_2_of_3"),
        ("pets_1_of_2 pets_2_of_2", ""),
        ("shard-0-of-2 Shard-1-of-2", ""),
        ("0000 0002", ""),
        ("out-of-focus-1 best-of-2019", ""),
        ("5-of-3", ""),
    ],
)
def test_missing_shards_are_those_that_the_numbers_of_the_others_promise(names: str, missing: str) -> None:
    files = [Path("set", f"{name}.parquet") for name in names.split()]

    assert [name.removesuffix(".parquet") for name in missing_shards(files)] == missing.split()


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ("train-00000-of-00001 validation-00000-of-00001", {"train": 1, "validation": 1}),
        ("Train-0 Dev-0 dev-1", {"Train": 1, "Dev": 2}),
        ("pets-train-0 pets-valid-0 pets-test-0", {"train": 1, "valid": 1, "test": 1}),
        ("data/a-training data/a-testing", {"training": 1, "testing": 1}),
        ("train/0000 validation/0000 validation/0001", {"train": 1, "validation": 2}),
        ("train-0 valid-0 val-0", {"train": 1, "valid": 2}),
        ("a-0 b-0", {"train": 2}),
    ],
)
def test_parts_of_shards_bear_the_users_own_words(names: str, parts: dict[str, int]) -> None:
    found = parts_of_shards(Path("set"), [Path("set", f"{name}.parquet") for name in names.split()])

    assert {name: len(files) for name, files in found.items()} == parts


@pytest.mark.parametrize("form", ["parquet", "saved"])
def test_a_set_that_lacks_a_shard_is_refused_with_its_name_and_read_by_a_joined_client(
    tmp_path: Path, form: str
) -> None:
    root = tmp_path / "set"
    if form == "saved":
        DatasetDict(train=pets()).save_to_disk(str(root), num_shards={"train": 3})
        gone = root / "train" / "data-00001-of-00003.arrow"
    else:
        root.mkdir()
        for number in range(3):
            pets(2).to_parquet(str(root / f"train-0000{number}-of-00003.parquet"))
        gone = root / "train-00001-of-00003.parquet"
    gone.unlink()

    with pytest.raises(DataError, match=re.escape(f"numbered files are missing (1): {gone.name}")) as refused:
        open_at(root)
    assert ("take -of- out of their names" in str(refused.value)) == (form == "parquet")
    # A server must not learn from a refusal which files a client has.
    assert open_at(root, joined=True).fault
    if form == "parquet":
        with pytest.raises(DataError, match="numbered files are missing"):
            name_images([str(root)], ())


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ("train/data-00000-of-00001.arrow train/state.json", "dataset_dict.json or state.json is missing"),
        ("data-00000-of-00002.arrow", "dataset_dict.json or state.json is missing"),
        ("dataset_info.json data-00000-of-00001.arrow", "dataset_dict.json or state.json is missing"),
    ],
)
def test_a_saved_set_that_was_copied_by_half_is_named_as_such(tmp_path: Path, listed: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_at(write_folder(tmp_path / "set", listed))


@pytest.mark.parametrize(
    ("beside", "said"),
    [
        (
            "train.csv val.csv test.csv",
            "test.csv, val.csv beside it (one table with a column split can hold all parts)",
        ),
        ("train.csv Test.csv", "Test.csv beside it"),
        ("train.csv train_extra.csv labels.csv", ""),
        ("train.csv test.txt", ""),
        ("train.csv train2.csv", ""),
    ],
)
def test_tables_of_other_parts_beside_one_are_said(
    make_config: Callable[..., RunConfig], tmp_path: Path, beside: str, said: str
) -> None:
    for name in ("a.png", *beside.split()):
        (tmp_path / name).write_text("path,label\na.png,cat\n")

    not_read = open_source(make_config({"data.source": str(tmp_path / "train.csv")}).data).not_read

    assert said in " ".join(not_read)
    assert bool(not_read) == bool(said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("train-00000-of-00003.parquet", "the 2 other files of the set that train-00000-of-00003.parquet is of (name"),
        ("labels-1-of-2.csv", "the other file of the set that labels-1-of-2.csv is of (join them into one table"),
        ("labels_2_of_4.tsv", "the 3 other files of the set"),
        ("train-00000-of-00001.parquet", ""),
        ("labels.csv", ""),
    ],
)
def test_a_shard_that_is_named_alone_is_read_and_the_others_are_said(
    make_config: Callable[..., RunConfig], tmp_path: Path, name: str, said: str
) -> None:
    if name.endswith(".parquet"):
        pets().to_parquet(str(tmp_path / name))
    else:
        separator = "\t" if name.endswith("tsv") else ","
        (tmp_path / "a.png").touch()
        (tmp_path / name).write_text(separator.join(("path", "label")) + f"\na.png{separator}cat\n")

    source: ImageSource = open_source(make_config({"data.source": str(tmp_path / name)}).data)

    assert len(source.entries.labels) == (4 if name.endswith(".parquet") else 1)
    assert said in " ".join(source.not_read)
    assert bool(source.not_read) == bool(said)
