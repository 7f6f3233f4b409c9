"""Runs in the experiment `bract` of MLflow."""

import time
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient, get_tracking_uri
from mlflow.entities import Metric, Param

from server.reporting.tracking.contract import PROJECT, Experiment
from server.reporting.tracking.released_values import without_password

# MLflow refuses larger batches.
_BATCH = 100


class MlflowConnection:
    """Client of an MLflow server.

    MLFLOW_TRACKING_URI names it. Without one it is `mlflow.db` in the working folder. MLflow's global run would note
    user, command, code and git commit, so runs are made by the client alone.
    """

    def __init__(self, experiment: Experiment) -> None:
        self._client = MlflowClient()
        self.place = f"{without_password(get_tracking_uri())}, experiment {PROJECT}"
        self.tracked_as = experiment.tracked_as or self._new_run(experiment)

    def _new_run(self, experiment: Experiment) -> str:
        known = self._client.get_experiment_by_name(PROJECT)
        place = known.experiment_id if known else self._client.create_experiment(PROJECT)
        run = self._client.create_run(place, run_name=experiment.name, tags={"bract.run-id": experiment.run_id})
        made = str(run.info.run_id)
        # MLflow takes no parameter without a value.
        settings = [Param(key, str(value)) for key, value in experiment.settings.items() if value != ""]
        for start in range(0, len(settings), _BATCH):
            self._client.log_batch(made, params=settings[start : start + _BATCH])
        return made

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add figures of one round."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.tracked_as, metrics=[Metric(key, value, now, step) for key, value in figures.items()]
        )

    def finish(self, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add the figures of the whole run with its pictures."""
        self.log(figures, 0)
        for file in pictures.values():
            self._client.log_artifact(self.tracked_as, str(file))

    def close(self, *, complete: bool) -> None:
        """Set the run's status."""
        self._client.set_terminated(self.tracked_as, "FINISHED" if complete else "KILLED")
