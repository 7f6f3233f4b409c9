"""The evaluator of the server's own public images, in simulations and real federations alike.

It never sees an image or a count of a client, so its figures cost no privacy.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.listed_values import join_names
from common.config.sections import DataConfig
from common.data.preprocessing import Prepared, prepare
from common.data.sources.registry import open_source
from common.errors import DataError
from common.inference.evaluation.figures import figures as figures_of_scores
from common.inference.evaluation.scored_images import ScoredImages
from common.metrics import count
from common.system.progress import ProgressFactory, no_progress
from server.rounds.round_record import figures
from simulations.image_record import ImageRecord

# Figures that counts do not give.
_OF_SCORES = ("macro_auroc", "ece")


class PublicEvaluator:
    """Figures of the global model on the images of `evaluation.folder`.

    They are on the folder's test part, or on all of it where it has none.

    Args:
        trainer: Computes a model's scores.
        prepared: The folder's images as inputs of the model.
    """

    def __init__(self, trainer: Trainer, prepared: Prepared) -> None:
        scan = prepared.scan
        rows = np.flatnonzero(scan.usable)
        held_out = rows[rows >= scan.num_train]
        rows = held_out if len(held_out) else rows
        self._trainer = trainer
        self._start = trainer.initial_personal()
        self._inputs = np.ascontiguousarray(prepared.inputs[rows])
        self._labels = scan.labels[rows]

    @classmethod
    def open(cls, trainer: Trainer, progress: ProgressFactory = no_progress) -> "tuple[PublicEvaluator, Prepared]":
        """Return the evaluator of a run with the images that it reads.

        The trainer has the run's classes. Its `input_shape` is the run's, or () where the settings alone decide it.

        Raises:
            DataError: The images cannot be used, or have other classes than the run.
            WeightsError: The backbone's weights are missing or wrong.
        """
        config, shape = trainer.config, trainer.input_shape
        data = public_test_data(config.data, config.evaluation.folder, trainer.classes)
        if not shape and config.data.image_size is not None:
            # What the network of a client with images of its own takes, see `prepare`.
            shape = (config.data.image_size, config.data.image_size, 3)
        prepared = prepare(config.model_copy(update={"data": data}), progress, shape=shape or None)
        return cls(replace(trainer, input_shape=prepared.inputs.shape[1:]), prepared), prepared

    def __call__(self, arrays: Arrays) -> dict[str, Any]:
        """Return a model's figures by key, None where not finite."""
        logits = self._trainer.logits(self._start | arrays, self._inputs)
        counts = count(logits, self._labels)
        of_scores = dict.fromkeys(_OF_SCORES, math.nan)
        if np.isfinite(logits).all():
            scored = ScoredImages(self._labels, logits, np.arange(len(logits)))
            found = figures_of_scores(scored, scored.support > 0)
            of_scores = {key: float(found[key]) for key in _OF_SCORES}
        values = {key: value if math.isfinite(value) else None for key, value in of_scores.items()}
        return figures(counts) | values


def public_test_data(data: DataConfig, folder: str, classes: Sequence[str]) -> DataConfig:
    """Return the settings under which `evaluation.folder` is read as a run's images.

    Raises:
        DataError: It cannot be read, has images of another class, or none of a class of the run.
    """
    own = data.model_copy(update={"source": folder, "path": "", "classes": join_names(classes)})
    try:
        remarks = open_source(own).entries.class_remarks
    except DataError as error:
        # The loader names the setting of the clients' images.
        raise DataError(str(error).replace("data.source=", "evaluation.folder=")) from None
    # Figures over fewer or other classes than the clients' would be taken for figures of the same task.
    if remarks:
        raise DataError(f"evaluation.folder={folder!r} needs images of the run's classes alone: {'; '.join(remarks)}")
    return own


def refuse_shared_images(public: ImageRecord, clients: ImageRecord, folder: str) -> None:
    """Refuse public test images that simulated clients hold too.

    Figures on them would be exact figures of private images.

    Raises:
        DataError: An image is in both.
    """
    held = {pixels.tobytes() for pixels in clients.pixels if pixels.any()}
    shared = sum(pixels.tobytes() in held for pixels in public.pixels)
    if shared:
        raise DataError(
            f"evaluation.folder={folder!r} holds {shared} images that clients of this private run hold too: figures on "
            "them would tell about private images; give the server images of its own"
        )
