"""Data sets of the `datasets` library in their three forms: parts, columns of labels and units, and what is refused.

Drives `common.data.sources.huggingface`, `common.data.sources.tables.parts`.
"""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from datasets import Image as ImageColumn

from common.config.schema import RunConfig
from common.data.folders.unread import HELD_OUT
from common.data.preprocessing import prepare
from common.data.scan import scan_source
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source
from common.errors import DataError
from common.system.progress import no_progress
from tests.support.data.hostile_files import encode, picture

pytestmark = pytest.mark.usefixtures("own_home")
Open = Callable[..., ImageSource]
PETS = ClassLabel(names=["cat", "dog"])
FORMS = ("saved", "shards", "hub")


@pytest.fixture(scope="module")
def cells() -> list[dict[str, Any]]:
    return [{"bytes": encode(picture(0, seed=number)), "path": None} for number in range(4)]


@pytest.fixture
def write(tmp_path: Path, cells: list[dict[str, Any]]) -> Callable[..., dict[str, str]]:
    """Write one data set in a form, and return the settings that name it."""

    def written(
        form: str, parts: Mapping[str, Mapping[str, Sequence[Any]]], kinds: Mapping[str, Any] | None = None
    ) -> dict[str, str]:
        kinds = kinds or {"label": PETS}
        features = Features({"img": ImageColumn(), **kinds})
        rows = {
            part: Dataset.from_dict({"img": cells[: len(next(iter(columns.values())))], **columns}, features=features)
            for part, columns in parts.items()
        }
        if form == "saved":
            DatasetDict(rows).save_to_disk(str(tmp_path / "set"))
        (tmp_path / "set").mkdir(exist_ok=True)
        for part, own in rows.items() if form != "saved" else ():
            own.to_parquet(str(tmp_path / "set" / f"{part}-00000-of-00001.parquet"))
        if form == "hub":
            # A folder that stands for the copy on the hub, so that no network is needed.
            return {"data.source": "hf:lab/pets", "data.path": str(tmp_path / "set")}
        return {"data.source": str(tmp_path / "set")}

    return written


@pytest.fixture
def opened(make_config: Callable[..., RunConfig]) -> Open:
    return lambda settings, **more: open_source(make_config({**settings, **more}).data)


def classes_of(source: ImageSource) -> list[str]:
    names = [*source.entries.classes, ""]
    return [names[label] for label in source.entries.labels]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("parts", "validation", "train", "test", "left_out"),
    [
        ("train validation", "drop", 1, 0, "validation"),
        ("train validation", "train", 3, 0, ""),
        ("train validation", "test", 1, 2, ""),
        ("train validation test", "drop", 1, 3, "validation"),
        ("train validation test", "train", 3, 3, ""),
        ("train validation test", "test", 1, 5, ""),
        ("train dev", "test", 1, 2, ""),
        ("train valid", "drop", 1, 0, "valid"),
        ("train unsupervised test", "test", 1, 3, "unsupervised"),
    ],
)
def test_a_validation_part_is_used_as_the_settings_say(
    write: Callable[..., dict[str, str]],
    opened: Open,
    form: str,
    parts: str,
    validation: str,
    train: int,
    test: int,
    left_out: str,
) -> None:
    sizes = {name: {"label": [0, 1, 0][: number + 1]} for number, name in enumerate(parts.split())}
    source = opened(write(form, sizes), **{"data.validation": validation})

    labels = source.entries.labels

    assert (source.entries.num_train, len(labels) - source.entries.num_train) == (train, test)
    use = "" if left_out == "unsupervised" else " (data.validation=train or test uses it)"
    # The library itself passes over a file on the hub whose part it does not know.
    said = left_out and not (form == "hub" and not use)
    assert bool(source.not_read) == bool(said)
    # A part has the user's own word, except where the library itself renames it.
    assert form == "hub" or all(line.startswith(f"the part {left_out}") for line in source.not_read)
    assert all(line.endswith(use) and (HELD_OUT in line) == bool(use and not test) for line in source.not_read)


