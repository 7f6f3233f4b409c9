"""Signed heads of ledgers and the files that keep them.

A client sends its ledger's signed head with each reply. The server keeps the heads, and so detects an older copy of the
ledger.
"""

import json
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from common.errors import LedgerError
from common.ledger.database import Head
from common.ledger.holder_keys import HolderKeys, is_signed, ledger_id_of
from common.system.files import sync_folder


@dataclass(frozen=True)
class SignedHead:
    """The head of a ledger, signed by its holder.

    `ledger` is the ledger's id, which follows from the public key. `seq` and `hash` are those of the last entry.
    `signature` is over `message`. Key and signature are hex digits.
    """

    ledger: str
    seq: int
    hash: str
    public_key: str
    signature: str

    @property
    def message(self) -> bytes:
        """The bytes that are signed."""
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
    """Sign a head with a holder's key."""
    unsigned = SignedHead(keys.ledger_id, head.seq, head.hash, keys.public, "")
    return replace(unsigned, signature=keys.sign(unsigned.message))


class HeadKeeper:
    """A server's memory of its clients' heads, kept in append-only files.

    Every file gets every head. Existing files are read first. If `durable`, heads survive a power failure.

    Raises:
        LedgerError: A file is damaged.
    """

    def __init__(self, files: Sequence[Path], *, durable: bool = True) -> None:
        self._files, self._durable = tuple(files), durable
        self._latest: dict[str, SignedHead] = {}
        self._ledger_of: dict[str, str] = {}
        for file in self._files:
            for client, head in read_heads(file) if file.is_file() else ():
                self._remember(client, head)

    def latest(self, names: Iterable[str]) -> dict[str, SignedHead]:
        """Return the latest head of each client that has sent one."""
        return {name: self._latest[self._ledger_of[name]] for name in names if name in self._ledger_of}

    def accept(self, heads: Iterable[tuple[str, SignedHead]]) -> dict[str, str]:
        """Store the valid heads of one round and return the refused clients.

        Each head comes with its client's stable name. The result maps a refused client to the reason.
        """
        refused: dict[str, str] = {}
        accepted: list[tuple[str, SignedHead]] = []
        for client, head in heads:
            try:
                self._check(client, head)
            except LedgerError as error:
                refused[client] = str(error)
                continue
            if any(
                other.ledger == head.ledger and other.seq == head.seq and other.hash != head.hash
                for _, other in accepted
            ):
                refused[client] = f"client {client} came with another copy of a ledger that was seen in the same round"
                continue
            accepted.append((client, head))
        # Clients of one holder share a ledger and answer in any order.
        # So each head is compared with the heads of earlier rounds, and only then all are remembered.
        for client, head in accepted:
            self._remember(client, head)
        lines = "".join(json.dumps({"client": client} | asdict(head)) + "\n" for client, head in accepted)
        for file in self._files if accepted else ():
            append_lines(file, lines.encode(), durable=self._durable)
        return refused

    def _remember(self, client: str, head: SignedHead) -> None:
        known = self._latest.get(head.ledger)
        if known is None or head.seq > known.seq:
            self._latest[head.ledger] = head
        self._ledger_of[client] = head.ledger

    def _check(self, client: str, head: SignedHead) -> None:
        head.check()
        # A known client with a new ledger would start with an unspent budget.
        if self._ledger_of.get(client, head.ledger) != head.ledger:
            raise LedgerError(f"client {client} came with another ledger than before: what it had spent is not in it")
        known = self._latest.get(head.ledger)
        if known is not None and (head.seq < known.seq or (head.seq == known.seq and head.hash != known.hash)):
            raise LedgerError(
                f"client {client} came with an older copy of its ledger: entry {known.seq} was there before, now it "
                f"ends with {head.seq}"
            )


def append_lines(file: Path, lines: bytes, *, durable: bool) -> None:
    """Append whole lines to a file after removing half a line.

    A crash may have left half a line at the end. Lines added behind it could not be read again. A missing file is made,
    for this user only. Durable lines are on the disk on return, and so is the name of a new file.
    """
    handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
    with os.fdopen(handle, "a+b") as stream:
        # A line that another server is writing looks like half a line, too.
        _lock(stream.fileno())
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        if size and stream.read(1) != b"\n":
            stream.seek(0)
            stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(lines)
        if durable:
            # A head that a power failure takes away could not show that an older ledger was restored.
            stream.flush()
            os.fsync(stream.fileno())
    if durable and not size:
        sync_folder(file.parent)


def _lock(handle: int) -> None:
    """Wait for an exclusive lock that lasts until the file is closed."""
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX)


def read_heads(file: Path) -> list[tuple[str, SignedHead]]:
    """Return all heads in a file with their clients' names, in order.

    A last line that was cut short is ignored.

    Raises:
        LedgerError: The file cannot be read, or holds something else.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n") and line.strip()]
        return [(row.pop("client"), SignedHead(**row)) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise LedgerError(f"{file} cannot be read as heads of ledgers ({type(error).__name__})") from None
