"""Contract of a connection to an experiment tracker."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

PROJECT = "bract"


@dataclass(frozen=True)
class Experiment:
    """Description of a run for a tracker.

    Attributes:
        name: Name of the run's folder.
        run_id: Bract's id of the run, 32 hex digits.
        folder: Absolute path of the run directory.
        settings: Settings without local paths, by key.
        tracked_as: The tracker's own id of this run; empty if it has none yet.
    """

    name: str
    run_id: str
    folder: Path
    settings: Mapping[str, str | int | float | bool]
    tracked_as: str = ""


class Connection(Protocol):
    """Connection to a tracker that is open.

    It may raise anything. No error of it reaches the run.

    Attributes:
        tracked_as: The tracker's own id of this run.
        place: Where the user finds the run, in words or as an address.
    """

    tracked_as: str
    place: str

    def log(self, figures: Mapping[str, float], step: int) -> None:
        """Add figures of one round."""
        ...

    def finish(self, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        """Add the figures of the whole run with its PNG pictures."""
        ...

    def close(self, *, complete: bool) -> None:
        """End the connection."""
        ...
