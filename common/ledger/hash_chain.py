"""Ledger entries and the hash chain that holds them together."""

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
    """One line of a ledger; nobody ever changes one.

    Attributes:
        seq: From 1.
        prev_hash: Hash of the entry before, `ORIGIN` for the first.
        kind: What happened.
        time: When, UTC by the clock of the machine.
        request_id: What it belongs to; with the kind it is unique.
        content_digest: Hash of what was asked (reserve) or sent (commit); empty elsewhere.
        dataset: Names the images it is about; empty where there are none.
        event: What happened, in plain values.
        versions: Software that mattered.
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


def canonical(value: Any) -> str:
    r"""JSON that is the same for equal values: sorted keys, no spaces, plain letters.

    >>> canonical({"b": 1, "a": [1.5, None]})
    '{"a":[1.5,null],"b":1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def hash_of(entry: Entry) -> str:
    """SHA-256 over the previous hash and the canonical JSON of the rest: 64 hex digits."""
    rest = {name: value for name, value in vars(entry).items() if name not in ("hash", "prev_hash")}
    return hashlib.sha256((entry.prev_hash + canonical(rest)).encode()).hexdigest()


def check_chain(entries: Iterable[Entry]) -> int:
    """Follow a chain from its first entry.

    Returns:
        How many entries there are.

    Raises:
        LedgerError: There is none, a number is missing, or a hash does not fit.
    """
    before, count = ORIGIN, 0
    for count, entry in enumerate(entries, start=1):
        if entry.seq != count or (entry.kind == "genesis") != (count == 1):
            raise LedgerError(f"the ledger's chain is broken: entry {entry.seq} ({entry.kind}) stands at place {count}")
        if entry.prev_hash != before or entry.hash != hash_of(entry):
            raise LedgerError(f"the ledger's chain is broken: entry {entry.seq} was changed, or one before it")
        before = entry.hash
    if not count:
        raise LedgerError("the ledger has no entries")
    return count
