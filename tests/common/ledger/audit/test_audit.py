"""An audit of ledgers: an honest one passes and stays as it was; heads show what nothing else does.

Drives `common.commands.audit_ledger`, `common.ledger.audit.costs`, `common.ledger.audit.read_only`,
`common.ledger.audit.report`.
"""

import hashlib
import json
import os
import shutil
import sqlite3
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from common.commands.audit_ledger import audit_app
from common.errors import LedgerError
from common.ledger.audit.audit import audit_ledger, kept_heads
from common.ledger.audit.costs import worst_image
from common.ledger.budget import Charge
from common.ledger.database import Ledger
from common.ledger.holder_keys import HolderKeys
from common.ledger.image_index import Members
from common.ledger.registrations import charges_in
from common.ledger.signed_heads import SignedHead, sign_head
from common.ledger.transactions import LedgerSession
from common.privacy.events import CountsEvent, DpSgdEvent
from tests.support.ledger.builders import KEYS, PLAN, holding, release, rewrite, spent_so_far, tamper, write_honest

app = typer.Typer()
app.add_typer(audit_app, name="audit")


def test_audit_of_an_honest_ledger_is_verified_by_its_heads_only(
    honest: tuple[Path, list[SignedHead]], heads: list[tuple[str, SignedHead]]
) -> None:
    alone, with_heads = audit_ledger(honest[0]), audit_ledger(honest[0], heads)

    assert (alone.verdict, alone.remarks.doubts) == ("internally consistent", [])
    assert (with_heads.verdict, with_heads.remarks.doubts, with_heads.remarks.warnings) == ("verified", [], [])
    first, second = with_heads.runs
    assert (first.rounds, first.closing, first.closed, first.sent) == (3, True, True, 4)
    assert (second.rounds, second.closing, second.closed, second.sent) == (1, False, False, 1)
    assert first.spent == first.planned == PLAN.spent()
    assert second.spent.pld < second.planned.pld
    assert [found.images for found in with_heads.datasets] == [
        {"training": 6, "evaluation": 2},
        {"training": 6, "evaluation": 2},
    ]
    assert "policy allows 8" in with_heads.refusals[0].text
    assert [note.run for note in with_heads.notes] == ["first", "fourth"]
    assert with_heads.worst is not None
    assert with_heads.worst.runs == 2
    assert with_heads.worst.images == 12


def test_audit_of_the_worst_image_equals_what_the_budget_decides_by(honest: tuple[Path, list[SignedHead]]) -> None:
    ledger = Ledger(honest[0], durable=False)
    expected = spent_so_far(charges_in(ledger), delta=1e-5)
    ledger.close()
    found = audit_ledger(honest[0]).worst

    assert found is not None
    assert found.spent == expected
    assert expected.pld > PLAN.spent().pld


@pytest.mark.parametrize("seed", range(4))
def test_worst_image_equals_the_budget_on_any_history(seed: int) -> None:
    rng = np.random.default_rng(seed)

    def charge() -> Charge:
        images = {part: rng.integers(0, 6, size=4) for part in ("training", "evaluation")}
        members = {part: Members(found, rng.integers(0, 2, size=4)) for part, found in images.items()}
        planned = {"training": [DpSgdEvent(1.0, 9.0, 2)], "evaluation": [CountsEvent(30.0, 3)]}
        released = {"training": [DpSgdEvent(1.0, 9.0, 1)], "evaluation": [CountsEvent(30.0, 1)]}
        return Charge("group" if rng.random() < 0.5 else "image", members, planned, released, bool(rng.random() < 0.5))

    charges = [charge() for _ in range(3)]

    assert worst_image(charges, delta=1e-5).spent == spent_so_far(charges, delta=1e-5)


def test_audit_sees_an_owner_who_signs_everything_anew_by_heads_only(
    tmp_path: Path, heads: list[tuple[str, SignedHead]]
) -> None:
    file = tmp_path / "anew.sqlite"
    write_honest(file, replace(PLAN, noise_multiplier=9.0))

    assert audit_ledger(file).verdict == "internally consistent"
    report = audit_ledger(file, heads)
    assert report.verdict == "DOUBTFUL"
    assert "it was rewritten" in report.remarks.doubts[0]


def test_audit_sees_an_older_copy_by_heads_only(tmp_path: Path, heads: list[tuple[str, SignedHead]]) -> None:
    file = tmp_path / "older.sqlite"
    ledger = Ledger(file, durable=False)
    release(LedgerSession(ledger, KEYS, simulated=True), "first", PLAN, (holding(0, 6), holding(6, 8)), [(1, "train")])
    ledger.close()

    assert audit_ledger(file).verdict == "internally consistent"
    report = audit_ledger(file, heads)
    assert report.verdict == "DOUBTFUL"
    assert "it is an older copy" in report.remarks.doubts[-1]


