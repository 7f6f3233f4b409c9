"""Where a data holder's ledger and keys lie, and the head that is kept apart from them."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from common.errors import LedgerError
from common.ledger.connection_pool import opened
from common.ledger.database import Ledger
from common.ledger.hash_chain import check_chain
from common.ledger.holder_keys import HolderKeys
from common.ledger.signed_heads import SignedHead, sign_head
from common.ledger.transactions import LedgerSession
from common.system.files import write_atomic
from common.system.paths import bract_home

LEDGER_FILE = "ledger.sqlite"


@dataclass(frozen=True)
class Holder:
    """One data holder: all clients of an operating-system user, or one client of a simulation.

    Attributes:
        ledger_file: The ledger.
        keys: Its keys.
        durable: Whether entries survive a power failure.
        simulated: Whether the images are a simulation's.
        head_file: Where the latest head is kept apart from the ledger; None in simulations.
        replies_kept: How many replies of a run are kept to be sent again.
    """

    ledger_file: Path
    keys: HolderKeys
    durable: bool
    simulated: bool
    head_file: Path | None
    replies_kept: int

    @contextmanager
    def open_session(self) -> Iterator[LedgerSession]:
        """The ledger, opened and found to be no older than its last head; the head is kept on leaving.

        Raises:
            LedgerError: The ledger is damaged, older than its last head, or cannot be written.
        """
        with opened(self.ledger_file, f"{self.keys.public}{self.durable}{self.simulated}", self._open) as open_session:
            self._refuse_older(open_session.ledger)
            try:
                yield open_session
            finally:
                self._keep_head(open_session.ledger)

    def _open(self) -> LedgerSession:
        ledger = Ledger(self.ledger_file, durable=self.durable)
        try:
            self._refuse_older(ledger)  # before an empty file in its place gets a first entry
            open_session = LedgerSession(ledger, self.keys, simulated=self.simulated)
            if not self.simulated:
                # The last entry may be there without those before it: an old log beside a restored file.
                check_chain(ledger.entries())
            return open_session
        except BaseException:
            ledger.close()
            raise

    def head(self, open_session: LedgerSession) -> SignedHead:
        """The ledger's head as a client sends it along."""
        return sign_head(self.keys, open_session.ledger.head())

    def _refuse_older(self, ledger: Ledger) -> None:
        """A restored backup lacks entries, and with them what was spent."""
        if self.head_file is None or not self.head_file.is_file():
            return
        try:
            kept = json.loads(self.head_file.read_text())
            seq, head = int(kept["seq"]), str(kept["hash"])
        except (OSError, ValueError, KeyError, TypeError):
            raise LedgerError(
                f"{self.head_file}, which says where the ledger stood, cannot be read: restore it from your backup, "
                "or remove it if you are sure that the ledger is the newest one"
            ) from None
        found = ledger.query("SELECT hash FROM entry WHERE seq = ?", (seq,))
        if not found or found[0][0] != head:
            raise LedgerError(
                f"the ledger {self.ledger_file} lacks entry {seq}, which it had before: an older copy was "
                f"restored, and what was spent since is not in it\n  bring back the newest copy; {self.head_file} "
                "says which entry must be in it"
            )

    def _keep_head(self, ledger: Ledger) -> None:
        if self.head_file is None:
            return
        head = ledger.head()
        # Never ahead of the ledger, whose entries are on disk by now; behind it after a crash, which is harmless.
        write_atomic(self.head_file, json.dumps({"seq": head.seq, "hash": head.hash}), durable=False, mode=0o600)


def own_holder() -> Holder:
    """The holder that this operating-system user is: `$BRACT_HOME/holder`, its last head in `$BRACT_HOME/heads`.

    Raises:
        LedgerError: A key is damaged or open to others, or a folder cannot be made.
    """
    home = bract_home()
    try:
        for folder in (home, home / "holder", home / "heads"):
            folder.mkdir(exist_ok=True, mode=0o700, parents=True)
        keys = HolderKeys.of_folder(home / "holder")
    except OSError as error:
        raise LedgerError(f"the holder's folder {home / 'holder'} cannot be used ({error.strerror})") from None
    head = home / "heads" / f"{keys.ledger_id}.json"
    return Holder(home / "holder" / LEDGER_FILE, keys, True, False, head, 1_000_000)


def simulated_holder(folder: Path, name: str, *, seed: int, durable: bool) -> Holder:
    """The holder that a simulated client is; its ledger lies in the run's folder.

    Raises:
        LedgerError: The folder cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise LedgerError(f"the ledgers' folder {folder} cannot be made ({error.strerror})") from None
    return Holder(folder / f"{name}.sqlite", HolderKeys.simulated(seed, name), durable, True, None, 2)
