"""Figures of several runs side by side."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.config.loading import Scalar
from common.errors import ConfigError
from common.privacy.accounting import Spent
from common.system.console import printable
from server.reporting.run_page.report import spent_of
from server.reporting.run_page.run_files import RunFiles, read_run

# A chart has as many looks of lines.
MAX_RUNS = 8
# Settings that say where a run is, and not what it computes.
_PLACE = ("output-dir", "resume")


@dataclass(frozen=True)
class ComparedRun:
    """Files of one run with its epsilon after each round."""

    name: str
    files: RunFiles
    spent: Sequence[Spent]

    @property
    def private_metrics(self) -> Mapping[str, Any] | None:
        """Latest figures of counts with noise.

        None stands for figures that are only noise, and for no figures.
        """
        found = self.files.summary.get("private_metrics")
        known = found is not None and found["accuracy_stddev"] is not None and found["accuracy_stddev"] <= 1
        return found if known else None

    @property
    def megabytes(self) -> float:
        """Megabytes that all rounds sent and got."""
        rounds = self.files.rounds
        return float(sum((line["bytes_up"] + line["bytes_down"]) * line["clients"] for line in rounds)) / 1e6


def read_runs(folders: Sequence[Path]) -> list[ComparedRun]:
    """Read the runs that are to be compared.

    Raises:
        ConfigError: A folder does not hold a run, stands twice, or there are too few or too many.
    """
    if not 2 <= len(folders) <= MAX_RUNS:
        raise ConfigError(f"compare takes 2 to {MAX_RUNS} folders of runs, and {len(folders)} were given")
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ConfigError("compare: one folder stands twice")
    runs = [read_run(folder) for folder in resolved]
    return [ComparedRun(name, files, spent_of(files)) for name, files in zip(_names(resolved), runs, strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """Return the shortest ends of paths that tell all folders apart."""
    common = Path(os.path.commonpath(folders)) if len({folder.name for folder in folders}) < len(folders) else None
    return [
        printable(folder.name if common is None else str(folder.relative_to(common)), keep="") for folder in folders
    ]


def different_settings(runs: Sequence[ComparedRun]) -> dict[str, list[Scalar | None]]:
    """Return each setting that is not the same in all runs, with its values.

    None stands for a setting that a run's version did not have.
    """
    keys = dict.fromkeys(key for run in runs for key in run.files.config if key not in _PLACE)
    found = {key: [run.files.config.get(key) for run in runs] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def cautions(runs: Sequence[ComparedRun]) -> list[str]:
    """Return why figures of these runs may not be comparable."""
    different = different_settings(runs)
    said = []
    images = ("data.source", "data.path", "data.test-fraction", "seed", "data.partitioner", "num-clients")
    if changed := [key for key in images if key in different]:
        said.append(f"The held-out images may differ, because {', '.join(changed)} differs: so may their difficulty.")
    private = [run.files.privacy for run in runs if run.files.private]
    for key, what in (("delta", "delta"), ("privacy_unit", "what is protected"), ("neighboring_relation", "relation")):
        if len({statement.get(key) for statement in private}) > 1:
            said.append(f"Epsilons are not comparable, because {what} differs.")
    if unfinished := [run.name for run in runs if not run.files.complete]:
        said.append(f"Not complete: {', '.join(unfinished)}.")
    return said