def test_audit_refuses_a_forged_head(copy: Path, heads: list[tuple[str, SignedHead]]) -> None:
    forged = replace(heads[0][1], signature=HolderKeys.simulated(1, "b").sign(heads[0][1].message))

    report = audit_ledger(copy, [("a", forged), heads[1]])

    assert report.verdict == "DOUBTFUL"
    assert "not signed by the key" in report.remarks.doubts[0]


def test_audit_with_heads_of_other_ledgers_is_not_verified(copy: Path) -> None:
    other = HolderKeys.simulated(1, "b")
    head = sign_head(other, Ledger.head(_empty(copy.parent)))

    report = audit_ledger(copy, [("b", head)])

    assert report.verdict == "internally consistent"
    assert "none of the given heads" in report.remarks.warnings[0]


def test_audit_doubts_a_client_that_came_with_two_ledgers(copy: Path, heads: list[tuple[str, SignedHead]]) -> None:
    other = sign_head(HolderKeys.simulated(1, "b"), Ledger.head(_empty(copy.parent)))

    assert "another ledger too" in audit_ledger(copy, [*heads, ("a", other)]).remarks.doubts[0]


def _empty(folder: Path) -> Ledger:
    return Ledger(folder / "empty-ledger.sqlite", durable=False)


def test_audit_warns_of_entries_that_no_head_speaks_for(copy: Path, heads: list[tuple[str, SignedHead]]) -> None:
    report = audit_ledger(copy, heads[:1])

    assert report.verdict == "verified"
    assert "came after the newest head" in report.remarks.warnings[0]


def test_audit_only_warns_of_a_clock_that_went_back(copy: Path) -> None:
    rewrite(copy, lambda entries: [*entries[:-1], replace(entries[-1], time="2020-01-01T00:00:00.000+00:00")])

    report = audit_ledger(copy)

    assert report.verdict == "internally consistent"
    assert "older than the one before it" in report.remarks.warnings[0]


def listing(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


@pytest.mark.parametrize("mode", ["WAL", "TRUNCATE"])
def test_audit_leaves_no_trace(tmp_path: Path, mode: str) -> None:
    file = tmp_path / "odd name?#%.sqlite"
    write_honest(file)
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA journal_mode = {mode}")
    connection.close()
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}

    assert audit_ledger(file).verdict == "internally consistent"
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


def test_audit_reads_a_ledger_that_is_being_written(tmp_path: Path) -> None:
    file = tmp_path / "live.sqlite"
    ledger = Ledger(file, durable=True)
    release(LedgerSession(ledger, KEYS, simulated=True), "first", PLAN, (holding(0, 6), holding(6, 8)), [(1, "train")])
    before = listing(tmp_path)
    assert "live.sqlite-wal" in before

    report = audit_ledger(file)

    assert (report.verdict, report.entries) == ("internally consistent", 4)
    assert listing(tmp_path) == before
    ledger.close()


def test_audit_reads_what_a_kill_left(tmp_path: Path) -> None:
    live, left = tmp_path / "live", tmp_path / "left"
    live.mkdir()
    left.mkdir()
    ledger = Ledger(live / "a.sqlite", durable=True)
    release(LedgerSession(ledger, KEYS, simulated=True), "first", PLAN, (holding(0, 6), holding(6, 8)), [(1, "train")])
    for name in ("a.sqlite", "a.sqlite-wal"):  # without the index that a living process shares
        shutil.copy(live / name, left / name)
    ledger.close()
    before = sorted(os.listdir(left))

    assert audit_ledger(left / "a.sqlite").entries == 4
    assert sorted(os.listdir(left)) == before


def test_audit_rolls_half_a_transaction_back_in_a_copy(copy: Path, tmp_path: Path) -> None:
    connection = sqlite3.connect(copy, isolation_level=None)
    connection.execute("PRAGMA journal_mode = TRUNCATE")
    connection.execute("PRAGMA cache_size = 1")
    connection.execute("BEGIN IMMEDIATE")
    for number in range(2000):
        name = hashlib.sha256(str(number).encode()).digest()
        connection.execute("INSERT INTO fingerprint (name, image, seq) VALUES (?, 1, 2)", (name,))
    left = tmp_path / "left"
    left.mkdir()
    for ending in ("", "-journal"):
        shutil.copy(f"{copy}{ending}", left / f"a.sqlite{ending}")
    connection.close()
    before = listing(left)
    assert before["a.sqlite-journal"]

    assert audit_ledger(left / "a.sqlite").verdict == "internally consistent"
    assert listing(left) == before


