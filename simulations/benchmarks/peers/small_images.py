"""Small labelled images for benchmarks, as tables and as arrays."""

import io
from pathlib import Path

import numpy as np

from common.errors import ConfigError

_SIDE, _NUM_CLASSES = 32, 10
ADVICE = "--data takes a folder with train.parquet and test.parquet of CIFAR-10, with columns img and label"
# What is measured without --data.
MADE_UP = "Without --data the images are made up, so accuracies say little."


def write_images(folder: Path, *, data: str, num_train: int, num_test: int) -> None:
    """Write images of 32 pixels and ten classes, unless they are there.

    The folder gets `train.parquet` and `test.parquet` as `data.source=cifar10` reads them, and `images.npz` with the
    arrays train_x (n, 32, 32, 3) uint8, train_y (n,) int64, test_x and test_y.

    Args:
        folder: Where to write.
        data: Folder with CIFAR-10, or empty for made-up images.
        num_train: Number of training images.
        num_test: Number of test images.

    Raises:
        ConfigError: The folder of `data` has no such tables, or fewer images.
    """
    if (folder / "images.npz").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for part, number in (("train", num_train), ("test", num_test)):
        files, labels = _stored(Path(data) / f"{part}.parquet", number) if data else _made_up(part, number)
        _write_table(folder / f"{part}.parquet", files, labels)
        arrays |= {f"{part}_x": np.stack([_pixels(file) for file in files]), f"{part}_y": labels}
    np.savez(folder / "images.npz", **arrays)  # type: ignore[arg-type]


def _stored(file: Path, number: int) -> tuple[list[bytes], np.ndarray]:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(file, columns=["img", "label"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{file} cannot be read: {ADVICE}") from error
    if len(table) < number:
        raise ConfigError(f"{file} has {len(table)} images and {number} are needed")
    chosen = table.take(np.random.default_rng(0).permutation(len(table))[:number])
    files = [image["bytes"] for image in chosen["img"].to_pylist()]
    return files, np.array(chosen["label"].to_pylist(), dtype=np.int64)


def _made_up(part: str, number: int) -> tuple[list[bytes], np.ndarray]:
    from PIL import Image

    patterns = np.random.default_rng(0).integers(0, 256, (_NUM_CLASSES, 4, 4, 3), dtype=np.uint8)
    rng = np.random.default_rng([1, len(part)])
    labels = np.arange(number, dtype=np.int64) % _NUM_CLASSES
    files = []
    for label in labels:
        smooth = np.asarray(Image.fromarray(patterns[label]).resize((_SIDE, _SIDE)), np.int16)
        pixels = (smooth + rng.normal(0, 60, smooth.shape)).clip(0, 255).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        files.append(stream.getvalue())
    return files, labels


def _pixels(file: bytes) -> np.ndarray:
    from PIL import Image

    return np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))


def _write_table(file: Path, files: list[bytes], labels: np.ndarray) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array(
        [{"bytes": image, "path": ""} for image in files], pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    )
    pq.write_table(pa.table({"img": images, "label": pa.array(labels)}), file)
