"""The checks of a ledger as a whole.

Each check adds one line to the remarks for each fault that it finds.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, get_args

from common.errors import BractError, LedgerError
from common.ledger.audit.read_only import strange_objects
from common.ledger.database import Ledger
from common.ledger.hash_chain import ENTRY_FIELDS, Entry, Kind, canonical, check_chain
from common.ledger.holder_keys import ledger_id_of
from common.ledger.image_index import PARTS, digest_of_added, digest_of_part, read_part
from common.ledger.registrations import Registration, request_id, splits_client, unit_of

_WITH_CONTENT = ("reserve", "commit")
_UNREADABLE = (BractError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError)
# SQLite itself accepts any value in any column, so these conditions find rows that no ledger writes.
_ODD_NAMES = "typeof(name) <> 'blob' OR length(name) <> 32 OR typeof(image) <> 'integer' OR image < 1"
_ODD_LINKS = "typeof(image) <> 'integer' OR typeof(same) <> 'integer' OR image < 1 OR same < 1"
_ODD_PARTS = "typeof(images) <> 'blob' OR typeof(units) <> 'blob' OR length(images) <> length(units)"


@dataclass(frozen=True)
class Remarks:
    """The faults that an audit finds, one line each.

    An honest ledger never has `doubts`. It may have `warnings`, which a reader should know.
    """

    doubts: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @contextmanager
    def about(self, subject: str) -> Iterator[None]:
        """Record an error of the block as a doubt about a subject.

        An audit must report a damaged ledger, so such an error does not stop it.
        """
        try:
            yield
        except _UNREADABLE as error:
            why = str(error) if isinstance(error, BractError) else f"it cannot be read ({type(error).__name__})"
            self.doubts.append(f"{subject}: {why}")


def check_file(ledger: Ledger, remarks: Remarks) -> None:
    """Check that a file is whole and has a ledger's tables and triggers."""
    with remarks.about("the file"):
        for (line,) in ledger.query("PRAGMA integrity_check(5)"):
            if line != "ok":
                remarks.doubts.append(f"the file is damaged: {line}")
        remarks.doubts.extend(strange_objects(ledger))


def read_entries(ledger: Ledger, remarks: Remarks) -> list[Entry]:
    """Return all entries that can be read."""
    rows: list[tuple[Any, ...]] = []
    with remarks.about("the list of entries"):
        rows = ledger.query(f"SELECT {', '.join(ENTRY_FIELDS)} FROM entry NOT INDEXED ORDER BY seq")  # noqa: S608
    return [entry for row in rows if (entry := _entry(row, remarks)) is not None]


def _entry(row: tuple[Any, ...], remarks: Remarks) -> Entry | None:
    seq, *texts = row
    with remarks.about(f"entry {seq}"):
        if not all(isinstance(text, str) for text in texts):
            raise LedgerError("a column holds no text")
        event, versions = texts[-3:-1]
        entry = Entry(
            **dict(zip(ENTRY_FIELDS, row, strict=True)) | {"event": json.loads(event), "versions": json.loads(versions)}
        )
        if not isinstance(entry.event, dict) or not isinstance(entry.versions, dict):
            raise LedgerError("it holds no named values")
        # SQLite may read another value from such a text than Python does, for example for a repeated key.
        if (canonical(entry.event), canonical(entry.versions)) != (event, versions):
            remarks.doubts.append(f"entry {seq} is not written as a ledger writes it: it can be read in two ways")
        return entry
    return None


def check_entries(entries: Sequence[Entry], remarks: Remarks) -> None:
    """Check the chain, the request ids and the times of entries."""
    with remarks.about("the chain"):
        try:
            check_chain(entries)
        except LedgerError as error:
            remarks.doubts.append(str(error))
    counted = Counter((entry.kind, entry.request_id) for entry in entries)
    remarks.doubts.extend(f"{n} entries {kind} have one request id" for (kind, _), n in counted.items() if n > 1)
    previous: datetime | None = None
    for entry in entries:
        if entry.kind not in get_args(Kind):
            remarks.doubts.append(f"entry {entry.seq} is of an unknown kind")
        if not _has_digest(entry):
            remarks.doubts.append(f"entry {entry.seq} ({entry.kind}) has no valid digest of its content")
        with remarks.about(f"the time of entry {entry.seq}"):
            now = datetime.fromisoformat(entry.time)
            if previous is not None and now < previous:
                remarks.warnings.append(f"entry {entry.seq} is older than the one before it, by the machine's clock")
            previous = now


def _has_digest(entry: Entry) -> bool:
    if entry.kind not in _WITH_CONTENT:
        return not entry.content_digest
    return len(entry.content_digest) == 64 and set(entry.content_digest) <= set("0123456789abcdef")


def check_genesis(entries: Sequence[Entry], remarks: Remarks) -> tuple[str, bool]:
    """Check the first entry and return the ledger's id and `simulated`.

    The id is empty if the first entry cannot be trusted.
    """
    with remarks.about("the first entry"):
        return _genesis(entries)
    return "", False


