"""Client's folder and ledger as a live page shows them."""

from datetime import UTC, datetime
from pathlib import Path

from client.checks.budget import last_heads, ledger_trouble
from client.client_config import LOCK_FILE, POLICY_FILE, SITE_FILE, load_site
from client.runtime.client_lock import is_running
from client.status.activity import ACTIVITY_FILE, read_activity
from client.status.page import broken_page, client_page
from client.status.pin_history import PINS_FILE, read_pins
from client.status.status import ClientStatus, client_status
from common.errors import BractError, LedgerError
from common.ledger.data_holder import LEDGER_FILE
from common.page.blocks import Page
from common.system.files import file_state
from common.system.paths import bract_home

_WATCHED = (SITE_FILE, POLICY_FILE, ACTIVITY_FILE, PINS_FILE)


class WatchedClient:
    """Client that is read again whenever its files change.

    Guarantee: the ledger is opened read-only for each look and closed after it, so a running client never waits.

    Args:
        folder: Folder that `bract client init` made.

    Raises:
        ConfigError: There is no client in the folder.
    """

    def __init__(self, folder: Path) -> None:
        load_site(folder)
        self._folder = folder

    def mark(self) -> str:
        """Return a text that changes with the files, the process and the day."""
        ledger = bract_home() / "holder" / LEDGER_FILE
        # Entries are in the log until SQLite moves them into the file.
        files = [self._folder / name for name in _WATCHED] + [ledger, ledger.with_name(ledger.name + "-wal")]
        today = datetime.now(UTC).date()
        return repr([today, is_running(self._folder / LOCK_FILE), *map(file_state, files)])

    def page(self) -> Page:
        """Return the page as the files are now.

        What cannot be read is said on the page, because a figure of before would pass for one of now.
        """
        activity, pins = read_activity(self._folder), read_pins(self._folder)
        running = is_running(self._folder / LOCK_FILE)
        try:
            # Before the ledger, see there.
            heads = last_heads()
            status = self._status()
            trouble = ledger_trouble(status.report, heads)
        except (BractError, OSError) as error:
            return broken_page(self._folder, running, activity, error)
        return client_page(status, activity, pins, trouble)

    def _status(self) -> ClientStatus:
        try:
            return client_status(self._folder)
        except LedgerError:
            # A running client may have written during the audit, so try once more.
            return client_status(self._folder)
