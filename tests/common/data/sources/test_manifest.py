"""Manifests and saved data sets: which columns are read, and what is said when they are not there.

Drives `common.data.sources.datasets_library`, `common.data.sources.labels`.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn

from common.config.schema import RunConfig
from common.data.decoding import decode
from common.data.preprocessing import prepare
from common.data.scan import scan_source
from common.data.sources.base_source import Entries, ImageSource
from common.data.sources.registry import open_source
from common.errors import DataError
from common.system.progress import no_progress
from tests.support.data.hostile_files import encode, picture

Open = Callable[..., ImageSource]


@pytest.fixture(scope="module")
def open_file(make_config: Callable[..., RunConfig]) -> Open:
    """Open a source by path."""

    def opened(source: Path, path: Path | str = "", classes: str = "") -> ImageSource:
        settings = {"data.source": str(source), "data.path": str(path), "data.classes": classes}
        return open_source(make_config(settings).data)

    return opened


def _images(root: Path, count: int) -> None:
    (root / "scans").mkdir(parents=True)
    for number in range(count):
        (root / "scans" / f"{number}.png").write_bytes(encode(picture(0, seed=number)))


def _csv(root: Path, text: str) -> Path:
    (root / "all.csv").write_text(text, encoding="utf-8")
    return root / "all.csv"


def _seen(entries: Entries) -> list[int]:
    """Which picture each entry shows."""
    known = [np.asarray(picture(0, seed=number)) for number in range(8)]
    found = []
    for row in range(len(entries.labels)):
        shown = np.asarray(decode(entries.images[row]["image"]))
        found.append(next(number for number, pixels in enumerate(known) if np.array_equal(shown, pixels)))
    return found


def test_csv_gives_images_labels_units_clients_and_parts(open_file: Open, tmp_path: Path) -> None:
    _images(tmp_path, 4)
    file = _csv(
        tmp_path,
        "client,path,label,unit,split,notes\n"
        "north,scans/0.png,sick,p1,Test,x\n"
        "south,scans/1.png,well,,train,\n"
        ",scans/2.png,sick,p3,,\n"
        f"north,{tmp_path}/scans/3.png,well,p2,TRAIN,\n",
    )

    source = open_file(file)

    entries = source.entries
    assert (source.name, entries.classes, entries.num_train) == ("all", ("sick", "well"), 3)
    assert _seen(entries) == [1, 2, 3, 0]
    assert entries.labels.tolist() == [1, 0, 1, 0]
    assert (entries.units, entries.clients) == (("", "p3", "p2", "p1"), ("south", "", "north", "north"))
    assert entries.place(0) == "scans/1.png"


def test_csv_scan_knows_units_and_clients(open_file: Open, tmp_path: Path) -> None:
    _images(tmp_path, 3)
    file = _csv(tmp_path, "path,label,unit,client\nscans/0.png,a,p,west\nscans/1.png,b,,east\nscans/2.png,b,p,\n")

    scan = scan_source(open_file(file), progress=no_progress)

    assert scan.client_names == ("east", "west")
    assert scan.owners is not None
    assert scan.owners.tolist() == [1, 0, -1]
    units = scan.unit_digests
    assert units is not None
    assert units[0].tolist() == units[2].tolist() != scan.digests[0].tolist()
    assert units[1].tolist() == scan.digests[1].tolist()


def test_csv_row_whose_file_is_missing_is_a_fault_of_that_row(open_file: Open, tmp_path: Path) -> None:
    _images(tmp_path, 2)
    file = _csv(tmp_path, "path,label\nscans/0.png,a\nscans/gone.png,b\nscans/1.png,\n,b\nscans/1.png,b\n\0,a\n")

    scan = scan_source(open_file(file), progress=no_progress)

    assert scan.usable.tolist() == [True, False, False, False, True, False]
    assert [(fault.place, fault.reason) for fault in scan.faults] == [
        ("scans/gone.png", "no such file"),
        ("scans/1.png", "no label"),
        ("image number 3 of all.csv", "neither a file nor bytes"),
        ("\0", "no such file"),
    ]


def test_csv_paths_count_from_data_path_if_it_is_set(open_file: Open, tmp_path: Path) -> None:
    _images(tmp_path / "elsewhere", 2)
    file = _csv(tmp_path, "\ufeffpath,label\nscans/0.png,10\nscans/1.png,9\n")

    entries = open_file(file, tmp_path / "elsewhere").entries

    assert (entries.classes, entries.labels.tolist(), _seen(entries)) == (("9", "10"), [1, 0], [0, 1])


def test_csv_numbers_count_along_the_class_list(open_file: Open, tmp_path: Path) -> None:
    _images(tmp_path, 3)
    file = _csv(tmp_path, "path,label\nscans/0.png,2\nscans/1.png,0\nscans/2.png,7\n")

    assert open_file(file, classes="low,middle,high").entries.labels.tolist() == [2, 0, -1]


@pytest.mark.parametrize("change", ["manifest", "image"])
def test_csv_fingerprint_changes_with_the_table_and_with_each_image(
    open_file: Open, tmp_path: Path, change: str
) -> None:
    _images(tmp_path, 2)
    file = _csv(tmp_path, "path,label\nscans/0.png,a\nscans/1.png,b\n")
    before = open_file(file).fingerprint
    assert open_file(file).fingerprint == before

    os.utime(file if change == "manifest" else tmp_path / "scans" / "1.png", ns=(1, 1))

    assert open_file(file).fingerprint != before


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("where,label\nx,a\n", "lacks the column path"),
        ("path,kind\nx,a\n", "lacks the column label"),
        ("path,label\n", "has no rows"),
        ("", "lacks the column"),
        ("path,label,split\nx,a,fold1\n", "split holds fold1"),
        ("path,label,split\nx,a,test\n", "must be rows to train on"),
    ],
)
def test_csv_that_is_no_manifest_is_refused(open_file: Open, tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_file(_csv(tmp_path, text))


def test_csv_with_a_short_row_lacks_only_what_is_missing(open_file: Open, tmp_path: Path) -> None:
    _images(tmp_path, 2)

    entries = open_file(_csv(tmp_path, "path,label,unit\nscans/0.png,a\nscans/1.png,b,p\n")).entries

    assert entries.units == ("", "p")


def test_manifest_that_is_not_there_or_not_text_is_refused(open_file: Open, tmp_path: Path) -> None:
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00path")
    (tmp_path / "text.parquet").write_text("no parquet")

    for name, said in (("gone.csv", "no such file"), ("bytes.csv", "UTF-8"), ("text.parquet", "Parquet")):
        with pytest.raises(DataError, match=said):
            open_file(tmp_path / name)


@pytest.mark.parametrize("form", ["bytes", "image"])
def test_parquet_holds_images_as_bytes(open_file: Open, tmp_path: Path, form: str) -> None:
    content = [encode(picture(0, seed=number)) for number in range(3)]
    columns: dict[str, Any] = {"image": content, "label": [1.0, None, 0.0], "split": ["test", "train", "train"]}
    kind = Value("binary") if form == "bytes" else ImageColumn()
    features = Features({"image": kind, "label": Value("float64"), "split": Value("string")})
    if form == "image":
        columns["image"] = [{"bytes": item, "path": None} for item in content]
    Dataset.from_dict(columns, features=features).to_parquet(str(tmp_path / "all.parquet"))

    entries = open_file(tmp_path / "all.parquet").entries

    assert (entries.classes, entries.labels.tolist(), entries.num_train) == (("0", "1"), [-1, 0, 1], 2)
    assert _seen(entries) == [1, 2, 0]
    assert entries.place(2) == "image number 0 of the test rows of all.parquet"


def test_parquet_with_paths_is_read_like_csv(open_file: Open, tmp_path: Path) -> None:
    _images(tmp_path, 2)
    Dataset.from_dict({"path": ["scans/1.png", "scans/0.png"], "label": ["a", "b"], "unit": [7, 8]}).to_parquet(
        str(tmp_path / "all.parquet")
    )

    entries = open_file(tmp_path / "all.parquet").entries

    assert (_seen(entries), entries.units) == ([1, 0], ("7", "8"))
    assert entries.item_keys is not None


def test_parquet_without_images_is_refused(open_file: Open, tmp_path: Path) -> None:
    Dataset.from_dict({"label": ["a", "b"]}).to_parquet(str(tmp_path / "no.parquet"))
    Dataset.from_dict({"image": [1, 2], "label": ["a", "b"]}).to_parquet(str(tmp_path / "numbers.parquet"))

    with pytest.raises(DataError, match="lacks the column path or image"):
        open_file(tmp_path / "no.parquet")
    with pytest.raises(DataError, match="must hold encoded images"):
        _ = open_file(tmp_path / "numbers.parquet").entries


def _rows(numbers: range, *, label: Any = None, names: tuple[str, str] = ("photo", "kind")) -> Dataset:
    kind = ClassLabel(names=["cat", "dog"]) if label is None else label
    labels = [number % 2 if kind.dtype == "int64" else "ab"[number % 2] for number in numbers]
    images = [{"bytes": encode(picture(0, seed=number)), "path": None} for number in numbers]
    return Dataset.from_dict(
        dict(zip(names, (images, labels), strict=True)), features=Features({names[0]: ImageColumn(), names[1]: kind})
    )


def test_saved_parts_are_found_by_the_type_of_their_columns(open_file: Open, tmp_path: Path) -> None:
    DatasetDict({"train": _rows(range(3)), "test": _rows(range(3, 5))}).save_to_disk(str(tmp_path / "saved"))

    source = open_file(tmp_path / "saved")

    entries = source.entries
    assert (source.name, entries.classes, entries.num_train) == ("saved", ("cat", "dog"), 3)
    assert (entries.labels.tolist(), _seen(entries)) == ([0, 1, 0, 1, 0], [0, 1, 2, 3, 4])
    assert entries.place(3) == "image number 0 of the part test"


@pytest.mark.parametrize("label", [Value("int64"), Value("string")])
def test_saved_set_without_parts_takes_its_label_by_name(open_file: Open, tmp_path: Path, label: Any) -> None:
    _rows(range(4), label=label, names=("x", "label")).save_to_disk(str(tmp_path / "saved"))

    entries = open_file(tmp_path / "saved").entries

    assert (entries.num_train, entries.labels.tolist()) == (4, [0, 1, 0, 1])
    assert entries.classes == (("0", "1") if label.dtype == "int64" else ("a", "b"))


def test_saved_set_that_cannot_be_used_is_refused(open_file: Open, tmp_path: Path) -> None:
    _rows(range(2), label=Value("int64"), names=("x", "y")).save_to_disk(str(tmp_path / "unlabelled"))
    Dataset.from_dict({"label": [0, 1]}).save_to_disk(str(tmp_path / "blind"))
    DatasetDict({"a": _rows(range(2)), "b": _rows(range(2))}).save_to_disk(str(tmp_path / "parts"))
    _rows(range(2)).save_to_disk(str(tmp_path / "broken"))
    next((tmp_path / "broken").glob("*.arrow")).unlink()

    for name, said in (
        ("unlabelled", "needs a column of labels"),
        ("blind", "needs one column of images"),
        ("parts", "one must be called train"),
        ("broken", "not whole as datasets saved it"),
    ):
        with pytest.raises(DataError, match=said):
            _ = open_file(tmp_path / name).entries


def test_saved_set_changes_its_fingerprint_when_it_is_saved_anew(open_file: Open, tmp_path: Path) -> None:
    _rows(range(2)).save_to_disk(str(tmp_path / "saved"))
    before = open_file(tmp_path / "saved").fingerprint

    _rows(range(3)).save_to_disk(str(tmp_path / "saved"))

    assert open_file(tmp_path / "saved").fingerprint != before


@pytest.mark.parametrize(
    "content", ["path,label,unit,split\nscans/0.png,a,p,test\nscans/1.png,b,p,\n", "path,label\n0,a\n"]
)
def test_table_that_its_owner_must_put_right_is_read_by_a_client_that_has_joined(
    make_config: Callable[..., RunConfig], tmp_path: Path, content: str
) -> None:
    _images(tmp_path, 2)
    _images(tmp_path / "more", 2)
    settings = {"data.classes": "a,b", "data.image-size": 8, "model.backbone": "cnn", "privacy.mechanism": "none"}
    config = make_config({"data.source": str(_csv(tmp_path, content)), **settings})

    with pytest.raises(DataError, match=r"same unit has rows|may be any of"):
        prepare(config)
    # A refusal would tell the server what the table holds.
    assert prepare(config, shows_nothing=True).inputs.shape[1:] == (8, 8, 3)
