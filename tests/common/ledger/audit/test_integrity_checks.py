"""Every change to a copy of a ledger is found.

Drives `common.ledger.audit.run_checks`.
"""

import sqlite3
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from common.ledger.audit.audit import audit_ledger
from common.ledger.audit.integrity_checks import Remarks, check_entries
from common.ledger.database import Ledger
from common.ledger.hash_chain import Entry
from common.ledger.image_index import PARTS, digest_of_added, digest_of_part
from common.ledger.registrations import Release, charges_in, request_id, run_fields
from common.ledger.signed_heads import SignedHead
from common.ledger.transactions import LedgerSession
from common.privacy.counts.counts_plan import CountsPlan
from tests.support.ledger.builders import KEYS, PLAN, WHOLE, Rewrite, Tamper, holding, release, rewrite, tamper


def at(entries: list[Entry], kind: str, number: int = 0) -> int:
    return [place for place, entry in enumerate(entries) if entry.kind == kind][number]


def with_event(entries: list[Entry], where: int, **more: Any) -> list[Entry]:
    entries[where] = replace(entries[where], event=entries[where].event | more)
    return entries


def without(entries: list[Entry], *places: int) -> list[Entry]:
    return [entry for place, entry in enumerate(entries) if place not in places]


def swapped(entries: list[Entry], one: int, other: int) -> list[Entry]:
    entries[one], entries[other] = entries[other], entries[one]
    return entries


def one_more_round(entries: list[Entry], run: str, server_round: int) -> list[Entry]:
    """A reserve of a fourth round, or of one after the end, with the right id and charges."""
    like = next(entry for entry in entries if entry.kind == "reserve" and entry.event["run"] == run)
    ident = request_id(run, "a", PLAN.digest, server_round, "train")
    return [*entries, replace(like, request_id=ident, event=like.event | run_fields(run, "a", server_round))]


def with_plan(entries: list[Entry], **more: Any) -> list[Entry]:
    where = at(entries, "register")
    return with_event(entries, where, plan=entries[where].event["plan"] | more)


def other_agreement(entries: list[Entry]) -> Entry:
    """The same run and client, with another plan of equal cost."""
    plan, like = replace(PLAN, max_grad_norm=2.0), entries[at(entries, "register")]
    ident = request_id("first", "a", plan.digest, 0, "register")
    return replace(like, request_id=ident, event=like.event | {"plan": plan.as_json()})


