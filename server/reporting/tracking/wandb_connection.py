"""Runs in the project `bract` of Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path

import wandb

from server.reporting.tracking.contract import PROJECT, Experiment

# Anything that would say more about this machine than the run's figures do.
_CAPTURE_OFF = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "host": "",
    "save_code": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}


class WandbConnection:
    """Run of Weights & Biases, online or as WANDB_MODE says."""

    def __init__(self, experiment: Experiment) -> None:
        self._run = wandb.init(
            dir=str(experiment.folder),
            project=PROJECT,
            name=experiment.name,
            id=experiment.run_id,
            resume="allow",
            config=dict(experiment.settings),
            settings=wandb.Settings(silent=True, **_CAPTURE_OFF),
        )
        self.tracked_as = experiment.run_id
        self.place = self._run.url or f"wandb sync {Path(self._run.dir).parent}"

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add figures of one round."""
        self._run.log(dict(figures), step=step, commit=True)

    def finish(self, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add the figures of the whole run with its pictures."""
        self._run.summary.update(dict(figures))
        self._run.log({name: wandb.Image(str(file)) for name, file in pictures.items()})

    def close(self, *, complete: bool) -> None:
        """Send what is left."""
        self._run.finish(exit_code=0 if complete else 1)
