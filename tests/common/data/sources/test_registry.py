"""Sources of images: what is found, in which order, and what is said when it is not.

Drives `common.data.sources.base_source`, `common.data.sources.image_folder`.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.data.sources.registry import KNOWN_SOURCES, describe_sources, names_a_place
from common.errors import DataError
from tests.support.data.sources import Open, num_test, pixels_of, shades_of, two_classes, write_png


def test_digits_are_those_of_scikit_learn(open_named: Open) -> None:
    source = open_named("digits")

    entries = source.entries
    assert (entries.num_train, num_test(source), entries.classes) == (1797, 0, tuple("0123456789"))
    assert entries.labels[:10].tolist() == list(range(10))
    assert pixels_of(entries, 0).max() == 239  # 15 of 16 shades, scaled to 255
    assert entries.place(17) == "image number 17 of digits"


def test_digits_refuse_a_path(open_named: Open) -> None:
    with pytest.raises(DataError, match=r"data\.path does not go with"):
        open_named("digits", "/somewhere")


@pytest.mark.parametrize(("name", "said"), [("digit", "neither a known source"), ("/none/here", "no such folder")])
def test_open_source_refuses_a_name_it_does_not_know(open_named: Open, name: str, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        open_named(name)

    assert f"data.source={name!r}" in str(caught.value)


def test_folder_gives_classes_and_images_in_name_order(open_named: Open, tmp_path: Path) -> None:
    source = open_named(two_classes(tmp_path / "pets"))

    assert (source.name, source.entries.classes, num_test(source)) == ("pets", ("cat", "dog"), 0)
    assert source.entries.labels.tolist() == [0, 0, 1]
    assert [source.entries.place(row) for row in range(3)] == ["cat/1.png", "cat/2.png", "dog/1.png"]
    assert shades_of(source) == [1, 2, 3]


def test_folder_finds_nested_images_and_leaves_hidden_folders_and_other_files(open_named: Open, tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    write_png(root / "dog" / "big" / "brown" / "9.PNG", 9)
    write_png(root / ".thumbnails" / "1.png")
    write_png(root / "loose.png")
    (root / "dog" / "notes.txt").write_text("not an image")
    (root / "empty").mkdir()

    source = open_named(root)

    assert source.entries.classes == ("cat", "dog")
    assert sorted(shades_of(source)) == [1, 2, 3, 9]


@pytest.mark.parametrize("name", ["cat/.thumbnails/1.png", "cat/._1.png"])
def test_folder_leaves_out_what_is_hidden_inside_a_class(open_named: Open, tmp_path: Path, name: str) -> None:
    root = two_classes(tmp_path)
    write_png(root / name)

    assert open_named(root).entries.num_train == 3


def test_folder_takes_train_and_test_apart_when_both_are_there(open_named: Open, tmp_path: Path) -> None:
    two_classes(tmp_path / "train")
    write_png(tmp_path / "test" / "dog" / "1.png", 7)
    write_png(tmp_path / "test" / "emu" / "1.png", 8)

    source = open_named(tmp_path, classes="cat,dog,emu")

    assert source.entries.classes == ("cat", "dog", "emu")
    assert (source.entries.num_train, num_test(source)) == (3, 2)
    assert source.entries.labels.tolist() == [0, 0, 1, 1, 2]
    assert source.entries.place(4) == "test/emu/1.png"


def test_folder_takes_train_for_a_class_when_there_is_no_test(open_named: Open, tmp_path: Path) -> None:
    write_png(tmp_path / "train" / "1.png")
    write_png(tmp_path / "plane" / "1.png")

    assert open_named(tmp_path).entries.classes == ("plane", "train")


def test_folder_without_images_is_refused(open_named: Open, tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    write_png(tmp_path / "loose.png")

    with pytest.raises(DataError, match="no images found"):
        open_named(tmp_path)


@pytest.mark.parametrize("change", ["add", "remove", "rewrite", "touch", "rename", "relabel"])
def test_folder_fingerprint_changes_when_files_change(open_named: Open, tmp_path: Path, change: str) -> None:
    root = two_classes(tmp_path)
    before = open_named(root).fingerprint
    assert open_named(root).fingerprint == before

    file = root / "cat" / "2.png"
    if change == "add":
        write_png(root / "cat" / "3.png")
    elif change == "remove":
        file.unlink()
    elif change == "rewrite":
        write_png(file, side=40)
    elif change == "touch":
        os.utime(file, ns=(1, 1))
    else:
        file.rename(root / ("cat" if change == "rename" else "dog") / "0.png")

    assert open_named(root).fingerprint != before


def test_folder_fingerprint_changes_when_a_link_moves_to_another_class(open_named: Open, tmp_path: Path) -> None:
    root = tmp_path / "linked"
    for n, name in enumerate(("cat/1.png", "cat/2.png", "dog/3.png")):
        write_png(tmp_path / "store" / f"{n}.png", n)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(tmp_path / "store" / f"{n}.png")
    before = open_named(root)
    assert before.entries.labels.tolist() == [0, 0, 1]

    (root / "cat" / "2.png").rename(root / "dog" / "2.png")

    assert open_named(root).entries.labels.tolist() == [0, 1, 1]
    assert open_named(root).fingerprint != before.fingerprint


def test_classes_fix_the_list_and_its_order(open_named: Open, tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    write_png(root / "emu" / "1.png")

    source = open_named(root, classes="yak, dog, cat")

    entries = source.entries
    assert entries.classes == ("yak", "dog", "cat")
    assert entries.labels.tolist() == [2, 2, 1, -1]
    assert entries.label_faults == {3: "unknown class 'emu': not in data.classes"}
    assert source.fingerprint != open_named(root).fingerprint != open_named(root, classes="cat,dog").fingerprint


@pytest.mark.parametrize("classes", ["cat", "cat,cat"])
def test_classes_must_be_two_different_names(open_named: Open, tmp_path: Path, classes: str) -> None:
    with pytest.raises(DataError, match="at least two different names"):
        open_named(two_classes(tmp_path), classes=classes)


def test_classes_name_the_numbers_of_a_source_without_names(open_named: Open) -> None:
    names = "zero,one,two,three,four,five,six,seven,eight"

    entries = open_named("digits", classes=names).entries

    assert entries.labels[:10].tolist() == [*range(9), -1]
    assert len(entries.label_faults) == 180  # the nines


def test_folder_reads_a_file_whose_name_is_not_utf8(open_named: Open, tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    os.rename(root / "cat" / "2.png", os.fsencode(root / "cat") + b"/\xff.png")

    source = open_named(root)

    assert sorted(shades_of(source)) == [1, 2, 3]
    assert source.entries.place(1) == "cat/?.png"


def test_folder_follows_linked_class_folders(open_named: Open, tmp_path: Path) -> None:
    two_classes(tmp_path / "store")
    (tmp_path / "pets").mkdir()
    for name in ("cat", "dog"):
        (tmp_path / "pets" / name).symlink_to(tmp_path / "store" / name)

    assert open_named(tmp_path / "pets").entries.labels.tolist() == [0, 0, 1]


def test_folder_item_keys_change_for_the_changed_file_alone(open_named: Open, tmp_path: Path) -> None:
    root = two_classes(tmp_path)
    before = open_named(root).entries.item_keys

    os.utime(root / "cat" / "2.png", ns=(1, 1))

    after = open_named(root).entries.item_keys
    assert before is not None
    assert (before == after).tolist() == [True, False, True]


def test_names_a_place_knows_paths_from_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()
    (tmp_path / "pets").mkdir()

    assert not any(names_a_place(name) for name in (*KNOWN_SOURCES, "hf:a/b", "medmnist:pathmnist", "nothing"))
    assert all(names_a_place(name) for name in ("pets", "a/b", "pets.csv", "pets.parquet"))


def test_describe_sources_names_every_known_source() -> None:
    assert set(KNOWN_SOURCES) <= {name for name, _ in describe_sources()}


@pytest.mark.parametrize("source", ["digits", "folder"])
def test_opening_a_source_imports_nothing_heavy(source: str, tmp_path: Path) -> None:
    named = str(two_classes(tmp_path)) if source == "folder" else source
    program = (
        "import sys; from common.config.loading import defaults, override, parse;"
        "from common.data.sources.registry import open_source; import common.data.scan; "
        f"open_source(parse(override(defaults(), {{'data.source': {named!r}}})).data);"
        "print([m for m in ('PIL', 'datasets', 'pyarrow', 'sklearn', 'torch', 'pandas') if m in sys.modules])"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("pets.zip", "(archive): unpack it and name its folder"),
        ("pets.tar.gz", "(archive): unpack it"),
        ("pets.TAR", "(archive): unpack it"),
        ("pathmnist.npz", "(arrays): save each image as PNG"),
        ("scan.dcm", "(DICOM): convert to 16-bit PNG"),
        ("cat.jpg", "is one image: name the folder"),
        ("pets.json", "is a file of a kind that is not read: a table must end in .csv"),
    ],
)
def test_a_file_that_is_no_table_is_refused_with_the_remedy(
    open_named: Open, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / name).write_bytes(b"content")

    with pytest.raises(DataError, match=re.escape(said)):
        open_named(tmp_path / name)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("{root}/petz", "nearest: {root}/pets"),
        ("{root}/pets/catt", "nearest: {root}/pets/cat"),
        ("{root}/gone/pets", "{root} is there, and the rest of this path is not"),
        ("file://{root}/pets", "name the path alone"),
        ("s3://bucket/pets", "mount or download them"),
        ("~/no-such-pets", "~ is not replaced in quotes"),
        ("$HOME/pets", "variables are not replaced here"),
        ("%USERPROFILE%/pets", "variables are not replaced here"),
        ("petz", "(nearest: pets) is neither a known source"),
    ],
)
def test_a_place_that_is_not_there_is_refused_with_the_likely_one(
    open_named: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, said: str
) -> None:
    two_classes(tmp_path / "pets")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(DataError, match=re.escape(said.format(root=tmp_path))):
        open_named(source.format(root=tmp_path))