@pytest.mark.parametrize("form", FORMS)
def test_another_use_of_a_part_is_another_fingerprint(
    write: Callable[..., dict[str, str]], opened: Open, form: str
) -> None:
    settings = write(form, {"train": {"label": [0, 1]}, "validation": {"label": [0]}})

    found = {opened(settings, **{"data.validation": use}).fingerprint for use in ("drop", "train", "test")}

    assert len(found) == 3


@pytest.mark.parametrize("form", [*FORMS, "table"])
@pytest.mark.parametrize(
    ("kinds", "used"),
    [
        ({"label": Value("string"), "species": PETS}, "label"),
        ({"species": PETS, "label": Value("int64")}, "label"),
        ({"labels": Value("string"), "species": PETS}, "species"),
        ({"coarse_label": PETS, "fine_label": PETS}, "fine_label"),
        ({"labels": Value("string"), "coarse_label": PETS, "fine_label": PETS}, "fine_label"),
        ({"a": PETS, "b": PETS, "labels": Value("int64")}, "labels"),
        ({"dx": Value("string"), "age": Value("int64")}, "dx"),
        ({"dx": Value("string"), "class": Value("string"), "label": PETS}, "label"),
    ],
)
def test_label_is_chosen_alike_in_sets_and_tables(
    write: Callable[..., dict[str, str]],
    opened: Open,
    tmp_path: Path,
    form: str,
    kinds: Mapping[str, Any],
    used: str,
) -> None:
    """Only the used column has its second row differ from the first."""
    columns = {
        name: ([0, 0] if kind is not None and kind.dtype == "int64" else ["x", "x"]) for name, kind in kinds.items()
    }
    columns[used] = [0, 1] if kinds[used].dtype == "int64" else ["x", "y"]
    settings = write("shards" if form == "table" else form, {"train": columns}, kinds)
    if form == "table":
        settings = {"data.source": str(tmp_path / "set" / "train-00000-of-00001.parquet")}

    first, second = classes_of(opened(settings))

    assert first != second


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("names", "used", "passed"),
    [
        (("subject_id", "patient_id"), "patient_id", "subject_id"),
        (("person", "patient"), "patient", "person"),
        (("patient", "subject_id"), "subject_id", "patient"),
        (("Patient ID", "participant_id"), "Patient ID", "participant_id"),
        (("unit", "patient_id"), "unit", "patient_id"),
        (("site_id", "hospital_id"), "site_id", "hospital_id"),
        (("clinic", "center"), "center", "clinic"),
    ],
)
def test_first_column_in_the_documented_order_is_the_unit_or_client_and_the_others_are_said(
    write: Callable[..., dict[str, str]], opened: Open, form: str, names: tuple[str, str], used: str, passed: str
) -> None:
    columns = {name: [f"{name} 1", f"{name} 2"] for name in names}
    kinds = {"label": PETS, **dict.fromkeys(names, Value("string"))}

    source = opened(write(form, {"train": {"label": [0, 1], **columns}}, kinds))

    role, found = next((role, found) for role in ("unit", "client") if (found := getattr(source.entries, f"{role}s")))
    assert found == (f"{used} 1", f"{used} 2")
    assert source.not_read == (f"the column {passed} ({used} is the {role})",)


