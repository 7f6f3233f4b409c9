"""Models as a run stores them, without a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared, prepare
from common.messages.codec import Declaration
from common.models.backbone_info import backbone_info
from server.reporting.model_card import model_card
from server.rounds.enrollment import EnrolledClient
from server.run_context import RunContext
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState

MakeConfig = Callable[..., RunConfig]
CLASSES = ("cat", "dog", "owl")
# A backbone of 21 k parameters.
SMALL = "timm:test_resnet"


def settings_of(source: Path, backbone: str = SMALL, **more: Any) -> dict[str, Any]:
    """Settings of a run without privacy on small images."""
    names = {key.replace("__", ".").replace("_", "-"): value for key, value in more.items()}
    weights = {"model.weights": "random"} if backbone.startswith("timm:") else {}
    basis = {"data.source": str(source), "data.image-size": 32, "privacy.mechanism": "none", "num-clients": 2}
    return {"model.backbone": backbone, **basis, **weights, **names}


def shaded_images(root: Path, per_class: int = 4, side: int = 40) -> Path:
    """Write a folder of `CLASSES` whose images differ in shade and are noisy."""
    rng = np.random.default_rng(0)
    for at, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = rng.integers(70 * at, 70 * at + 80, (side, side + 8, 3))
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


def store_model(folder: Path, config: RunConfig, classes: tuple[str, ...] = CLASSES, seed: int = 0) -> Trainer:
    """Write the model of a run that ended with random weights, and return the trainer that scores it."""
    prepared = prepare(config)
    trainer = Trainer(config, prepared.inputs.shape[1:], classes)
    rng = np.random.default_rng(seed)
    travelling = {name: shape for name, shape in trainer.trainable.items() if name not in trainer.personal}
    arrays: Arrays = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in travelling.items()}
    write_model(folder, config, prepared, classes, arrays)
    return trainer


def write_model(folder: Path, config: RunConfig, prepared: Prepared, classes: tuple[str, ...], arrays: Arrays) -> None:
    """Write weights and card as the end of a run does."""
    digest = "" if config.model.backbone == "cnn" else backbone_info(config.backbone_spec).sha256
    declared = Declaration("x", 10, classes, prepared.inputs.shape[1:], digest)
    clients = {"x": EnrolledClient(declared, 0)}
    state = RunState(config, "run", clients, {}, [["x"]], arrays, RunContext())
    folder.mkdir(parents=True, exist_ok=True)
    RunDirectory(folder).write_model(arrays, model_card(state))
