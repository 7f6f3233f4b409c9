"""Folder of a run or a federation as a live page shows it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from common.errors import BractError, ConfigError
from common.page.blocks import Cell, Page, Section, Table, name_cell, text, words
from server.deployment.client_list import Client, list_clients
from server.deployment.server_folder import SERVER_FILE, load_home
from server.reporting.run_page.report import build_page, spent_of
from server.reporting.run_page.run_files import CONFIG, HASHED, read_run
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
        return repr([run, *map(_state, files), self._clients()])

    def page(self) -> Page:
        """Return the page as the files are now."""
        run = self.run()
        page = Page("Federation without a run", "bract run starts one", (), _FOOTER)
        if run is not None:
            files = read_run(run)
            page = dataclasses.replace(build_page(files, spent_of(files)), footer=_FOOTER)
        if self._clients_of is None:
            return page
        return dataclasses.replace(page, sections=(_clients_section(*self._clients()), *page.sections))

    def _clients(self) -> tuple[list[Client], str]:
        if self._clients_of is None:
            return [], ""
        try:
            clients, runs = self._clients_of()
        # A server that is starting or stopping must not end the page.
        except BractError as error:
            return [], f"The clients cannot be listed ({error})."
        return clients, "" if runs else "The server is not running: nobody is connected."


def _state(file: Path) -> tuple[int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size


def _clients_section(clients: list[Client], problem: str) -> Section:
    rows = tuple(
        (name_cell(client.name), Cell(client.status), Cell(client.seen or "-"), Cell(client.admitted or "-"))
        for client in clients
    )
    online = sum(client.status == "online" for client in clients)
    title = "Clients of this server"
    table = Table(title, ("client", "status", "last connected or disconnected (UTC)", "admitted (UTC)"), rows)
    said = words(problem) if problem else f"{online} of {len(clients)} admitted or revoked clients are online."
    return Section("server-clients", title, (text(said), table) if rows else (text(said),))
