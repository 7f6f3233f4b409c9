"""Data holders, with the places of their ledgers, keys and last heads."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import LedgerError
from common.ledger.connection_pool import ConnectionPool
from common.ledger.database import Head, Ledger
from common.ledger.holder_keys import HolderKeys
from common.ledger.signed_heads import SignedHead, sign_head
from common.ledger.transactions import LedgerSession
from common.ledger.whole_file import check_whole
from common.system.files import make_folder, write_atomic
from common.system.paths import bract_home

LEDGER_FILE = "ledger.sqlite"
# All holders of this process share one pool: a simulation has a holder for each client.
_pool = ConnectionPool()
close_below = _pool.close_below


@dataclass(frozen=True)
class Holder:
    """A data holder, either an operating-system user or a simulated client.

    All clients of one user share the ledger and the keys. If `durable`, entries survive a power failure. `head_file`
    keeps the ledger's last head apart from the ledger; it is None in simulations. `replies_kept` limits how many
    replies of a run are kept for sending again.
    """

    ledger_file: Path
    keys: HolderKeys
    durable: bool
    simulated: bool
    head_file: Path | None
    replies_kept: int

    @contextmanager
    def open_session(self) -> Iterator[LedgerSession]:
        """Open the ledger and keep its newest head on leaving.

        An older copy of the ledger is refused.

        Raises:
            LedgerError: The ledger is damaged, older than its last head, or cannot be written.
        """
        identity = f"{self.keys.public}{self.durable}{self.simulated}"
        with _pool.session(self.ledger_file, identity, self._open) as session:
            # The pool may have had this session open while a backup was copied over the file.
            session.ledger.check_changed()
            self._refuse_older(session.ledger)
            try:
                yield session
            finally:
                self._keep_head(session.ledger)

    def _open(self) -> LedgerSession:
        ledger = Ledger(self.ledger_file, durable=self.durable)
        try:
            # An empty file in the ledger's place must be refused before it gets a first entry.
            self._refuse_older(ledger)
            session = LedgerSession(ledger, self.keys, simulated=self.simulated)
            if not self.simulated:
                # An old log beside a restored file can hold the last entry without what came before it.
                ledger.watch(lambda: self._check(ledger))
            return session
        except BaseException:
            ledger.close()
            raise

    def _check(self, ledger: Ledger) -> None:
        self._refuse_older(ledger)
        check_whole(ledger)

    def head(self, session: LedgerSession) -> SignedHead:
        """Return the signed head that a client sends with each reply."""
        return sign_head(self.keys, session.ledger.head())

    def _refuse_older(self, ledger: Ledger) -> None:
        """Refuse a restored copy that lacks entries and their charges."""
        kept = self._kept_head()
        if kept is not None and ledger.query("SELECT hash FROM entry WHERE seq = ?", (kept.seq,)) != [(kept.hash,)]:
            raise LedgerError(
                f"the ledger {self.ledger_file} lacks entry {kept.seq}, which it had before: an older copy was "
                f"restored, and what was spent since is not in it\n  bring back the newest copy; {self.head_file} "
                "says which entry must be in it"
            )

    def _kept_head(self) -> Head | None:
        if self.head_file is None or not self.head_file.is_file():
            return None
        try:
            kept = json.loads(self.head_file.read_text())
            return Head(int(kept["seq"]), str(kept["hash"]))
        except (OSError, ValueError, KeyError, TypeError):
            raise LedgerError(
                f"{self.head_file}, which holds the number of the ledger's last entry, cannot be read: restore it "
                "from your backup, or remove it if you are sure that the ledger is the newest one"
            ) from None

    def _keep_head(self, ledger: Ledger) -> None:
        if self.head_file is None:
            return
        try:
            ledger.check_changed()
            # The ledger's entries are on disk by now, so the kept head is never ahead of the ledger.
            # After a crash it may be behind, which is harmless.
            self._write_head(ledger.head())
        except LedgerError:
            kept = self._kept_head()
            # The head of an overwritten file must not be kept, or that file would be accepted from now on.
            # What this process has committed must be in whatever is restored.
            if ledger.newest.seq > (0 if kept is None else kept.seq):
                self._write_head(ledger.newest)
            raise

    def _write_head(self, head: Head) -> None:
        if self.head_file is not None:
            content = json.dumps({"seq": head.seq, "hash": head.hash})
            write_atomic(self.head_file, content, durable=False, mode=0o600)


def own_holder() -> Holder:
    """Return the data holder of this operating-system user.

    Raises:
        LedgerError: A key is damaged or readable by others, or a folder cannot be made.
    """
    home = bract_home()
    try:
        for folder in (home, home / "holder", home / "heads"):
            make_folder(folder, mode=0o700)
        keys = HolderKeys.of_folder(home / "holder")
    except OSError as error:
        raise LedgerError(f"the holder's folder {home / 'holder'} cannot be used ({error.strerror})") from None
    head_file = home / "heads" / f"{keys.ledger_id}.json"
    return Holder(home / "holder" / LEDGER_FILE, keys, True, False, head_file, 1_000_000)


def simulated_holder(folder: Path, name: str, *, seed: int, durable: bool) -> Holder:
    """Return the data holder of one simulated client.

    Raises:
        LedgerError: The folder cannot be made.
    """
    try:
        make_folder(folder, mode=0o700)
    except OSError as error:
        raise LedgerError(f"the ledgers' folder {folder} cannot be made ({error.strerror})") from None
    return Holder(folder / f"{name}.sqlite", HolderKeys.simulated(seed, name), durable, True, None, 2)
