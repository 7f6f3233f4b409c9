"""Ledger entries and the hash chain that connects them."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from common.errors import LedgerError

Kind = Literal["genesis", "register", "reserve", "commit", "refuse", "note"]
ORIGIN = "0" * 64


@dataclass(frozen=True)
class Entry:
    """An entry of a ledger that never changes once it is written.

    Attributes:
        seq: Number of the entry, from 1.
        prev_hash: Hash of the entry before, `ORIGIN` for the first entry.
        kind: What happened.
        time: When it happened, UTC by the clock of the machine, ISO 8601.
        request_id: Id of the request; a ledger has at most one entry of a kind for it.
        content_digest: Hash of what was asked (reserve) or sent (commit); empty for other kinds.
        dataset: Name of the data set that the entry is about; empty if there is none.
        event: What happened, as plain JSON values.
        versions: Name -> version of the software that the figures depend on.
        hash: SHA-256 over all of the above.
    """

    seq: int
    prev_hash: str
    kind: Kind
    time: str
    request_id: str
    content_digest: str = ""
    dataset: str = ""
    event: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    hash: str = ""


# The columns of the table of entries, in their order.
ENTRY_FIELDS = tuple(Entry.__dataclass_fields__)


def canonical(value: Any) -> str:
    r"""Return the one JSON text that equal values share.

    Keys are sorted, and the text has no spaces and only ASCII letters.

    >>> canonical({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def hash_of(entry: Entry) -> str:
    """Return an entry's SHA-256 hash, 64 hex digits.

    It covers the previous entry's hash and the canonical JSON of all other fields.
    """
    rest = {name: value for name, value in vars(entry).items() if name not in ("hash", "prev_hash")}
    return hashlib.sha256((entry.prev_hash + canonical(rest)).encode()).hexdigest()


def check_chain(entries: Iterable[Entry]) -> int:
    """Follow a chain from its first entry to its last.

    Raises:
        LedgerError: The chain is empty, lacks a number, or has a wrong hash.
    """
    previous, count = ORIGIN, 0
    for count, entry in enumerate(entries, start=1):
        if entry.seq != count or (entry.kind == "genesis") != (count == 1):
            raise LedgerError(f"the ledger's chain is broken: entry {entry.seq} ({entry.kind}) stands at place {count}")
        if entry.prev_hash != previous or entry.hash != hash_of(entry):
            raise LedgerError(f"the ledger's chain is broken: entry {entry.seq} was changed, or one before it")
        previous = entry.hash
    if not count:
        raise LedgerError("the ledger has no entries")
    return count