CHANGES: dict[str, tuple[Tamper, str]] = {
    "an event": (
        lambda db: db.execute("UPDATE entry SET event = replace(event, '4.0', '9.0') WHERE seq = 2"),
        "entry 2 was changed",
    ),
    "an entry": (lambda db: db.execute("DELETE FROM entry WHERE seq = 4"), "stands at place 4"),
    "the last reserve": (
        lambda db: db.execute("DELETE FROM entry WHERE seq >= (SELECT max(seq) - 3 FROM entry)"),
        "a reply is kept",
    ),
    "the order": (
        lambda db: [db.execute("UPDATE entry SET seq = ? WHERE seq = ?", pair) for pair in ((99, 3), (3, 4), (4, 99))],
        "chain is broken",
    ),
    "a time": (lambda db: db.execute("UPDATE entry SET time = '2020' || substr(time, 5) WHERE seq = 5"), "entry 5"),
    "all entries": (lambda db: db.execute("DELETE FROM entry"), "has no entries"),
    "a hash": (lambda db: db.execute("UPDATE entry SET hash = ? WHERE seq = 3", ("0" * 64,)), "entry 3 was changed"),
    "a repeated name": (
        # SQLite reads the first of two equal names and Python the last: the chain alone would not see it.
        lambda db: db.execute('UPDATE entry SET event = \'{"run":"none",\' || substr(event, 2) WHERE seq = 3'),
        "read in two ways",
    ),
    "a number that is none": (
        lambda db: [
            db.execute("DROP INDEX entry_of_run"),  # which would refuse it
            db.execute("UPDATE entry SET event = replace(event, '\"round\":1', '\"round\":NaN') WHERE seq = 3"),
        ],
        "entry 3: it cannot be read",
    ),
    "no named values": (lambda db: db.execute("UPDATE entry SET event = '[]' WHERE seq = 3"), "no named values"),
    "bytes for text": (lambda db: db.execute("UPDATE entry SET time = x'00' WHERE seq = 3"), "holds no text"),
    "a deleted name": (lambda db: db.execute("DELETE FROM fingerprint WHERE row = 3"), "names of images that entry 2"),
    "a new name": (
        lambda db: db.execute("INSERT INTO fingerprint (name, image, seq) VALUES (?, 1, 2)", (b"x" * 32,)),
        "names of images that entry 2",
    ),
    "a stray name": (
        lambda db: db.execute("INSERT INTO fingerprint (name, image, seq) VALUES (?, 1, 3)", (b"x" * 32,)),
        "fingerprint has rows that no entry vouches for",
    ),
    "a moved name": (lambda db: db.execute("UPDATE fingerprint SET image = 7 WHERE row = 1"), "names of images"),
    "a name of another kind": (
        lambda db: db.execute("UPDATE fingerprint SET name = 'x' WHERE row = 1"),
        "never writes",
    ),
    "a stray link": (
        lambda db: db.execute("INSERT INTO link (image, same, seq) VALUES (2, 1, 3)"),
        "link has rows that no entry vouches for",
    ),
    "a link": (lambda db: db.execute("INSERT INTO link (image, same, seq) VALUES (2, 1, 2)"), "names of images"),
    "a part": (
        lambda db: db.execute("UPDATE part SET images = zeroblob(length(images)) WHERE rowid = 1"),
        "training images that entry 2 is about were changed",
    ),
    "half a part": (lambda db: db.execute("UPDATE part SET images = x'01' WHERE rowid = 1"), "the table part"),
    "units": (
        lambda db: db.execute("UPDATE part SET units = zeroblob(length(units)) WHERE rowid = 1"),
        "training images that entry 2 is about were changed",
    ),
    "a kind of unit": (lambda db: db.execute("UPDATE part SET unit = 'group' WHERE rowid = 2"), "evaluation images"),
    "a missing part": (lambda db: db.execute("DELETE FROM part WHERE rowid = 1"), "lacks the images"),
    "a stray part": (
        lambda db: db.execute("INSERT INTO part VALUES (?, 'training', 'image', x'', x'')", ("f" * 64,)),
        "no entry vouches for the data set ffffffffffff",
    ),
    "a reply": (lambda db: db.execute("UPDATE reply SET content = x'01'"), "not the one that was committed"),
    "a stray reply": (
        lambda db: db.execute("INSERT INTO reply VALUES ('x', 'first', 'a', 5, x'01')"),
        "that was not committed",
    ),
    "a trigger more": (
        lambda db: db.execute("CREATE TRIGGER mute BEFORE INSERT ON entry BEGIN SELECT RAISE(IGNORE); END"),
        "the trigger mute is not part of a ledger",
    ),
    "an index less": (lambda db: db.execute("DROP INDEX entry_of_run"), "the index entry_of_run is missing"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_audit_finds_a_change(copy: Path, heads: list[tuple[str, SignedHead]], what: str) -> None:
    change, expected = CHANGES[what]
    tamper(copy, change)

    for report in (audit_ledger(copy), audit_ledger(copy, heads)):
        assert report.verdict == "DOUBTFUL"
        assert expected in "\n".join(report.remarks.doubts)


def hide_reserves(connection: sqlite3.Connection) -> None:
    """An index without the reserves: what was charged is there, and no look-up finds it."""
    (sql,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = 'entry_of_run'").fetchone()
    connection.execute("DROP INDEX entry_of_run")
    connection.execute(f"{sql} WHERE kind <> 'reserve'")
    connection.execute("PRAGMA writable_schema = 1")
    connection.execute("UPDATE sqlite_master SET sql = ? WHERE name = 'entry_of_run'", (sql,))


def test_audit_finds_an_index_that_hides_what_was_charged(copy: Path, heads: list[tuple[str, SignedHead]]) -> None:
    tamper(copy, hide_reserves)
    ledger = Ledger(copy, durable=False)
    assert charges_in(ledger) == []
    ledger.close()

    report = audit_ledger(copy, heads)

    assert report.verdict == "DOUBTFUL"
    assert "missing from index entry_of_run" in report.remarks.doubts[0]


@pytest.mark.parametrize(("split", "verdict"), [(True, "DOUBTFUL"), (False, "internally consistent")])
def test_audit_finds_a_whole_client_of_several_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: bool, verdict: str
) -> None:
    """A ledger that its owner's changed code wrote, with right hashes and signatures."""
    monkeypatch.setattr("common.ledger.transactions.splits_client", lambda plan, units: False)
    session = LedgerSession(Ledger(tmp_path / "ledger.sqlite", durable=False), KEYS, simulated=True)
    parts = (holding(0, 6, 1 if split else 6), holding(6, 7))
    release(session, "run", WHOLE, parts, [(1, "train"), (2, "train"), (3, "train")])
    session.ledger.close()

    report = audit_ledger(tmp_path / "ledger.sqlite")

    doubts = ["the training images of entry 2 are not one unit, as its plan says"] if split else []
    assert (report.verdict, report.remarks.doubts) == (verdict, doubts)


def test_check_entries_finds_one_request_id_twice() -> None:
    entries, remarks = [Entry(seq, "", "note", "2026-01-01", "same") for seq in (1, 2)], Remarks()

    check_entries(entries, remarks)

    assert "2 entries note have one request id" in remarks.doubts


def test_audit_finds_triggers_that_were_taken_away(copy: Path) -> None:
    tamper(copy, lambda db: None, keep_triggers=False)

    report = audit_ledger(copy)

    assert len(report.remarks.doubts) == 9
    assert "the trigger entry_DELETE is missing" in report.remarks.doubts


REWRITES: dict[str, tuple[Rewrite, str]] = {
    "a reserve left out": (lambda e: without(e, at(e, "reserve")), "not reserved before it"),
    "a reserve after its commit": (lambda e: swapped(e, at(e, "reserve"), at(e, "commit")), "not reserved before it"),
    "a reserve before its agreement": (
        lambda e: swapped(e, at(e, "register"), at(e, "reserve")),
        "it came before the agreement",
    ),
    "the agreement left out": (lambda e: without(e, at(e, "register")), "belongs to no agreement"),
    "lower charges": (
        lambda e: with_event(e, at(e, "reserve"), charges={"training": [], "evaluation": []}),
        "not what the plan says",
    ),
    "more noise": (lambda e: with_plan(e, noise_multiplier=9.0), "do not follow from its plan"),
    "a wrong request": (
        lambda e: [*e[:2], replace(e[2], request_id="0" * 64), *e[3:]],
        "request id does not follow",
    ),
    "other images": (lambda e: [*e[:2], replace(e[2], dataset="0" * 64), *e[3:]], "other images than the agreement"),
    "no content": (lambda e: [*e[:2], replace(e[2], content_digest=""), *e[3:]], "no valid digest"),
    "a round too many": (lambda e: one_more_round(e, "first", 4), "its plan has 3"),
    "a round after the end": (lambda e: one_more_round(e, "first", 4), "reserves in a run that entry"),
    "an agreement twice": (lambda e: [*e, other_agreement(e)], "for the second time"),
    "a note changed": (lambda e: with_event(e, at(e, "note"), note="nothing"), "request id does not follow"),
    "a refusal changed": (lambda e: with_event(e, at(e, "refuse"), asked="train"), "request id does not follow"),
    "another owner": (lambda e: with_event(e, 0, **{"public-key": "ab" * 32}), "does not follow from its public key"),
    "another id": (lambda e: with_event(e, 0, ledger="ab" * 16), "does not follow from its public key"),
    "no word on simulation": (lambda e: with_event(e, 0, simulated="no"), "whether this is a simulation"),
    "another first request": (lambda e: [replace(e[0], request_id="0" * 64), *e[1:]], "the first entry: its request"),
    "no genesis": (lambda e: e[1:], "does not say whose ledger"),
    "a wrong agreement": (lambda e: [e[0], replace(e[1], request_id="0" * 64), *e[2:]], "(register): its request id"),
    "no parts": (lambda e: with_event(e, 1, parts={}), "does not say which images"),
    "a rate that is none": (lambda e: with_plan(e, sample_rate=2.0), "a sample rate or a delta that is out of range"),
    "a delta that is none": (lambda e: with_plan(e, delta=1.0), "a sample rate or a delta that is out of range"),
    "another mechanism": (lambda e: with_plan(e, mechanism="client-dp"), "of an unknown kind"),
    "more counts": (lambda e: with_plan(e, counts=asdict(CountsPlan(9, 25.0, 4.0))), "other rounds for counts"),
    "another release": (lambda e: with_event(e, 2, release="all"), "an unknown release"),
    "negative noise": (lambda e: with_plan(e, noise_multiplier=-4.0), "noise or a bound that is not positive"),
    "words for numbers": (lambda e: with_plan(e, num_rounds="3"), "not a whole number"),
    "half a plan": (lambda e: with_event(e, at(e, "register"), plan={"mechanism": "dp-sgd"}), "not a privacy plan"),
    "an unknown kind": (lambda e: [*e, replace(e[-1], kind="joke")], "of an unknown kind"),  # type: ignore[arg-type]
    "no time": (lambda e: [*e[:-1], replace(e[-1], time="soon")], "the time of entry"),
}


@pytest.mark.parametrize("what", REWRITES)
def test_audit_finds_a_change_under_a_new_chain(copy: Path, heads: list[tuple[str, SignedHead]], what: str) -> None:
    change, expected = REWRITES[what]
    rewrite(copy, change)

    assert expected in "\n".join(audit_ledger(copy).remarks.doubts)
    assert audit_ledger(copy, heads).verdict == "DOUBTFUL"


def vouch(file: Path) -> None:
    """Let the entries of a changed ledger vouch for what is in it now, as an owner can."""

    ledger = Ledger(file, durable=False)
    found = {
        entry.seq: {
            "parts": {part: digest_of_part(ledger, entry.dataset, part) for part in PARTS},
            "added": digest_of_added(ledger, entry.seq),
        }
        for entry in ledger.entries("kind = 'register'")
    }
    ledger.close()
    rewrite(file, lambda entries: [replace(e, event=e.event | found.get(e.seq, {})) for e in entries])


VOUCHED: dict[str, tuple[Tamper, str]] = {
    "a link to nowhere": (
        lambda db: db.execute("INSERT INTO link (image, same, seq) VALUES (99, 1, 2)"),
        "the table link is about images that have no name",
    ),
    "images without a name": (
        lambda db: db.execute("DELETE FROM fingerprint WHERE image = 1"),
        "entry 2 is about training images that have no name",
    ),
    "another kind of unit": (
        lambda db: db.execute("UPDATE part SET unit = 'group' WHERE rowid = 1"),
        "the training images of entry 2 are kept as units of another kind",
    ),
}


@pytest.mark.parametrize("what", VOUCHED)
def test_audit_finds_images_that_cannot_be_whatever_the_entries_say(copy: Path, what: str) -> None:
    change, expected = VOUCHED[what]
    tamper(copy, change)
    vouch(copy)

    report = audit_ledger(copy)

    assert report.verdict == "DOUBTFUL"
    assert all(expected in doubt for doubt in report.remarks.doubts)


def test_audit_only_warns_of_a_reply_that_left_after_the_end(copy: Path) -> None:
    def late(entries: list[Entry]) -> list[Entry]:
        last = max(place for place, entry in enumerate(entries) if entry.event.get("release") == "closing")
        closed = next(place for place, entry in enumerate(entries) if entry.event.get("note") == "closed")
        return swapped(entries, last, closed)

    rewrite(copy, late)
    report = audit_ledger(copy)

    assert report.verdict == "internally consistent"
    assert any("left after its run was closed" in warning for warning in report.remarks.warnings)


def test_audit_of_a_rewritten_honest_ledger_is_what_it_was(copy: Path, heads: list[tuple[str, SignedHead]]) -> None:
    rewrite(copy, lambda entries: entries)

    assert audit_ledger(copy, heads).verdict == "verified"


def labelled(folder: Path, what: list[tuple[int, Release]]) -> Path:
    """A ledger of a run whose class weights follow from label counts."""
    ledger = Ledger(folder / "a.sqlite", durable=False)
    session = LedgerSession(ledger, KEYS, simulated=True)
    release(session, "first", replace(PLAN, label_noise_stddev=8.0), (holding(0, 6), holding(6, 8)), what)
    ledger.close()
    return folder / "a.sqlite"


def test_audit_charges_label_counts_once(tmp_path: Path) -> None:
    report = audit_ledger(labelled(tmp_path, [(0, "labels"), (1, "train"), (2, "train"), (3, "train"), (3, "closing")]))

    assert report.remarks.doubts == []
    (run,) = report.runs
    assert run.spent == run.planned == replace(PLAN, label_noise_stddev=8.0).spent()
    assert run.spent.pld > PLAN.spent().pld


def again(entries: list[Entry]) -> list[Entry]:
    """A second charge of the label counts, with the right id and charges."""
    like = next(entry for entry in entries if entry.event.get("release") == "labels")
    ident = request_id("first", "a", replace(PLAN, label_noise_stddev=8.0).digest, 1, "labels")
    return [*entries, replace(like, request_id=ident, event=like.event | {"round": 1})]


def uncounted(entries: list[Entry]) -> list[Entry]:
    return [entry for entry in entries if entry.event.get("release") != "labels"]


LABELS: dict[str, tuple[Rewrite, str]] = {
    "twice": (again, "reserved 2 labels releases in run first, its plan has 1"),
    "never": (uncounted, "reserves a round before the label counts that its plan needs"),
    "not committed": (
        lambda e: [x for x in e if (x.kind, x.event.get("release")) != ("commit", "labels")],
        "reserves a round before the label counts that its plan needs",
    ),
    "free": (
        lambda e: with_event(e, at(e, "reserve"), charges={"training": [], "evaluation": []}),
        "not what the plan",
    ),
    "no noise": (lambda e: with_plan(e, label_noise_stddev=0), "noise or a bound that is not positive"),
}


@pytest.mark.parametrize("what", LABELS)
def test_audit_finds_a_change_of_label_counts_under_a_new_chain(tmp_path: Path, what: str) -> None:
    file, (change, expected) = labelled(tmp_path, [(0, "labels"), (1, "train")]), LABELS[what]
    rewrite(file, change)

    assert expected in "\n".join(audit_ledger(file).remarks.doubts)