def _genesis(entries: Sequence[Entry]) -> tuple[str, bool]:
    first = entries[0] if entries else None
    if first is None or first.kind != "genesis" or set(first.event) != {"ledger", "public-key", "simulated"}:
        raise LedgerError("it does not say whose ledger this is")
    ledger, simulated = str(first.event["ledger"]), first.event["simulated"]
    if ledger != ledger_id_of(first.event["public-key"]):
        raise LedgerError("the ledger's id does not follow from its public key")
    if first.request_id != request_id("", "", ledger, 0, "genesis"):
        raise LedgerError("its request id does not follow from what it says")
    if not isinstance(simulated, bool):
        raise LedgerError("it does not say whether this is a simulation")
    return ledger, simulated


def check_images(ledger: Ledger, entries: Sequence[Entry], remarks: Remarks) -> None:
    """Check that the chain vouches for all names, links and data sets."""
    registers = [entry for entry in entries if entry.kind == "register"]
    with remarks.about("the tables of images"):
        _check_columns(ledger)
        named = _check_vouched(ledger, registers, remarks)
        for entry in registers:
            with remarks.about(f"the images of entry {entry.seq}"):
                _check_data_set(ledger, entry, named, remarks)


def _check_columns(ledger: Ledger) -> None:
    for table, odd in (("fingerprint", _ODD_NAMES), ("link", _ODD_LINKS), ("part", _ODD_PARTS)):
        if ledger.query(f"SELECT 1 FROM {table} WHERE {odd} LIMIT 1"):  # noqa: S608
            raise LedgerError(f"the table {table} holds values that a ledger never writes")


def _check_vouched(ledger: Ledger, registers: Sequence[Entry], remarks: Remarks) -> set[int]:
    """Check that entries vouch for all rows and return the named images."""
    vouching = {entry.seq for entry in registers}
    for table in ("fingerprint", "link"):
        added_by = {seq for (seq,) in ledger.query(f"SELECT DISTINCT seq FROM {table}")}  # noqa: S608
        if added_by - vouching:
            remarks.doubts.append(f"the table {table} has rows that no entry vouches for")
    known = {(entry.dataset, part) for entry in registers for part in PARTS}
    for dataset, part in ledger.query("SELECT dataset, name FROM part"):
        if (dataset, part) not in known:
            remarks.doubts.append(f"no entry vouches for the data set {str(dataset)[:12]} ({part})")
    named = {image for (image,) in ledger.query("SELECT DISTINCT image FROM fingerprint")}
    if any(not {*pair} <= named for pair in ledger.query("SELECT image, same FROM link")):
        remarks.doubts.append("the table link is about images that have no name")
    return named


def _check_data_set(ledger: Ledger, entry: Entry, named: set[int], remarks: Remarks) -> None:
    if digest_of_added(ledger, entry.seq) != entry.event["added"]:
        remarks.doubts.append(f"the names of images that entry {entry.seq} added were changed")
    if set(entry.event["parts"]) != set(PARTS):
        remarks.doubts.append(f"entry {entry.seq} does not say which images it is about")
    plan = Registration.of(entry).plan
    for part in PARTS:
        if digest_of_part(ledger, entry.dataset, part) != entry.event["parts"].get(part):
            remarks.doubts.append(f"the {part} images that entry {entry.seq} is about were changed")
        unit, members = read_part(ledger, entry.dataset, part)
        if unit != unit_of(plan):
            remarks.doubts.append(f"the {part} images of entry {entry.seq} are kept as units of another kind")
        if splits_client(plan, members.units):
            remarks.doubts.append(f"the {part} images of entry {entry.seq} are not one unit, as its plan says")
        if not set(members.images.tolist()) <= named:
            remarks.doubts.append(f"entry {entry.seq} is about {part} images that have no name")


def _digest_of_reply(entry: Entry) -> str:
    return str(entry.event["reply"]) if entry.kind == "note" else entry.content_digest


def check_replies(ledger: Ledger, entries: Sequence[Entry], remarks: Remarks) -> None:
    """Check that each kept reply was committed."""
    with remarks.about("the replies that are kept"):
        # A note holds the reply of a round that nothing was charged for, under the masks of a secure sum.
        commits = {entry.request_id: entry for entry in entries if entry.kind == "note" and "reply" in entry.event}
        commits |= {entry.request_id: entry for entry in entries if entry.kind == "commit"}
        for ident, run, client, seq, kind in ledger.query(
            "SELECT request_id, run, client, seq, typeof(content) FROM reply"
        ):
            entry = commits.get(ident)
            if entry is None or (seq, run, client) != (entry.seq, entry.event.get("run"), entry.event.get("client")):
                remarks.doubts.append(f"a reply is kept (of entry {seq}) that was not committed")
            elif kind != "blob" or hashlib.sha256(ledger.reply(ident) or b"").hexdigest() != _digest_of_reply(entry):
                remarks.doubts.append(f"the reply that is kept of entry {seq} is not the one that was committed")
