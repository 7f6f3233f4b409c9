"""Sources that others publish, read from files in their true formats; no network.

Drives `common.data.sources.huggingface`, `common.data.sources.medmnist`.
"""

import hashlib
import pickle
import shutil
import struct
import sys
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageColumn

from common.config.schema import RunConfig
from common.data.decoding import decode
from common.data.sources import torchvision_sets as hubs
from common.data.sources.base_source import Entries, ImageSource
from common.data.sources.registry import open_source
from common.errors import DataError
from tests.support.data.hostile_files import encode, picture

Open = Callable[..., ImageSource]


@pytest.fixture(scope="module")
def open_named(make_config: Callable[..., RunConfig]) -> Open:
    """Open a source by name and path."""

    def opened(source: str, path: Path | str = "") -> ImageSource:
        return open_source(make_config({"data.source": source, "data.path": str(path)}).data)

    return opened


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every download fails at once."""

    def refuse(*_: Any, **__: Any) -> Any:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("time.sleep", lambda _: None)


@pytest.fixture
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Caches and the home folder of one test."""
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "bract"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _shown(entries: Entries, row: int) -> np.ndarray:
    return np.asarray(decode(entries.images[row]["image"]))


def _mnist_files(folder: Path, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    images = rng.integers(256, size=(7, 28, 28)).astype(np.uint8)
    labels = rng.integers(10, size=7).astype(np.uint8)
    for part, rows in (("train", slice(0, 5)), ("t10k", slice(5, 7))):
        for kind, array in (("images-idx3", images[rows]), ("labels-idx1", labels[rows])):
            header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    return images, labels


@pytest.mark.parametrize("name", ["MNIST", "KMNIST", "FashionMNIST"])
def test_torchvision_reads_raw_files_from_a_local_root(open_named: Open, tmp_path: Path, name: str) -> None:
    images, labels = _mnist_files(tmp_path / name / "raw")

    entries = open_named(f"torchvision:{name}", tmp_path).entries

    assert (entries.num_train, len(entries.classes)) == (5, 10)
    assert entries.labels.tolist() == labels.tolist()
    assert all(np.array_equal(_shown(entries, row), images[row]) for row in range(7))
    assert entries.place(6) == f"image number 1 of the test part of torchvision:{name}"


def test_torchvision_looks_below_the_cache_when_no_root_is_named(open_named: Open, own_home: Path) -> None:
    _mnist_files(hubs.torchvision_root("MNIST") / "MNIST" / "raw")

    assert open_named("torchvision:MNIST").entries.num_train == 5
    assert open_named("mnist").entries.num_train == 5


def test_torchvision_takes_the_variant_of_emnist(open_named: Open, tmp_path: Path) -> None:
    raw = tmp_path / "EMNIST" / "raw"
    _mnist_files(raw)
    for file in list(raw.iterdir()):
        file.rename(raw / file.name.replace("train", "emnist-digits-train").replace("t10k", "emnist-digits-test"))

    entries = open_named("torchvision:EMNIST:digits", tmp_path).entries

    assert (entries.num_train, entries.classes) == (5, tuple("0123456789"))


def test_torchvision_gives_files_where_the_set_has_files(open_named: Open, tmp_path: Path) -> None:
    root = tmp_path / "dtd" / "dtd"
    (root / "images" / "banded").mkdir(parents=True)
    (root / "images" / "woven").mkdir()
    (root / "labels").mkdir()
    for number, name in enumerate(("banded/0.jpg", "woven/1.jpg", "woven/2.jpg")):
        (root / "images" / name).write_bytes(encode(picture(0, seed=number), "JPEG"))
    (root / "labels" / "train1.txt").write_text("banded/0.jpg\nwoven/1.jpg\n")
    (root / "labels" / "test1.txt").write_text("woven/2.jpg\n")

    entries = open_named("torchvision:DTD", tmp_path).entries

    assert (entries.classes, entries.labels.tolist(), entries.num_train) == (("banded", "woven"), [0, 1, 1], 2)
    assert entries.images[2]["image"]["bytes"] is None
    assert _shown(entries, 2).shape == (20, 24, 3)
    assert entries.item_keys is not None
    assert entries.place(0) == "dtd/dtd/images/banded/0.jpg"


def test_torchvision_set_without_parts_is_all_for_training(open_named: Open, tmp_path: Path) -> None:
    for name in ("Forest", "River"):
        folder = tmp_path / "eurosat" / "2750" / name
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(encode(picture(0, seed=1), "JPEG"))

    entries = open_named("torchvision:EuroSAT", tmp_path).entries

    assert (entries.classes, entries.num_train, len(entries.labels)) == (("Forest", "River"), 2, 2)


def test_torchvision_reads_cifar100_as_it_is_packed(open_named: Open, own_home: Path, monkeypatch: Any) -> None:
    from torchvision.datasets import CIFAR100

    root = hubs.torchvision_root("CIFAR100")
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(256, size=(3, 3072), dtype=np.uint8)
    for name, rows in (("train", slice(0, 2)), ("test", slice(2, 3))):
        (folder / name).write_bytes(pickle.dumps({"data": pixels[rows], "fine_labels": [7, 99, 0][rows]}))
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{number}" for number in range(100)]}))
    monkeypatch.setattr(CIFAR100, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)

    entries = open_named("cifar100").entries

    assert (entries.labels.tolist(), entries.num_train, entries.classes[99]) == ([7, 99, 0], 2, "c99")
    assert np.array_equal(_shown(entries, 2), pixels[2].reshape(3, 32, 32).transpose(1, 2, 0))


@pytest.mark.usefixtures("no_network")
def test_torchvision_without_files_and_network_says_what_to_do(open_named: Open, own_home: Path) -> None:
    with pytest.raises(DataError, match=r"neither in .*MNIST nor can it be downloaded(.|\n)*data\.path"):
        open_named("torchvision:MNIST")
    # Its split "trainval" is unknown, which is no reason that a user could mend.
    with pytest.raises(DataError, match=r"neither in .*Flowers102 nor can it be downloaded\n  (?!Unknown value)"):
        open_named("torchvision:Flowers102")
    with pytest.raises(DataError, match=r"missing train-images(.|\n)*nor is there a copy as torchvision:MNIST"):
        open_named("mnist")


@pytest.mark.parametrize("name", ["", "NoSuchSet", "ImageFolder", "FakeData"])
def test_torchvision_refuses_what_is_none_of_its_sets(open_named: Open, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"has no data set|write a name after the colon"):
        open_named(f"torchvision:{name}", tmp_path)


def _npz(file: Path, **more: Any) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    content = {}
    for part, count in (("train", 4), ("val", 1), ("test", 2)):
        content[f"{part}_images"] = rng.integers(256, size=(count, 28, 28, 3)).astype(np.uint8)
        content[f"{part}_labels"] = rng.integers(9, size=(count, 1)).astype(np.uint8)
    content |= more
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **content)
    return content


