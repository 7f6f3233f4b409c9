"""A simulation, from its configuration to its run directory."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from common.config.loading import Scalar, resolved
from common.config.schema import RunConfig
from common.data.sources.base_source import OWN_IMAGES
from common.errors import BractError, ConfigError
from common.ledger.data_holder import close_below
from common.system.threads import num_cores
from server.reporting.follow_run import run_status
from server.reporting.run_page.report import try_report
from server.reporting.terminal_progress import TerminalProgress
from server.reporting.tracking.registry import trackers
from server.reporting.tracking.tracked_run import tracked
from server.state.run_directory import RunDirectory, check_free, fresh_path
from simulations.engines.memory import keep_freed_memory


def run_job(
    config: RunConfig, *, engine: str, baselines: bool, console: Console, track: Sequence[str] = ()
) -> tuple[dict[str, Any], Path]:
    """Run a simulation and return its summary and folder.

    Args:
        config: The run.
        engine: `in-process` or `ray`.
        baselines: Also train each client alone and all data pooled.
        console: Where progress is printed.
        track: Names of the experiment trackers that get the run's figures too.

    Returns:
        The summary (plain values) and the run directory.

    Raises:
        ConfigError: The run is for real clients, which hold the images.
        KeyboardInterrupt: It was stopped outside of its rounds; the text says what is left.
        BractError: Anything else that the user can act on.
    """
    if config.data.source == OWN_IMAGES:
        raise ConfigError(
            f"data.source={OWN_IMAGES!r} cannot be simulated, because real clients hold the images: "
            "`bract run` runs and resumes over them"
        )
    folder = Path(config.output_dir or fresh_path(config.data, config.model, config.privacy).resolve())
    if not config.resume:
        check_free(folder, config.data)
    config = config.model_copy(update={"output_dir": str(folder)})
    kinds, progress = trackers(track), TerminalProgress(console)
    try:
        with tracked(folder, kinds, partial(console.print, highlight=False, soft_wrap=True, markup=False)):
            if engine == "ray":
                from simulations.engines.ray import run_under_ray

                run_under_ray(config, progress)
            else:
                if not config.needs_no_torch:
                    keep_freed_memory()
                _in_process(
                    resolved(config), progress, num_clients=config.num_clients, takes_torch=not config.needs_no_torch
                )
        summary = _summary_of(folder, engine)
        if baselines and summary["status"] == "complete":
            from simulations.baselines import train_baselines

            summary["baselines"] = train_baselines(config, progress)
    except KeyboardInterrupt:
        try_report(folder)
        raise KeyboardInterrupt(_left_by(folder)) from None
    finally:
        progress.stop()
        # After closing, each ledger is one complete file, which can be copied.
        close_below(folder / "ledgers")
    RunDirectory(folder).write_json("summary.json", summary)
    # The report names the digest of the summary, which has more in it now.
    try_report(folder)
    return summary, folder


def _summary_of(folder: Path, engine: str) -> dict[str, Any]:
    """Return a run's summary with what only its command knows."""
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    summary["engine"] = engine
    seconds = summary["seconds"]
    summary["backbone_share_of_time"] = round(seconds.get("features", 0.0) / seconds["total"], 4)
    return summary


def _left_by(folder: Path) -> str:
    """Return what is left of a run that was stopped outside of its rounds."""
    if run_status(folder) == "complete":
        return f"Stopped; the run itself is complete: {folder}"
    if (folder / "config.toml").is_file():
        return f"Stopped before the first round; bract simulate --resume {folder} goes on"
    return "Stopped before the first round; there are no results."


def _in_process(
    run_config: Mapping[str, Scalar], progress: TerminalProgress, *, num_clients: int, takes_torch: bool
) -> None:
    from client.app import app as client_app
    from server.app import create_app
    from simulations.app import make_context
    from simulations.engines.in_process import LEAST_WORK, run_in_process

    make = partial(make_context, tracker=progress, progress=progress.work, warn=progress.warn, in_order=True)
    # `run_job` adds to the summary and writes the report then. Written by the run too, it would cost its time twice.
    server_app = create_app(lambda config: replace(make(config), reports=False))
    try:
        run_in_process(
            server_app,
            client_app,
            run_config,
            num_clients=num_clients,
            num_workers=num_cores(),
            # Networks never in this thread: a client limits torch to one thread, and the server evaluates here on all.
            least_work=0.0 if takes_torch else LEAST_WORK,
        )
    except Exception as error:
        # The app reports what a user can put right, and leaves a folder alone whose resume is refused.
        if not isinstance(error, BractError):
            try_report(Path(str(run_config["output-dir"])))
        raise
