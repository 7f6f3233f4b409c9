"""The named sets, read from files in their true formats.

Drives `common.data.sources.class_names`.
"""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, Value
from datasets import Image as ImageColumn
from PIL import Image
from sklearn.datasets import load_digits

from common.config.loading import defaults, parse
from common.data.sources.class_names import CIFAR10_CLASSES, CIFAR100_CLASSES, FASHION_CLASSES
from common.data.sources.registry import open_source
from common.errors import DataError
from tests.support.data.sources import Open, num_test, pixels_of


def _idx(file: Path, array: np.ndarray, *, drop: int = 0) -> None:
    header = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    raw = header + array.astype(np.uint8).tobytes()
    raw = raw[: len(raw) - drop]
    file.write_bytes(gzip.compress(raw) if file.suffix == ".gz" else raw)


def _fashion(folder: Path, end: str = ".gz") -> tuple[np.ndarray, np.ndarray]:
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    images, labels = rng.integers(256, size=(9, 28, 28)), rng.integers(10, size=9)
    for part, rows in (("train", slice(0, 6)), ("t10k", slice(6, 9))):
        _idx(folder / f"{part}-images-idx3-ubyte{end}", images[rows])
        _idx(folder / f"{part}-labels-idx1-ubyte{end}", labels[rows])
    return images, labels


def _cifar(folder: Path, *, image_column: str = "img", label_column: str = "label") -> np.ndarray:
    folder.mkdir(exist_ok=True)
    pixels = np.random.default_rng(1).integers(256, size=(5, 32, 32, 3), dtype=np.uint8)
    features = Features({image_column: ImageColumn(), label_column: Value("int64")})
    for name, rows in (("train", range(3)), ("test", range(3, 5))):
        content = {image_column: [Image.fromarray(pixels[n]) for n in rows], label_column: list(rows)}
        Dataset.from_dict(content, features=features).to_parquet(str(folder / f"{name}.parquet"))
    return pixels


def test_fashion_mnist_reads_what_was_written(open_named: Open, tmp_path: Path) -> None:
    images, labels = _fashion(tmp_path)

    source = open_named("fashion-mnist", tmp_path)

    entries = source.entries
    assert (entries.num_train, num_test(source), entries.classes) == (6, 3, FASHION_CLASSES)
    assert entries.labels.tolist() == labels.tolist()
    assert np.array_equal(pixels_of(entries, 5), images[5])
    assert np.array_equal(pixels_of(entries, 6), images[6])
    assert entries.place(6) == "image number 0 of t10k-images-idx3-ubyte.gz"


def test_fashion_mnist_names_missing_files_and_where_it_looked(open_named: Open, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"missing train-images-idx3-ubyte.gz(.|\n)*{tmp_path}(.|\n)*apt-get install"):
        open_named("fashion-mnist", tmp_path)


def test_fashion_mnist_refuses_a_file_that_is_cut_short(open_named: Open, tmp_path: Path) -> None:
    images, _ = _fashion(tmp_path)
    _idx(tmp_path / "train-images-idx3-ubyte.gz", images[:6], drop=3)

    with pytest.raises(DataError, match="cut short: 4701 bytes of 4704"):
        open_named("fashion-mnist", tmp_path)


@pytest.mark.parametrize("kept", [0, 3, 7])
def test_fashion_mnist_refuses_a_file_that_is_cut_inside_its_header(
    open_named: Open, tmp_path: Path, kept: int
) -> None:
    _fashion(tmp_path)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x08\x03\0\0\0\x06"[:kept]))

    with pytest.raises(DataError, match="train-images"):
        open_named("fashion-mnist", tmp_path)


def test_fashion_mnist_refuses_a_file_of_another_kind(open_named: Open, tmp_path: Path) -> None:
    _fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(b"\0\0\x0d\x01" + bytes(20)))

    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte\.gz is not an IDX file of bytes"):
        open_named("fashion-mnist", tmp_path)


@pytest.mark.parametrize("fault", ["half-a-gzip", "no-gzip", "fewer-labels", "label-10"])
def test_fashion_mnist_refuses_files_that_are_broken_or_disagree(open_named: Open, tmp_path: Path, fault: str) -> None:
    _fashion(tmp_path)
    file = tmp_path / "train-labels-idx1-ubyte.gz"
    if fault == "half-a-gzip":
        file.write_bytes(file.read_bytes()[:-9])
    elif fault == "no-gzip":
        file.write_bytes(gzip.decompress(file.read_bytes()))
    else:
        _idx(file, np.arange(4) if fault == "fewer-labels" else np.arange(6) + 5)

    with pytest.raises(DataError, match="labels"):
        open_named("fashion-mnist", tmp_path)


def test_cifar10_reads_what_was_written(open_named: Open, tmp_path: Path) -> None:
    pixels = _cifar(tmp_path)

    source = open_named("cifar10", tmp_path)

    entries = source.entries
    assert (entries.num_train, num_test(source), entries.classes) == (3, 2, CIFAR10_CLASSES)
    assert entries.labels.tolist() == [0, 1, 2, 3, 4]
    assert np.array_equal(pixels_of(entries, 4), pixels[4])
    assert entries.place(4) == "image number 1 of test.parquet"


def test_cifar10_fingerprint_changes_when_a_file_changes(open_named: Open, tmp_path: Path) -> None:
    _cifar(tmp_path)
    before = open_named("cifar10", tmp_path).fingerprint

    os.utime(tmp_path / "test.parquet", ns=(1, 1))

    assert open_named("cifar10", tmp_path).fingerprint != before


@pytest.mark.parametrize("fault", ["other-columns", "no-parquet"])
def test_cifar10_refuses_files_of_another_kind(open_named: Open, tmp_path: Path, fault: str) -> None:
    _cifar(tmp_path, image_column="picture" if fault == "other-columns" else "img")
    if fault == "no-parquet":
        (tmp_path / "test.parquet").write_bytes(b"not parquet")

    with pytest.raises(DataError, match="need columns img and label"):
        open_named("cifar10", tmp_path)


def test_cifar10_names_missing_files(open_named: Open, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing train\.parquet, test\.parquet"):
        open_named("cifar10", tmp_path)


@pytest.mark.parametrize("end", [".gz", ""])
def test_mnist_reads_four_files_packed_or_not(open_named: Open, tmp_path: Path, end: str) -> None:
    images, labels = _fashion(tmp_path, end)

    entries = open_named("mnist", tmp_path).entries

    assert (entries.num_train, entries.classes) == (6, tuple("0123456789"))
    assert entries.labels.tolist() == labels.tolist()
    assert np.array_equal(pixels_of(entries, 8), images[8])


def test_cifar100_reads_fine_labels(open_named: Open, tmp_path: Path) -> None:
    pixels = _cifar(tmp_path, label_column="fine_label")

    entries = open_named("cifar100", tmp_path).entries

    assert entries.classes == CIFAR100_CLASSES
    assert (len(entries.classes), entries.labels.tolist()) == (100, [0, 1, 2, 3, 4])
    assert np.array_equal(pixels_of(entries, 0), pixels[0])


def test_digits_are_those_of_scikit_learn() -> None:
    bunch = load_digits()

    entries = open_source(parse(defaults()).data).entries

    assert np.array_equal(entries.labels, bunch.target)
    assert entries.classes == tuple(str(name) for name in bunch.target_names)
    assert np.array_equal(pixels_of(entries, 7), np.round(bunch.images[7] * (255 / 16)))
