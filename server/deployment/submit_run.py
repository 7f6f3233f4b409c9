"""Submission of a run to the server of this machine."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from common.commands.early_checks import refuse_missing_folder, refuse_unknown_rows
from common.commands.fitted_defaults import fit_to_budget
from common.config.loading import Scalar, defaults, override, parse, resolved
from common.config.schema import RunConfig
from common.data.sources.base_source import OWN_IMAGES
from common.errors import ConfigError, FederationError
from common.system.app_bundle import bundle_digest, installed_bundle
from common.system.files import write_atomic
from server.deployment.server_folder import ServerHome
from server.deployment.superlink_control import UNREGISTERED, Control, NotRunningError, control
from server.reporting.follow_run import follow_run, run_status
from server.reporting.run_page.report import REPORT
from server.reporting.terminal_progress import TerminalProgress
from server.reporting.tracking.registry import trackers
from server.reporting.tracking.tracked_run import tracked
from server.state.run_directory import STOPPED, RunDirectory, check_free, fresh_path

_SECONDS_BETWEEN_POLLS = 2.0
# The server reports the end of a run a little earlier or later than the run writes its last file.
_SECONDS_AFTER_END = 3.0
_SECONDS_FOR_REPORT = 20.0
_PAUSE = 0.2
BUNDLE = "bundle.fab"
_SERVER_STOPPED = "server gone"


def run_config_of(home: ServerHome, settings: dict[str, Scalar]) -> RunConfig:
    """Return the configuration of a run over the clients of this server.

    `data.source` is by default the clients' own images, and `num-clients` is the number of admitted clients.

    Args:
        home: Folder of the server.
        settings: Settings of the user, by key.

    Raises:
        ConfigError: A setting is wrong or not possible with real clients, or no client is admitted.
        DataError: `evaluation.folder` is missing.
        FederationError: The server is not running, or refused.
    """
    source = settings.get("data.source", OWN_IMAGES)
    if source != OWN_IMAGES:
        raise ConfigError(
            f"data.source={source!r}: a run over real clients has data.source={OWN_IMAGES!r}, because each client "
            "uses its own images; `bract simulate` runs over other sources"
        )
    settings = {**settings, "data.source": OWN_IMAGES, "node-keys": True}
    if "num-clients" not in settings:
        with control(home) as server:
            admitted = sum(node.status != UNREGISTERED for node in server.nodes())
        if not admitted:
            raise ConfigError("no client has been admitted yet: admit one with `bract server admit KEY.pub`")
        settings["num-clients"] = admitted
    config = parse(override(defaults(), fit_to_budget(settings)))
    refuse_missing_folder(config.evaluation.folder)
    refuse_unknown_rows(config.privacy, exact_sums=config.sums_exactly)
    # Class names are a public constant. Reading them from the clients' images would release them.
    if len(config.data.class_names) < 2:
        raise ConfigError(
            "data.classes must name the classes, such as --set data.classes=normal,tumour: the server may not learn "
            "them from the clients' images"
        )
    return config


@dataclass
class Follower:
    """Observer of a run on this server.

    Attributes:
        home: Folder of the server.
        run_id: Flower's id of the run.
        folder: Folder of the run.
        console: Console for messages while the run waits for its clients.
        state: Latest state of the run, as the server reports it.
    """

    home: ServerHome
    run_id: int
    folder: Path
    console: Console
    state: str = ""
    _polled: float = 0.0
    _ended_at: float | None = None
    _online: int = -1

    def follow(self, num_rounds: int, num_clients: int) -> None:
        """Show the run until its end.

        Ctrl-C stops it on the server.
        """
        progress = TerminalProgress(self.console)
        try:
            follow_run(self.folder, progress, num_rounds=num_rounds, num_clients=num_clients, ended=self.ended)
            self._await_report()
        except KeyboardInterrupt:
            self.console.print("Stopping the run on the server ...")
            with control(self.home) as server:
                server.stop_run(self.run_id)
        finally:
            progress.stop()

    def _await_report(self) -> None:
        """Wait for the page that the final table names."""
        until = time.monotonic() + _SECONDS_FOR_REPORT
        while not (self.folder / REPORT).is_file() and time.monotonic() < until and not self.ended():
            time.sleep(_PAUSE)

    def ended(self) -> bool:
        """Return whether the run can write no more files."""
        now = time.monotonic()
        if now - self._polled >= _SECONDS_BETWEEN_POLLS:
            self._polled = now
            try:
                with control(self.home) as server:
                    self.state = server.run_state(self.run_id)
                    self._print_online_clients(server)
            except NotRunningError:
                self.state = _SERVER_STOPPED
        if self.state.startswith("finished") or self.state == _SERVER_STOPPED:
            self._ended_at = self._ended_at or now
        return self._ended_at is not None and now - self._ended_at >= _SECONDS_AFTER_END

    def _print_online_clients(self, server: Control) -> None:
        # The statement is written when all clients are enrolled.
        if (self.folder / "privacy.json").is_file() or self.state.startswith("finished"):
            return
        online = sum(node.status == "online" for node in server.nodes())
        if online != self._online:
            self._online = online
            self.console.print(f"Waiting for the clients to declare themselves: {online} are online", highlight=False)


def run_on_server(
    home: ServerHome, config: RunConfig, console: Console, track: Sequence[str] = ()
) -> tuple[dict[str, Any], Path]:
    """Submit a run to the server and follow it to its end.

    Args:
        home: Folder of the server, which must be running.
        config: Configuration of the run.
        console: Console for progress.
        track: Names of the experiment trackers that get the run's figures too.

    Returns:
        The run's summary and its folder.

    Raises:
        FederationError: The server is not running, or the run ended without a result.
        ConfigError: A tracker's package is missing, the folder is in use, or the run to resume is still running.
    """
    kinds = trackers(track)
    folder = (
        Path(config.output_dir)
        if config.output_dir
        else home.runs / fresh_path(config.data, config.model, config.privacy).name
    )
    if not config.resume:
        check_free(folder, config.data)
    elif folder.is_dir():
        # A run continues on the server after its command ends. It must not be resumed while it is running.
        with RunDirectory(folder).lock():
            pass
    bundle = installed_bundle()
    system = config.system.model_copy(update={"bundle": bundle_digest(bundle)})
    config = config.model_copy(update={"output_dir": str(folder), "system": system})
    write_atomic(home.folder / BUNDLE, bundle, durable=True, mode=0o600)
    with control(home) as server:
        run_id = server.start_run(bundle, resolved(config))
    file = home.folder / BUNDLE
    tell = partial(console.print, highlight=False, soft_wrap=True, markup=False, emoji=False)
    tell(f"Run      {folder}")
    tell(f"Code     bundle {bundle_digest(bundle)}: clients pin it; a copy is {file}")
    if config.stopping.max_epsilon is not None:
        tell(f"Rounds   {config.num_rounds}, as stopping.max-epsilon allows")
    follower = Follower(home, run_id, folder, console)
    with tracked(folder, kinds, tell):
        follower.follow(config.num_rounds, config.num_clients)
    return _result(home, folder, follower.state), folder


def _result(home: ServerHome, folder: Path, state: str) -> dict[str, Any]:
    """Return the summary of a run that has ended.

    Raises:
        FederationError: The run has no result yet. The text states the reason and the command that resumes it.
    """
    resume = f"resume it with: bract run {home.folder} --resume {folder}"
    status = run_status(folder)
    if (folder / STOPPED).is_file():
        reason = (folder / STOPPED).read_text().strip().partition(": ")[2]
        raise FederationError(f"{reason}\nThe run is saved; {resume}")
    if status == "not started" and not (folder / "checkpoint.safetensors").is_file():
        raise FederationError(
            f"the run ended before its first round ({state or 'stopped'}); the server's own output states the reason"
            + (f"; {resume}" if (folder / "config.toml").is_file() else "")
        )
    if status != "complete" and state == _SERVER_STOPPED:
        raise FederationError(
            f"the server stopped; start it again with `bract server start {home.folder}`, and then the run: {resume}"
        )
    if status == "not started" or (status != "complete" and state == "finished:failed"):
        raise FederationError(f"the run's process ended ({state or 'stopped'}); {resume}")
    summary: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return summary