@pytest.mark.parametrize("where", ["folder", "file", "home"])
def test_medmnist_reads_its_file_where_it_lies(open_named: Open, own_home: Path, where: str) -> None:
    folder = own_home / "home" / ".medmnist" if where == "home" else own_home / "data"
    content = _npz(folder / "pathmnist.npz")

    entries = open_named(
        "medmnist:pathmnist", {"folder": folder, "file": folder / "pathmnist.npz", "home": ""}[where]
    ).entries

    assert (entries.num_train, len(entries.labels), len(entries.classes)) == (4, 6, 9)
    assert (entries.classes[0], entries.classes[8]) == ("adipose", "colorectal adenocarcinoma epithelium")
    assert entries.labels.tolist() == [*content["train_labels"][:, 0], *content["test_labels"][:, 0]]
    assert np.array_equal(_shown(entries, 5), content["test_images"][1])


def test_medmnist_reads_larger_gray_images(open_named: Open, tmp_path: Path) -> None:
    images = {f"{part}_images": np.full((4, 64, 64), 9, np.uint8) for part in ("train",)}
    _npz(
        tmp_path / "octmnist_64.npz", **images, train_labels=np.array([[0], [1], [2], [3]]), test_labels=np.ones((2, 1))
    )

    entries = open_named("medmnist:octmnist_64", tmp_path).entries

    assert (_shown(entries, 0).shape, entries.classes[2:]) == ((64, 64), ("drusen", "normal"))


@pytest.mark.parametrize("name", ["chestmnist", "organmnist3d", "nothing"])
def test_medmnist_refuses_sets_it_cannot_use(open_named: Open, tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"write medmnist:<name>(.|\n)*several labels"):
        open_named(f"medmnist:{name}", tmp_path)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"train_labels": np.zeros((4, 14))}, "several labels an image"),
        ({"train_images": np.zeros((4, 28, 28, 28), np.uint8)}, "flat 8-bit images"),
        ({"train_images": np.zeros((3, 28, 28), np.uint8)}, "flat 8-bit images"),
    ],
)
def test_medmnist_refuses_a_file_of_another_kind(
    open_named: Open, tmp_path: Path, more: dict[str, Any], said: str
) -> None:
    _npz(tmp_path / "pathmnist.npz", **more)

    with pytest.raises(DataError, match=said):
        _ = open_named("medmnist:pathmnist", tmp_path).entries


def test_medmnist_refuses_a_damaged_file(open_named: Open, tmp_path: Path) -> None:
    _npz(tmp_path / "pathmnist.npz")
    whole = (tmp_path / "pathmnist.npz").read_bytes()
    (tmp_path / "pathmnist.npz").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(DataError, match="damaged or not a file of MedMNIST"):
        _ = open_named("medmnist:pathmnist", tmp_path).entries


