"""Folder of a run or a federation as a live page shows it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from common.errors import BractError, ConfigError
from common.page.blocks import Page
from common.system.files import file_state
from server.deployment.client_list import Client, list_clients
from server.deployment.server_folder import SERVER_FILE, load_home
from server.reporting.live.federation_sections import clients_section, waiting_section
from server.reporting.run_page.report import build_page, spent_of
from server.reporting.run_page.run_files import CONFIG, HASHED, read_run
from server.rounds.waiting import MAX_SILENCE, Wait, read_wait
from server.state.run_directory import STOPPED

_FOOTER = "Made by Bract from files on this machine. The page is read-only and loads nothing from anywhere else."
_ClientsOf = Callable[[], tuple[list[Client], bool]]


class WatchedFolder:
    """Folder that is read again whenever its files change.

    Args:
        folder: Folder of a run or of a server.

    Raises:
        ConfigError: The folder holds neither.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._clients_of: _ClientsOf | None = None
        if (folder / SERVER_FILE).is_file():
            home = load_home(folder)
            self._runs, self._clients_of = home.runs, lambda: list_clients(home)
        elif not (folder / CONFIG).is_file():
            raise ConfigError(f"{folder} holds neither a run ({CONFIG}) nor a server ({SERVER_FILE})")

    def run(self) -> Path | None:
        """Return the folder of the run, None where a server has none.

        A server's newest run is shown.
        """
        if self._clients_of is None:
            return self._folder
        starts = {file.parent: file.stat().st_mtime_ns for file in self._runs.glob(f"*/{CONFIG}")}
        return max(starts, key=starts.__getitem__, default=None)

    def mark(self) -> str:
        """Return a text that changes with the files and the clients' states."""
        run = self.run()
        files = [] if run is None else [run / name for name in (*HASHED, STOPPED)]
        # Of the record of a wait its content counts: it is written again and again while nothing changes.
        return repr([run, *map(file_state, files), self._clients(), None if run is None else _wait_of(run)])

    def page(self) -> Page:
        """Return the page as the files are now."""
        run, files = self.run(), None
        page = Page("Federation without a run", "bract run starts one", (), _FOOTER)
        if run is not None:
            files = read_run(run)
            page = dataclasses.replace(build_page(files, spent_of(files)), footer=_FOOTER)
        clients, problem = self._clients()
        wait = None if run is None else _wait_of(run)
        added = [] if wait is None else [waiting_section(*wait, clients)]
        if self._clients_of is not None:
            failures = files.rounds[-1] if files is not None and files.rounds else {}
            added.append(clients_section(clients, problem, failures, None if wait is None else wait[0]))
        return dataclasses.replace(page, sections=(*added, *page.sections))

    def _clients(self) -> tuple[list[Client], str]:
        if self._clients_of is None:
            return [], ""
        try:
            clients, runs = self._clients_of()
        # A server that is starting or stopping must not end the page.
        except BractError as error:
            return [], f"The clients cannot be listed ({error})."
        return clients, "" if runs else "The server is not running: nobody is connected."


def _wait_of(run: Path) -> tuple[Wait, bool] | None:
    """Return whom a run waits for and whether it still says so."""
    found = read_wait(run)
    return None if found is None else (found[0], found[1] < MAX_SILENCE)
