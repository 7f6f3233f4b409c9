"""How long a run would take on this machine, measured on a few images and made-up rows."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.schema import RunConfig
from common.data.client_dataset import ImageDigests, Shard
from common.data.decoding import BadImage, decode
from common.data.sources.base_source import Entries
from common.errors import DataError
from common.system.progress import no_progress

if TYPE_CHECKING:
    from PIL.Image import Image

_SAMPLE = 64


def input_shape(config: RunConfig, entries: Entries) -> tuple[int, ...]:
    """Shape of one row that clients would train on.

    Raises:
        DataError: None of the first images can be read, and the small network takes their size.
    """
    if config.model.backbone != "cnn":
        from common.models.backbone_info import backbone_info

        facts = backbone_info(config)
        if config.caches_features:
            return (facts.num_flattened if config.model.head == "mlp" else facts.num_features,)
        return (facts.image_size, facts.image_size, 3)
    images = [image for image, _ in zip(_readable(entries), range(8), strict=False)]
    if not images:
        raise DataError(f"none of the first {_SAMPLE} images can be read: `bract data inspect` says why")
    side = config.data.image_size or images[0].size[0]
    return (side, side, max(len(image.getbands()) for image in images))


def _readable(entries: Entries) -> Iterator["Image"]:
    for cell in entries.images[: min(_SAMPLE, len(entries.labels))]["image"]:
        try:
            yield decode(cell)
        except BadImage:
            continue


def backbone_seconds(config: RunConfig, entries: Entries) -> float:
    """Time of the first images through the frozen backbone, scaled up; 0 where no features are cached."""
    if not config.caches_features or config.model.backbone == "cnn":
        return 0.0
    from common.data.feature_extraction import FeatureExtractor, choose_device
    from common.models.backbone_info import backbone_info
    from common.models.classifier import feature_network
    from common.system.content_store import ContentStore

    facts, shape, images = backbone_info(config), input_shape(config, entries), list(_readable(entries))
    network, device = feature_network(config), choose_device(config.system.device)
    took = 0.0
    for _ in range(2):  # the first pass pays for warming up
        with tempfile.TemporaryDirectory() as folder:
            store = ContentStore(Path(folder) / "rows", shape, np.dtype(np.float32))
            started = time.perf_counter()
            with FeatureExtractor(
                network,
                store,
                side=facts.image_size,
                interpolation=facts.interpolation,
                device=device,
                progress=no_progress(0, ""),
            ) as extractor:
                for row, image in enumerate(images):
                    extractor.push(row, image, row.to_bytes(32, "big"))
            took = time.perf_counter() - started
    return round(took / max(1, len(images)) * len(entries.labels), 1)


def round_seconds(
    config: RunConfig, arrays: Arrays, shape: tuple[int, ...], classes: tuple[str, ...], size: int
) -> float:
    """Time of one client of middling size on made-up rows, times clients and rounds.

    A network is timed on one epoch over a few rows and scaled up.
    """
    rows, epochs = size, config.training.local_epochs
    if not config.needs_no_torch:
        rows, epochs = min(size, 256 if len(shape) == 1 or config.model.backbone == "cnn" else 32), 1
    training = config.training.model_copy(update={"local_epochs": epochs})
    trainer = Trainer(config.model_copy(update={"training": training}), shape, classes)
    shard = _made_up(config, shape, len(classes), rows)
    plan = trainer.config.plan(rows) if config.is_local_dp else None
    if not config.needs_no_torch:
        trainer.train(arrays, shard, name="dry-run", server_round=1, plan=plan)  # loads the network and warms up
    started = time.perf_counter()
    trainer.train(arrays, shard, name="dry-run", server_round=1, plan=plan)
    took = (time.perf_counter() - started) * size / rows * config.training.local_epochs / epochs
    return round(took * config.cohort_size * config.num_rounds, 1)


def _made_up(config: RunConfig, shape: tuple[int, ...], num_classes: int, rows: int) -> Shard:
    rng = np.random.default_rng(0)
    if config.caches_features and config.model.backbone != "cnn":
        inputs = rng.standard_normal((rows, *shape)).astype(np.float32)
    else:
        inputs = rng.integers(0, 255, (rows, *shape)).astype(np.uint8)
    labels = rng.integers(0, num_classes, rows)
    digests = rng.integers(0, 255, (rows, 32)).astype(np.uint8)
    none, units = np.zeros(0, dtype=np.int64), np.arange(rows)
    held = ImageDigests(digests, digests, units)
    return Shard(inputs, labels, inputs[:0], labels[:0], rows, digests, units, none, held, held)
