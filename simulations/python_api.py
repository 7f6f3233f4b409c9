"""A simulation started from Python."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from common.commands.fitted_defaults import fit_to_source, show_changes
from common.commands.run_settings import absolute_paths, show_remarks
from common.config import loading
from common.config.loading import flatten, plain_values
from common.data.sources.registry import OpenOnce
from common.errors import ConfigError
from common.inference.run_folder import Run
from common.system.console import console_of_caller, set_log_levels
from simulations.simulate import run_job


def simulate(
    settings: Mapping[str, Any] | None = None,
    *,
    out: str | Path | None = None,
    engine: Literal["in-process", "ray"] = "in-process",
    baselines: bool = False,
    track: Sequence[str] = (),
    quiet: bool = False,
) -> Run:
    """Simulate a federation as `bract simulate` does.

    Args:
        settings: Settings by their key, such as `{"num-rounds": 5, "privacy.mechanism": "none"}`, or in nested tables
            as in a TOML file. All others have their defaults.
        out: Folder for the results; a new one in `runs/` if left out.
        engine: `in-process` or `ray`.
        baselines: Also train each client alone and all data pooled.
        track: Names of the experiment trackers that get the run's figures too, as `--track` takes them.
        quiet: Show no progress.

    Raises:
        ConfigError: A setting is wrong, or the folder is in use; nothing was trained.
        BractError: Anything else that the user can act on.
    """
    given, opener = plain_values(flatten(settings or {})), OpenOnce()
    if out is not None:
        if "output-dir" in given:
            raise ConfigError("out and output-dir name one setting twice: leave one of them out")
        given["output-dir"] = str(out)
    set_log_levels(verbose=False)
    console = console_of_caller(quiet=quiet)
    chosen = show_changes(fit_to_source(absolute_paths(given), opener), console)
    config = loading.parse(loading.override(loading.defaults(), chosen))
    show_remarks(config.data, console, opener)
    _, folder = run_job(config, engine=engine, baselines=baselines, console=console, track=track)
    return Run(folder)
