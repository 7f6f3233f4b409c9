"""Experiment trackers that `--track` can name."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module

from common.errors import ConfigError
from common.system.extras import install_hint, is_installed
from server.reporting.tracking.contract import Connection, Experiment


@dataclass(frozen=True)
class TrackerKind:
    """Kind of tracker, with the package that it needs."""

    name: str
    package: str
    connection: str
    where: str

    def load(self) -> None:
        """Import the package."""
        import_module(f"server.reporting.tracking.{self.name}_connection")

    def connect(self, experiment: Experiment) -> Connection:
        """Open a connection by the package."""
        module = import_module(f"server.reporting.tracking.{self.name}_connection")
        connected: Connection = getattr(module, self.connection)(experiment)
        return connected


_KINDS = (
    TrackerKind("tensorboard", "tensorboard", "TensorBoardConnection", "event files in the run's folder"),
    TrackerKind("mlflow", "mlflow", "MlflowConnection", "MLFLOW_TRACKING_URI, else mlflow.db in the working folder"),
    TrackerKind("wandb", "wandb", "WandbConnection", "your account; WANDB_MODE=offline keeps it in the run's folder"),
)
TRACKERS = {kind.name: kind for kind in _KINDS}


def trackers(names: Iterable[str]) -> Sequence[TrackerKind]:
    """Return the named trackers, each once.

    Raises:
        ConfigError: A name is unknown, or its package is not installed; the text has the command that installs it.
    """
    chosen = list(dict.fromkeys(names))
    for name in chosen:
        if name not in TRACKERS:
            raise ConfigError(f"--track {name}: there is no such tracker; known are {', '.join(TRACKERS)}")
        if not is_installed(TRACKERS[name].package):
            raise ConfigError(f"--track {name} needs the package {TRACKERS[name].package}: {install_hint(name)}")
    return [TRACKERS[name] for name in chosen]
