"""Estimates of a run's time on this machine, from short measurements."""

import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from client.training.class_weights import label_counts_of
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.data.client_dataset import Shard
from common.data.decoding import BadImage, decode
from common.data.feature_extraction import FeatureExtractor, choose_device
from common.data.image_digests import ImageDigests
from common.data.sources.base_source import Entries
from common.errors import DataError
from common.system.progress import no_progress
from common.system.threads import num_cores, pin_to_one_thread
from simulations.engines.in_process import LEAST_WORK

if TYPE_CHECKING:
    from PIL.Image import Image

    from common.models.backbone_info import BackboneInfo
    from common.models.classifier import Network

_SAMPLE = 64


def input_shape(
    entries: Entries, backbone: "BackboneInfo | None", *, image_size: int | None, head: str | None
) -> tuple[int, ...]:
    """Return the shape of one training example, (features,) or (side, side, channels).

    Args:
        entries: Images of the source.
        backbone: Facts about the run's backbone; None for the small CNN.
        image_size: Configured side for the small CNN, in pixels; None takes the images' own.
        head: Kind of head on cached features; None if the run trains on pixels.

    Raises:
        DataError: The small CNN needs the images' size, and none of the first images can be read.
    """
    if backbone is not None:
        if head is not None:
            return (backbone.num_flattened if head == "mlp" else backbone.num_features,)
        return (backbone.image_size, backbone.image_size, 3)
    images = [image for image, _ in zip(_readable(entries), range(8), strict=False)]
    if not images:
        raise DataError(f"none of the first {_SAMPLE} images can be read; `bract data inspect` lists the reasons")
    side = image_size or images[0].size[0]
    return (side, side, max(len(image.getbands()) for image in images))


def _readable(entries: Entries) -> Iterator["Image"]:
    for cell in entries.images[: min(_SAMPLE, len(entries.labels))]["image"]:
        try:
            yield decode(cell)
        except BadImage:
            continue


def backbone_seconds(
    network: "Network", backbone: "BackboneInfo", entries: Entries, *, shape: tuple[int, ...], device: str
) -> float:
    """Estimate the seconds that all images take through a frozen backbone.

    Args:
        network: The backbone with its scaling of features.
        backbone: Facts about it.
        entries: Images of the source; the first ones are measured.
        shape: Shape of one image's features.
        device: The setting `system.device`.
    """
    from common.models.engines.acceleration import accelerated
    from common.system.content_store import ContentStore

    images = list(_readable(entries))
    device = choose_device(device)
    fast, dtype = accelerated(network, device)
    seconds = 0.0
    # The first pass includes warming up, so only the second one counts.
    for _ in range(2):
        with tempfile.TemporaryDirectory() as folder:
            store = ContentStore(Path(folder) / "rows", shape, np.dtype(np.float32))
            started = time.perf_counter()
            with FeatureExtractor(
                fast,
                store,
                side=backbone.image_size,
                interpolation=backbone.interpolation,
                device=device,
                progress=no_progress(0, ""),
                dtype=dtype,
            ) as extractor:
                for row, image in enumerate(images):
                    extractor.push(image, row.to_bytes(32, "big"))
            seconds = time.perf_counter() - started
    return round(seconds / max(1, len(images)) * len(entries.labels), 1)


def round_seconds(trainer: Trainer, arrays: Arrays, size: int) -> float:
    """Estimate the seconds that all rounds take, from one client on random examples.

    A network is timed on one epoch over a few examples.

    Args:
        trainer: Of the run.
        arrays: The initial model.
        size: Number of examples of a middling client.
    """
    config = trainer.config
    rows, epochs = size, config.local_epochs
    if not config.needs_no_torch:
        rows, epochs = min(size, 256 if len(trainer.input_shape) == 1 or config.model.backbone == "cnn" else 32), 1
    training = config.training.model_copy(update={"local_epochs": epochs})
    short = Trainer(config.model_copy(update={"training": training}), trainer.input_shape, trainer.classes)
    shard = random_shard(trainer.input_shape, len(trainer.classes), rows)
    plan = short.config.plan(rows) if config.mechanism.clips_units else None
    counts = label_counts_of(shard, len(trainer.classes), plan)
    train: Callable[[], object]
    if plan is not None and plan.noise_shares:
        train = partial(
            short.gradient_sum, arrays, shard, name="dry-run", server_round=1, plan=plan, label_counts=counts
        )
    else:
        train = partial(short.train, arrays, shard, name="dry-run", server_round=1, plan=plan, label_counts=counts)
    # As each client does.
    pin_to_one_thread()
    # Loading a network and warming up would be measured otherwise, and norms that are taken once.
    train()
    started = time.perf_counter()
    train()
    seconds = (time.perf_counter() - started) * size / rows * config.local_epochs / epochs
    # A client with a network on a graphics card has the card to itself.
    on_cpu = config.needs_no_torch or choose_device(config.system.device) == "cpu"
    workers = num_cores() if on_cpu and seconds >= LEAST_WORK else 1
    return round(seconds * -(-config.cohort_size // workers) * config.num_rounds, 1)


def random_shard(shape: tuple[int, ...], num_classes: int, rows: int) -> Shard:
    """Return made-up training examples of a client, each a unit of its own."""
    rng = np.random.default_rng(0)
    if len(shape) == 1:
        inputs = rng.standard_normal((rows, *shape)).astype(np.float32)
    else:
        inputs = rng.integers(0, 255, (rows, *shape)).astype(np.uint8)
    labels = rng.integers(0, num_classes, rows)
    digests = rng.integers(0, 255, (rows, 32)).astype(np.uint8)
    none, units = np.zeros(0, dtype=np.int64), np.arange(rows)
    held = ImageDigests(digests, digests, units)
    return Shard(inputs, labels, inputs[:0], labels[:0], rows, digests, units, none, held, held)