@pytest.mark.parametrize(
    ("kind", "labels", "listed", "classes"),
    [
        (Value("string"), ["None", "q", "q"], "None,q", ["None", "q", "q"]),
        (Value("string"), ["None", "q", "q"], "", ["", "q", "q"]),
        (Value("string"), ["NA", "q", None], "NA,q", ["NA", "q", ""]),
        (Value("string"), ["-1", "1", "1"], "-1,1", ["-1", "1", "1"]),
        (Value("float64"), [0.0, 1.0, None], "", ["0", "1", ""]),
        (ClassLabel(names=["None", "q"]), [0, 1, -1], "", ["None", "q", ""]),
    ],
)
@pytest.mark.parametrize("form", FORMS)
def test_labels_that_the_class_list_holds_are_not_missing(
    write: Callable[..., dict[str, str]],
    opened: Open,
    form: str,
    kind: Any,
    labels: Sequence[Any],
    listed: str,
    classes: Sequence[str],
) -> None:
    source = opened(write(form, {"train": {"label": labels}}, {"label": kind}), **{"data.classes": listed})

    assert classes_of(source) == classes


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("train", "test", "both"),
    [(["p", "q"], ["q", "r"], "q"), (["p", "q"], ["q", "p"], "p, q"), (["p", ""], ["", "r"], ""), (["p"], ["q"], "")],
)
def test_unit_on_both_sides_is_refused_and_a_joined_client_reads_it(
    write: Callable[..., dict[str, str]],
    make_config: Callable[..., RunConfig],
    form: str,
    train: list[str],
    test: list[str],
    both: str,
) -> None:
    parts = {
        "train": {"label": [0, 1][: len(train)], "patient": train},
        "test": {"label": [0, 1][: len(test)], "patient": test},
    }
    run = {"data.classes": "cat,dog", "data.image-size": 8, "model.backbone": "cnn", "privacy.mechanism": "none"}
    config = make_config({**write(form, parts, {"label": PETS, "patient": Value("string")}), **run})

    # A refusal would tell the server what the set holds. What a joined client has scanned is refused all the same.
    joined = prepare(config, shows_nothing=True).scan
    assert joined.usable.sum() == len(train) + len(test)
    if both:
        said = rf"the same patient has rows in train and in test: {both} \("
        with pytest.raises(DataError, match=said):
            prepare(config)
        with pytest.raises(DataError, match=said):
            scan_source(open_source(config.data), progress=no_progress)
    else:
        assert not joined.fault


@pytest.mark.parametrize("form", ["saved", "shards"])
def test_parts_without_one_to_train_on_are_refused_and_give_a_joined_client_no_images(
    write: Callable[..., dict[str, str]], make_config: Callable[..., RunConfig], form: str
) -> None:
    settings = write(form, {"validation": {"label": [0, 1]}, "test": {"label": [0, 1]}})
    config = make_config({**settings, "data.classes": "cat,dog", "data.image-size": 8, "model.backbone": "cnn"})

    with pytest.raises(DataError, match="one must be called train"):
        open_source(config.data)
    assert len(prepare(config, shows_nothing=True).scan.labels) == 0


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("dataset_dict.json", '{"splits": null}'),
        ("dataset_dict.json", '{"splits": 3}'),
        ("dataset_dict.json", '{"splits": [1]}'),
        ("dataset_dict.json", "[]"),
        ("dataset_info.json", '{"features": 5}'),
        ("dataset_info.json", '{"features": null}'),
    ],
)
def test_damaged_facts_of_a_saved_set_give_a_joined_client_no_images(
    tmp_path: Path, make_config: Callable[..., RunConfig], file: str, content: str
) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "state.json").write_text("{}")
    (tmp_path / "set" / file).write_text(content)
    settings = {"data.source": str(tmp_path / "set"), "data.classes": "cat,dog", "data.image-size": 8}
    config = make_config({**settings, "model.backbone": "cnn"})

    with pytest.raises(DataError):
        _ = open_source(config.data).entries
    assert len(prepare(config, shows_nothing=True).scan.labels) == 0


def test_pointer_of_an_earlier_version_is_not_misread(
    write: Callable[..., dict[str, str]], opened: Open, own_home: Path
) -> None:
    """It is a list of files, as version 0.1.0 wrote it."""
    settings = write("hub", {"train": {"label": [0, 1]}, "validation": {"label": [0]}})
    key = hashlib.sha256(f"lab/pets\0\0{settings['data.path']}".encode()).hexdigest()[:16]
    old = own_home / "datasets" / "hf" / f"{key}.json"
    old.parent.mkdir(parents=True)
    old.write_text(json.dumps([__file__]))

    first, again = opened(settings), opened(settings)

    assert first.fingerprint == again.fingerprint
    assert (
        first.not_read == again.not_read == (f"the part validation{HELD_OUT} (data.validation=train or test uses it)",)
    )
