"""Event files of TensorBoard in the run directory."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from server.reporting.tracking.contract import Experiment

_NEUTRAL = ".bract"


class TensorBoardConnection:
    """Writer of TensorBoard's event files."""

    def __init__(self, experiment: Experiment) -> None:
        folder = self._folder = experiment.folder / "tensorboard"
        self.tracked_as = folder.name
        self.place = f"tensorboard --logdir {folder}"
        self._writer = SummaryWriter(str(folder))
        if not experiment.tracked_as:
            rows = (f"| {key} | {value} |" for key, value in experiment.settings.items())
            self._writer.add_text("settings", "\n".join(("| setting | value |", "| --- | --- |", *rows)), 0)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add figures of one round."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def finish(self, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add the figures of the whole run with its pictures."""
        self.log(figures, 0)
        for name, file in pictures.items():
            with Image.open(file) as image:
                self._writer.add_image(name, np.asarray(image.convert("RGB")), 0, dataformats="HWC")

    def close(self, *, complete: bool) -> None:
        """Close the event file."""
        # TensorBoard has no status of a run.
        del complete
        self._writer.close()
        for number, file in enumerate(sorted(self._folder.glob("events.out.tfevents.*"))):
            # The library's name for a new file holds the name of this machine.
            if not file.name.endswith(_NEUTRAL):
                file.rename(file.with_name(f"events.out.tfevents.{int(file.stat().st_mtime)}.{number}{_NEUTRAL}"))
