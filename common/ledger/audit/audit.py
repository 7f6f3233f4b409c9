"""The audit of a whole ledger, without keys and without changing it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.errors import LedgerError
from common.ledger.audit.costs import WorstImage, cost_alone, cost_of, worst_image
from common.ledger.audit.integrity_checks import (
    Remarks,
    check_entries,
    check_file,
    check_genesis,
    check_images,
    check_replies,
    read_entries,
)
from common.ledger.audit.read_only import DamagedLedgerError, open_read_only
from common.ledger.audit.report import AuditedRun, DataSet, LedgerNote, LedgerReport
from common.ledger.audit.run_checks import RunEntries, check_runs
from common.ledger.database import Ledger
from common.ledger.hash_chain import Entry
from common.ledger.image_index import PARTS, read_part
from common.ledger.registrations import CLOSED, charges_in, planned_events
from common.ledger.signed_heads import SignedHead, read_heads
from common.privacy.events import from_json, merged
from common.privacy.noise_error import in_words

Heads = Sequence[tuple[str, SignedHead]]


def kept_heads(file: Path) -> Heads:
    """Read the heads that a server keeps in a file, checking their types.

    Raises:
        LedgerError: The file cannot be read, or holds something else.
    """
    heads = read_heads(file)
    for client, head in heads:
        *texts, seq = client, head.ledger, head.hash, head.public_key, head.signature, head.seq
        if not all(isinstance(text, str) for text in texts) or type(seq) is not int:
            raise LedgerError(f"{file} cannot be read as heads of ledgers: a line holds values of another kind")
    return heads


def audit_ledger(file: Path, heads: Heads | None = None) -> LedgerReport:
    """Check a ledger and recompute what it says was spent.

    Guarantee: the file does not change, and no file is made beside it. `heads` are heads that a server, or anyone but
    the ledger's owner, has kept.

    Raises:
        LedgerError: The file is not a ledger, or cannot be read.
    """
    try:
        with open_read_only(file) as ledger:
            return _audit(ledger, heads)
    except DamagedLedgerError as error:
        return LedgerReport(file, "", False, 0, "", "", remarks=Remarks([str(error)]))


def _audit(ledger: Ledger, heads: Heads | None) -> LedgerReport:
    remarks = Remarks()
    check_file(ledger, remarks)
    entries = read_entries(ledger, remarks)
    check_entries(entries, remarks)
    ident, simulated = check_genesis(entries, remarks)
    runs = check_runs(entries, remarks)
    check_images(ledger, entries, remarks)
    check_replies(ledger, entries, remarks)
    fitting = check_heads(ident, entries, heads, remarks)
    times = [entry.time[:19].replace("T", " ") for entry in entries] or [""]
    return LedgerReport(
        file=ledger.path,
        ledger=ident,
        simulated=simulated,
        entries=len(entries),
        first=times[0],
        last=times[-1],
        heads=len(fitting),
        newest_head=max((head.seq for head in fitting), default=0),
        remarks=remarks,
        runs=tuple(audited for run in runs if (audited := _audited(run, remarks)) is not None),
        datasets=_datasets(ledger, remarks),
        refusals=_notes(entries, "refuse"),
        notes=_notes(entries, "note"),
        worst=_worst(ledger, runs, remarks),
        noise=_noise(runs, remarks),
        hashes={entry.seq: entry.hash for entry in entries},
    )


def check_heads(ledger: str, entries: Sequence[Entry], heads: Heads | None, remarks: Remarks) -> list[SignedHead]:
    """Compare a ledger with its kept heads and return those that fit.

    Each head that does not fit adds a line to the remarks.
    """
    hashes = {entry.seq: entry.hash for entry in entries}
    good: list[SignedHead] = []
    own = [(client, head) for client, head in heads or () if head.ledger == ledger]
    for _, head in own:
        with remarks.about(f"the head of entry {head.seq}"):
            _check_head(head, hashes)
            good.append(head)
    clients = {client for client, _ in own}
    # A holder who starts a second ledger has an unspent budget in it, over the same images.
    for client in sorted({client for client, head in heads or () if client in clients and head.ledger != ledger}):
        remarks.doubts.append(f"client {client} came with another ledger too: what it spent there is not in this one")
    if heads is not None and not own:
        remarks.warnings.append("none of the given heads belong to this ledger: an older copy would not be detected")
    later = max(hashes, default=0) - max((head.seq for head in good), default=0)
    if good and later > 0:
        remarks.warnings.append(
            f"the last {later} entries came after the newest head: only the hash chain confirms them"
        )
    return good


def _check_head(head: SignedHead, hashes: Mapping[int, str]) -> None:
    head.check()
    if head.seq > max(hashes, default=0):
        raise LedgerError("the ledger ends before it: it is an older copy, and what was spent since is missing")
    if hashes.get(head.seq) != head.hash:
        raise LedgerError("the ledger has another entry in its place: it was rewritten")


def _audited(run: RunEntries, remarks: Remarks) -> AuditedRun | None:
    agreed, plan = run.agreed, run.agreed.plan
    with remarks.about(f"what client {agreed.client} spent in run {agreed.run[:8]}"):
        charges = [entry.event["charges"] for entry in run.reserves]
        events = {part: merged(from_json(event) for charge in charges for event in charge[part]) for part in PARTS}
        return AuditedRun(
            run=agreed.run,
            client=agreed.client,
            dataset=agreed.dataset,
            plan=plan,
            rounds=run.reserved("train"),
            closing=run.reserved("closing") > 0,
            sent=len(run.commits),
            closed=run.closed_at > 0,
            events=events,
            spent=cost_of(events, delta=plan.delta),
            planned=cost_of(planned_events(plan), delta=plan.delta),
            alone=cost_alone(planned_events(plan), delta=plan.delta),
        )
    return None


def _worst(ledger: Ledger, runs: Sequence[RunEntries], remarks: Remarks) -> WorstImage | None:
    if not runs:
        return None
    with remarks.about("what the worst-off image has spent"):
        return worst_image(charges_in(ledger), delta=min(run.agreed.plan.delta for run in runs))
    return None


def _noise(runs: Sequence[RunEntries], remarks: Remarks) -> str:
    """Return one sentence on the noise of all plans that were begun.

    The error is charged as if one image had been in all of them.
    """
    plans = [planned_events(run.agreed.plan) for run in runs if run.reserves]
    events = [event for plan in plans for listed in plan.values() for event in listed]
    with remarks.about("the error of the noise"):
        return in_words([events]) if events else ""
    return ""


def _datasets(ledger: Ledger, remarks: Remarks) -> tuple[DataSet, ...]:
    datasets: dict[str, DataSet] = {}
    with remarks.about("the data sets"):
        for name, part in ledger.query("SELECT dataset, name FROM part ORDER BY rowid"):
            unit, members = read_part(ledger, name, part)
            dataset = datasets.setdefault(name, DataSet(name, unit, {}, {}))
            dataset.images[part] = len(set(members.images.tolist()))
            dataset.units[part] = len(set(members.units.tolist()))
    return tuple(datasets.values())


def _notes(entries: Sequence[Entry], kind: str) -> tuple[LedgerNote, ...]:
    return tuple(
        LedgerNote(
            entry.seq, entry.time, str(entry.event.get("run")), str(entry.event.get("client")), _text(entry.event)
        )
        for entry in entries
        # Markers of secure sums, one or two a round, say nothing to a reader.
        if entry.kind == kind and entry.event.get("note") != CLOSED and "about" not in entry.event
    )


def _text(event: dict[str, Any]) -> str:
    if "note" in event:
        return str(event["note"])
    return f"{event.get('asked', '')} in round {event.get('round', '')}: {event.get('why', '')}"