def _publish_bloodmnist(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Let the package download a file of this machine."""
    from medmnist import INFO

    file = folder / "published" / "bloodmnist.npz"
    content = _npz(file, train_labels=np.zeros((4, 1)), test_labels=np.ones((2, 1)))
    monkeypatch.setitem(INFO["bloodmnist"], "url", file.as_uri())
    monkeypatch.setitem(INFO["bloodmnist"], "MD5", hashlib.md5(file.read_bytes(), usedforsecurity=False).hexdigest())
    # torchvision's own function, which the package downloads with, needs a server that tells the length.
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", lambda url, target: shutil.copyfile(file, target))
    return content


def test_medmnist_is_downloaded_once(open_named: Open, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = _publish_bloodmnist(own_home, monkeypatch)
    first = open_named("medmnist:bloodmnist")
    (own_home / "published" / "bloodmnist.npz").unlink()

    again = open_named("medmnist:bloodmnist")

    assert first.fingerprint == again.fingerprint
    assert np.array_equal(_shown(again.entries, 0), content["train_images"][0])
    assert sorted(file.name for file in (own_home / "bract" / "datasets" / "medmnist").iterdir()) == ["bloodmnist.npz"]


def test_medmnist_leaves_nothing_of_a_file_with_another_hash(
    open_named: Open, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _publish_bloodmnist(own_home, monkeypatch)
    (own_home / "published" / "bloodmnist.npz").write_bytes(b"half a download")

    with pytest.raises(DataError, match="cannot be downloaded"):
        open_named("medmnist:bloodmnist")

    assert not list((own_home / "bract" / "datasets" / "medmnist").iterdir())


@pytest.mark.usefixtures("no_network")
def test_medmnist_without_file_and_network_says_what_to_do(open_named: Open, own_home: Path) -> None:
    with pytest.raises(DataError, match=r"no pathmnist\.npz in (.|\n)*download https://(.|\n)*data\.path"):
        open_named("medmnist:pathmnist")

    assert not list((own_home / "bract" / "datasets" / "medmnist").iterdir())


def test_medmnist_names_the_extra_when_its_package_is_missing(
    open_named: Open, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "medmnist", None)
    _npz(own_home / "data" / "pathmnist.npz")
    remedy = r"pip install .*\[medmnist\]"

    with pytest.raises(DataError, match=remedy):
        open_named("medmnist:pathmnist")
    with pytest.raises(DataError, match=remedy):
        _ = open_named("medmnist:pathmnist", own_home / "data").entries


def _published(folder: Path, count: int = 4) -> None:
    """A folder as the hub lays one out: Parquet files named after their parts."""
    features = Features({"img": ImageColumn(), "label": ClassLabel(names=["cat", "dog"])})
    for part, numbers in (("train", range(count)), ("test", range(count, count + 2))):
        images = [picture(0, seed=number) for number in numbers]
        rows = {"img": images, "label": [number % 2 for number in numbers]}
        folder.mkdir(exist_ok=True)
        Dataset.from_dict(rows, features=features).to_parquet(str(folder / f"{part}-00000-of-00001.parquet"))


def test_hugging_face_reads_a_local_copy(open_named: Open, own_home: Path) -> None:
    _published(own_home / "pets")

    source = open_named("hf:someone/pets", own_home / "pets")

    entries = source.entries
    assert (entries.classes, entries.num_train, entries.labels.tolist()) == (("cat", "dog"), 4, [0, 1, 0, 1, 0, 1])
    assert np.array_equal(_shown(entries, 4), np.asarray(picture(0, seed=4)))
    assert open_named("hf:someone/pets", own_home / "pets").fingerprint == source.fingerprint


def test_hugging_face_reads_a_saved_copy(open_named: Open, own_home: Path) -> None:
    features = Features({"img": ImageColumn(), "label": ClassLabel(names=["cat", "dog"])})
    images = [{"bytes": encode(picture(0, seed=number)), "path": None} for number in range(2)]
    Dataset.from_dict({"img": images, "label": [1, 0]}, features=features).save_to_disk(str(own_home / "saved"))

    assert open_named("hf:someone/pets", own_home / "saved").entries.labels.tolist() == [1, 0]


def test_hugging_face_without_network_says_what_to_do(
    open_named: Open, own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ConnectionError("Couldn't reach 'someone/pets' on the Hub\nand more lines")

    monkeypatch.setattr("datasets.load_dataset", refuse)

    with pytest.raises(
        DataError, match=r"ConnectionError: Couldn't reach(.|\n)*save_to_disk(.|\n)*data\.source=/path"
    ) as caught:
        open_named("hf:someone/pets")

    assert "and more lines" not in str(caught.value)
