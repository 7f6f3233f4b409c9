"""`bract run`: a run over real clients, submitted to the server that runs here and followed to its end."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from common.config.loading import Scalar, defaults, override, parse, resolved
from common.config.schema import RunConfig, split_list
from common.data.sources.base_source import OWN_IMAGES
from common.errors import ConfigError, FederationError
from common.system.app_bundle import bundle_digest, installed_bundle
from common.system.files import write_atomic
from server.deployment.server_folder import ServerHome
from server.deployment.superlink_control import Control, NotRunningError, control
from server.reporting.follow_run import follow_run, run_status
from server.reporting.terminal_progress import TerminalProgress
from server.state.run_directory import STOPPED, RunDirectory, check_free, fresh_path

_SECONDS_BETWEEN_LOOKS = 2.0
# The server's process says that a run has ended a moment after the run has written its last file.
_GRACE = 3.0
BUNDLE = "bundle.fab"


def run_config_of(home: ServerHome, given: dict[str, Scalar]) -> RunConfig:
    """The configuration of a run over the clients of this server.

    What was left open is chosen for a federation: `data.source` is the clients' own images, and `num-clients` is
    the number of those that are admitted.

    Args:
        home: The server.
        given: What the user set.

    Raises:
        ConfigError: A setting is wrong, or does not go with real clients.
        FederationError: The server cannot be asked who is admitted.
    """
    source = given.get("data.source", OWN_IMAGES)
    if source != OWN_IMAGES:
        raise ConfigError(
            f"data.source={source!r}: a run over real clients has data.source={OWN_IMAGES!r}, since each brings its "
            "own images; `bract simulate` runs over other sources"
        )
    given = {**given, "data.source": OWN_IMAGES, "node-keys": True}
    if "num-clients" not in given:
        with control(home) as server:
            admitted = sum(node.status != "unregistered" for node in server.nodes())
        if not admitted:
            raise ConfigError("no client is admitted yet: `bract server admit KEY.pub` lets one take part")
        given["num-clients"] = admitted
    config = parse(override(defaults(), given))
    if len(split_list(config.data.classes)) < 2:
        raise ConfigError(
            "data.classes must name the classes, such as --set data.classes=normal,tumour: no server may learn them "
            "from the clients' images"
        )
    return config


@dataclass
class Follower:
    """Watches a run of this server, and knows when it is over."""

    home: ServerHome
    run_id: int
    folder: Path
    console: Console
    state: str = ""
    _looked: float = 0.0
    _over_since: float | None = None
    _there: int = -1

    def ended(self) -> bool:
        """Whether nothing more will come: the run has finished, or its server is gone."""
        now = time.monotonic()
        if now - self._looked >= _SECONDS_BETWEEN_LOOKS:
            self._looked = now
            try:
                with control(self.home) as server:
                    self.state = server.run_state(self.run_id)
                    self._say_who_is_there(server)
            except NotRunningError:
                self.state = "server gone"
        if self.state.startswith("finished") or self.state == "server gone":
            self._over_since = self._over_since or now
        return self._over_since is not None and now - self._over_since >= _GRACE

    def _say_who_is_there(self, server: Control) -> None:
        """As long as the run waits for its clients."""
        if (self.folder / "privacy.json").is_file() or self.state.startswith("finished"):
            return
        there = sum(node.status == "online" for node in server.nodes())
        if there != self._there:
            self._there = there
            self.console.print(f"Waiting for the clients to declare themselves: {there} are online", highlight=False)


def run_on_server(home: ServerHome, config: RunConfig, console: Console) -> tuple[dict[str, Any], Path]:
    """Submit a run, show its rounds, and read back what it left.

    Args:
        home: The server, which must run.
        config: The run.
        console: Where progress goes.

    Returns:
        The summary and the run directory.

    Raises:
        FederationError: The server does not run, or the run ended without being complete.
        ConfigError: The run's folder is in use, or the run that is to go on still runs.
    """
    folder = Path(config.output_dir) if config.output_dir else home.runs / fresh_path(config).name
    if not config.resume:
        check_free(folder)
    elif folder.is_dir():
        with RunDirectory(folder).alone():  # a run goes on when its command is gone: it is not resumed beside itself
            pass
    bundle = installed_bundle()
    system = config.system.model_copy(update={"bundle": bundle_digest(bundle)})
    config = config.model_copy(update={"output_dir": str(folder), "system": system})
    write_atomic(home.folder / BUNDLE, bundle, durable=True, mode=0o600)
    with control(home) as server:
        run_id = server.start_run(bundle, resolved(config))
    kept = home.folder / BUNDLE
    for line in (f"Run      {folder}", f"Code     bundle {bundle_digest(bundle)}: what clients pin; kept as {kept}"):
        console.print(line, highlight=False, soft_wrap=True, markup=False, emoji=False)
    follower = Follower(home, run_id, folder, console)
    progress = TerminalProgress(console)
    try:
        follow_run(folder, progress, num_rounds=config.num_rounds, num_clients=config.num_clients, ended=follower.ended)
    except KeyboardInterrupt:
        console.print("Stopping the run on the server ...")
        with control(home) as server:
            server.stop_run(run_id)
    finally:
        progress.stop()
    return _result(home, folder, follower.state), folder


def _result(home: ServerHome, folder: Path, state: str) -> dict[str, Any]:
    go_on = f"go on with: bract run {home.folder} --resume {folder}"
    if (folder / STOPPED).is_file():
        raise FederationError(f"{(folder / STOPPED).read_text().strip().partition(': ')[2]}\nThe run is saved; {go_on}")
    if run_status(folder) == "not started" and not (folder / "checkpoint.safetensors").is_file():
        raise FederationError(
            f"the run ended before its first round ({state or 'stopped'}); the server's own output says why"
            + (f"; {go_on}" if (folder / "config.toml").is_file() else "")
        )
    if run_status(folder) != "complete" and state == "server gone":
        raise FederationError(f"the server ended; start it again with `bract server start {home.folder}`, then {go_on}")
    if run_status(folder) == "not started" or (run_status(folder) != "complete" and state == "finished:failed"):
        raise FederationError(f"the run's process ended ({state or 'stopped'}); {go_on}")
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    return found