def test_audit_of_a_damaged_page_is_doubtful(copy: Path) -> None:
    content = bytearray(copy.read_bytes())
    content[4096:] = bytes(len(content) - 4096)
    copy.write_bytes(content)

    report = audit_ledger(copy)

    assert report.verdict == "DOUBTFUL"
    assert any("damaged" in doubt or "cannot be read" in doubt for doubt in report.remarks.doubts)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.999])
def test_audit_of_a_file_that_was_cut_short_is_doubtful(copy: Path, share: float) -> None:
    copy.write_bytes(copy.read_bytes()[: int(copy.stat().st_size * share)])

    assert audit_ledger(copy).verdict == "DOUBTFUL"


@pytest.mark.parametrize("content", [b"", b"epsilon <= 1, honestly\n", b"SQLite format 3\0 and then nothing"])
def test_audit_refuses_what_is_no_ledger(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.sqlite"
    file.write_bytes(content)

    with pytest.raises(LedgerError, match="not a ledger"):
        audit_ledger(file)
    assert listing(tmp_path) == {"file.sqlite": content}


def test_audit_refuses_another_database(tmp_path: Path) -> None:
    file = tmp_path / "other.sqlite"
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE entry (a)")
    connection.close()

    with pytest.raises(LedgerError, match="lacks a ledger's tables"):
        audit_ledger(file)


def test_audit_makes_no_file_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        audit_ledger(tmp_path / "none.sqlite")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ['{"client": "a"}', "[]", '{"client": ["a"], "ledger": 1, "seq": "2"}', "half"])
def test_kept_heads_refuses_other_lines(tmp_path: Path, heads: list[tuple[str, SignedHead]], line: str) -> None:
    file = tmp_path / "heads.jsonl"
    file.write_text(line + "\n")
    with pytest.raises(LedgerError, match="cannot be read as heads"):
        kept_heads(file)

    odd = {"client": "a"} | asdict(heads[0][1]) | {"seq": "2"}
    file.write_text(json.dumps(odd) + "\n")
    with pytest.raises(LedgerError, match="another kind"):
        kept_heads(file)


def write_heads(file: Path, heads: list[tuple[str, SignedHead]]) -> str:
    file.write_text("".join(json.dumps({"client": who} | asdict(head)) + "\n" for who, head in heads))
    return str(file)


def test_command_says_verified_and_what_was_spent(
    copy: Path, heads: list[tuple[str, SignedHead]], tmp_path: Path
) -> None:
    kept = write_heads(tmp_path / "heads.jsonl", heads)

    done = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["audit", "ledger", str(copy), "--heads", kept])

    assert done.exit_code == 0
    assert "copy.sqlite: verified" in done.output
    assert "NOT PRIVATE: took part" in done.output
    assert max(map(len, done.output.splitlines())) <= 80


def test_command_prints_json_alone(copy: Path) -> None:
    done = CliRunner().invoke(app, ["audit", "ledger", str(copy), "--json"])

    found = json.loads(done.output)["ledgers"][0]
    assert done.exit_code == 0
    assert found["verdict"] == "internally consistent"
    assert found["runs"][0]["spent"]["pld"] == PLAN.spent().pld


def test_command_exits_with_1_on_a_doubt_and_2_on_no_ledger(copy: Path, tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no ledger\n")
    tamper(copy, lambda db: db.execute("UPDATE entry SET event = replace(event, '4.0', '9.0') WHERE seq = 2"))
    run = CliRunner().invoke

    assert run(app, ["audit", "ledger", str(copy)]).exit_code == 1
    both = run(app, ["audit", "ledger", str(copy), str(text)])
    assert both.exit_code == 2
    assert "DOUBTFUL" in both.output
    assert run(app, ["audit", "ledger", str(copy), "--heads", str(text)]).exit_code == 2


def test_command_shows_names_without_what_a_terminal_obeys(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "a.sqlite", durable=False)
    LedgerSession(ledger, KEYS, simulated=False).note("run", "\x1b[2Ja[bold]", "\x07rings")
    ledger.close()

    output = CliRunner().invoke(app, ["audit", "ledger", str(tmp_path / "a.sqlite")]).output

    assert "\x1b[2J" not in output
    assert "\x07" not in output
    assert "a[bold]" in output
