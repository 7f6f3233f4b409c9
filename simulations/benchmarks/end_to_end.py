"""The benchmark of a whole private run, beside a plain Flower and Opacus app."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simulations.benchmarks.contract import Benchmark, Case, Figure, Options, Variant
from simulations.benchmarks.peers.small_images import MADE_UP
from simulations.benchmarks.simulated_run import run_simulation
from simulations.benchmarks.stopwatch import Stopwatch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

_HERE = "simulations.benchmarks.end_to_end"


def _cases(options: Options) -> list[Case]:
    sizes = {"num_clients": 10, "per_client": 200, "num_rounds": 30, "num_test": 1000, "batch": 50}
    if options.quick:
        sizes = {"num_clients": 2, "per_client": 20, "num_rounds": 2, "num_test": 20, "batch": 10}
    parameters = {**sizes, "data": options.data, "noise": 1.0, "bound": 0.1, "learning_rate": 8.0}
    name = f"{sizes['num_clients']} clients of {sizes['per_client']} images, {sizes['num_rounds']} rounds of one epoch"
    variants = (
        Variant("Bract", f"{_HERE}:run_bract", parameters),
        Variant("Flower and Opacus", "flower_opacus.py", parameters, ("ray",), install="'bract[ray]'"),
    )
    return [Case(name, variants, prepare=f"{_HERE}:prepare"), _whole_set(options)]


def _whole_set(options: Options) -> Case:
    """Return the case of a run by default on all of CIFAR-10."""
    sizes = {"num_clients": 10, "per_client": 5_000, "num_test": 10_000}
    if options.quick:
        sizes = {"num_clients": 2, "per_client": 20, "num_test": 20}
    parameters = {**sizes, "data": options.data, "folder": "whole-set"}
    variants = (
        Variant("Bract, the whole run", f"{_HERE}:run_whole_set", parameters),
        Variant("one pass through the backbone", f"{_HERE}:pass_of_whole_set", parameters),
    )
    total = sizes["num_clients"] * sizes["per_client"] + sizes["num_test"]
    return Case(f"{total:,} images, by default", variants, prepare=f"{_HERE}:prepare")


def prepare(
    *, data: str, num_clients: int, per_client: int, num_test: int, scratch: str, folder: str = "end-to-end"
) -> None:
    """Write the images, with the backbone's weights beside them.

    Args:
        data: Folder with CIFAR-10, or empty.
        num_clients: Number of clients.
        per_client: Training images of each.
        num_test: Test images of all.
        scratch: Parent of the folder.
        folder: Where to write.

    Raises:
        RuntimeError: The default backbone has no layers.
    """
    import torch

    from common.config.loading import defaults, parse
    from common.models.classifier import feature_network
    from simulations.benchmarks.peers.small_images import write_images

    place = Path(scratch) / folder
    write_images(place, data=data, num_train=num_clients * per_client, num_test=num_test)
    config = parse(defaults())
    body = feature_network(config.model, config.backbone_spec).body
    if body is None:
        raise RuntimeError("the default backbone has no layers")
    torch.save(body.model.state_dict(), place / "backbone.pt")


def run_bract(
    *,
    num_clients: int,
    num_rounds: int,
    batch: int,
    noise: float,
    bound: float,
    learning_rate: float,
    repeat: int,
    scratch: str,
) -> dict[str, float]:
    """Run a simulation with an empty cache of features.

    Args:
        num_clients: Number of clients.
        num_rounds: Number of rounds.
        batch: Expected images of a step.
        noise: Noise multiplier.
        bound: Clipping bound of an image's gradient.
        learning_rate: Learning rate.
        repeat: Seed.
        scratch: Folder of the images.
    """
    chosen = {
        "num-clients": num_clients,
        "num-rounds": num_rounds,
        "training.local-epochs": 1,
        "training.batch-size": batch,
        "training.learning-rate": learning_rate,
        "privacy.noise-multiplier": noise,
        "privacy.max-grad-norm": bound,
    }
    return _run("end-to-end", chosen, repeat, scratch)


def _run(folder: str, chosen: dict[str, Any], repeat: int, scratch: str) -> dict[str, float]:
    """Time a simulation with a home of its own."""
    import os

    os.environ["BRACT_HOME"] = str(Path(scratch) / f"bract-{folder}-{repeat}")
    images = {"data.source": "cifar10", "data.path": str(Path(scratch) / folder), "data.partitioner": "iid"}
    with Stopwatch() as watch:
        summary, run = run_simulation({"seed": repeat, **images, **chosen}, scratch)
    epsilon = json.loads((run / "privacy.json").read_text())["epsilon_max"]
    return {"job_seconds": watch.wall, "accuracy": summary["accuracy"], "epsilon": epsilon}


def run_whole_set(*, num_clients: int, folder: str, repeat: int, scratch: str) -> dict[str, float]:
    """Run a simulation by default with an empty cache of features.

    Args:
        num_clients: Number of clients.
        folder: Folder of the images, in the shared folder.
        repeat: Seed.
        scratch: The shared folder.
    """
    return _run(folder, {"num-clients": num_clients}, repeat, scratch)


def pass_of_whole_set(*, folder: str, scratch: str) -> dict[str, float]:
    """Compute the features of decoded images once, with nothing beside it.

    Args:
        folder: Folder of the images, in the shared folder.
        scratch: The shared folder.

    Raises:
        RuntimeError: Features are missing.
    """
    from itertools import chain

    import numpy as np
    from PIL import Image

    from common.config.loading import defaults, parse
    from common.data.feature_extraction import FeatureExtractor
    from common.models.classifier import feature_network
    from common.models.engines.acceleration import accelerated

    with np.load(Path(scratch) / folder / "images.npz") as arrays:
        images = [Image.fromarray(pixels) for pixels in chain(arrays["train_x"], arrays["test_x"])]
    config = parse(defaults())
    network, dtype = accelerated(feature_network(config.model, config.backbone_spec), "cpu")
    if network.body is None:
        raise RuntimeError("the default backbone has no layers")
    side, interpolation = network.body.preprocessing.image_size, network.body.preprocessing.interpolation
    counter = _Counter()
    extractor = FeatureExtractor(
        network,
        counter,
        side=side,
        interpolation=interpolation,
        device="cpu",
        progress=lambda _: None,
        dtype=dtype,
    )
    with Stopwatch() as watch, extractor:
        for number, image in enumerate(images):
            # A key of its own, so that equal images are computed each.
            extractor.push(image, number.to_bytes(8, "big"))
    if counter.rows != len(images):
        raise RuntimeError("features are missing")
    return {"job_seconds": watch.wall}


class _Counter:
    """Taker of features that counts them and keeps none."""

    def __init__(self) -> None:
        self.rows = 0

    def __contains__(self, key: bytes) -> bool:
        return False

    def append(self, keys: "Sequence[bytes]", rows: "np.ndarray") -> None:
        del rows
        self.rows += len(keys)


BENCHMARK = Benchmark(
    "end-to-end",
    "A private run from images to its model, beside a Flower and Opacus app that is written as their examples are.",
    "5 hours",
    (
        Figure("job_seconds", "s"),
        Figure("cpu_seconds", "CPU s"),
        Figure("accuracy", "accuracy", larger_is_better=True, compared=False),
        Figure("epsilon", "epsilon", compared=False),
    ),
    _cases,
    notes=(
        "Both sides train a linear head on EfficientNet-Lite0 at 128 px with the same batches, noise, bound and "
        "learning rate. The other side computes the backbone at every step, makes a PrivacyEngine in every message and "
        "runs under Ray. Bract's seconds include imports, features, accounting, noised counts, ledgers and its report.",
        "In the last case x says how much of the run one pass takes. The pass scales decoded images to 128 px and "
        "keeps no features, and its seconds begin once images and backbone are loaded.",
        MADE_UP,
    ),
)
