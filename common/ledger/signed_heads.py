"""Signed heads: what a client says about its ledger, so that an older copy of it would show."""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from common.errors import LedgerError
from common.ledger.database import Head
from common.ledger.holder_keys import HolderKeys, is_signed, ledger_id_of


@dataclass(frozen=True)
class SignedHead:
    """Where a ledger stands, signed by its holder.

    Attributes:
        ledger: Id of the ledger, which follows from the public key.
        seq: Number of the last entry.
        hash: Hash of that entry.
        public_key: 64 hex digits.
        signature: 128 hex digits.
    """

    ledger: str
    seq: int
    hash: str
    public_key: str
    signature: str

    @property
    def message(self) -> bytes:
        """What is signed."""
        return f"bract ledger head\x1f{self.ledger}\x1f{self.seq}\x1f{self.hash}".encode()

    def check(self) -> None:
        """Refuse a head that its own key did not sign.

        Raises:
            LedgerError: The id does not follow from the key, or the signature is wrong.
        """
        try:
            fits = ledger_id_of(self.public_key) == self.ledger
        except ValueError:
            fits = False
        if not fits or not is_signed(self.public_key, self.message, self.signature):
            raise LedgerError(
                f"the head of ledger {self.ledger[:8]} is not signed by the key that the ledger belongs to"
            )


def sign_head(keys: HolderKeys, head: Head) -> SignedHead:
    """A holder's signature under a head."""
    unsigned = SignedHead(keys.ledger_id, head.seq, head.hash, keys.public, "")
    return SignedHead(keys.ledger_id, head.seq, head.hash, keys.public, keys.sign(unsigned.message))


class HeadKeeper:
    """What a server remembers of its clients' ledgers: files of lines, only ever added to.

    Args:
        files: Each gets every head; those that exist are believed.

    Raises:
        LedgerError: A file is damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = tuple(files)
        self._latest: dict[str, SignedHead] = {}
        self._ledger_of: dict[str, str] = {}
        for file in self._files:
            for who, head in read_heads(file) if file.is_file() else ():
                known = self._latest.get(head.ledger)
                if known is None or head.seq > known.seq:
                    self._latest[head.ledger] = head
                self._ledger_of[who] = head.ledger

    def latest(self, names: Iterable[str]) -> dict[str, SignedHead]:
        """The latest head of each client, for those that have sent one."""
        return {name: self._latest[self._ledger_of[name]] for name in names if name in self._ledger_of}

    def accept(self, heads: Iterable[tuple[str, SignedHead]]) -> dict[str, str]:
        """Take over new heads; those that must not be are left out.

        Args:
            heads: Who sent it (a stable name), and the head.

        Returns:
            Name -> why its head is refused.
        """
        refused: dict[str, str] = {}
        accepted: list[tuple[str, SignedHead]] = []
        for who, head in heads:
            try:
                self._check(who, head)
            except LedgerError as error:
                refused[who] = str(error)
                continue
            if any(one.ledger == head.ledger and one.seq == head.seq and one.hash != head.hash for _, one in accepted):
                refused[who] = f"client {who} came with another copy of a ledger that was seen in the same round"
                continue
            accepted.append((who, head))
        # Clients of one holder share a ledger, and answer in any order: each is judged by what was known before.
        for who, head in accepted:
            known = self._latest.get(head.ledger)
            if known is None or head.seq > known.seq:
                self._latest[head.ledger] = head
            self._ledger_of[who] = head.ledger
        lines = "".join(json.dumps({"client": who} | asdict(head)) + "\n" for who, head in accepted)
        for file in self._files if accepted else ():
            append_lines(file, lines.encode())
        return refused

    def _check(self, who: str, head: SignedHead) -> None:
        head.check()
        if self._ledger_of.get(who, head.ledger) != head.ledger:
            raise LedgerError(f"client {who} came with another ledger than before: what it had spent is not in it")
        known = self._latest.get(head.ledger)
        if known is not None and (head.seq < known.seq or (head.seq == known.seq and head.hash != known.hash)):
            raise LedgerError(
                f"client {who} came with an older copy of its ledger: entry {known.seq} was there before, now it ends "
                f"with {head.seq}"
            )


def append_lines(file: Path, lines: bytes) -> None:
    """Add whole lines to a file. Half a line that a crash left goes first: what is added to it could not be read again.

    Args:
        file: Made if it is not there, for this user only.
        lines: Each with its end.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "a+b") as stream:
        _wait_for_others(stream.fileno())  # a line that another server is writing is half a line, too
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        if size and stream.read(1) != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(lines)


def _wait_for_others(handle: int) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)  # until the file is closed


def read_heads(file: Path) -> list[tuple[str, SignedHead]]:
    """All heads of a file in the order they came; a last line that was cut short is left out.

    Raises:
        LedgerError: The file cannot be read or holds something else.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
        return [(row.pop("client"), SignedHead(**row)) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(f"{file} cannot be read as heads of ledgers ({type(error).__name__})") from None
