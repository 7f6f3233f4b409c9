"""An audit of runs: ledgers, heads and other files of a run that are missing or were changed are found."""

import json
import shutil
import sqlite3
from dataclasses import asdict
from pathlib import Path

import pytest

from common.config.schema import RunConfig
from common.ledger.database import Ledger
from common.ledger.holder_keys import HolderKeys
from common.ledger.signed_heads import sign_head
from common.ledger.transactions import LedgerSession
from common.privacy.batched_gradients import NOTE
from common.privacy.events import from_json
from common.privacy.noise_error import MAX_DRAWS, stated
from server.audit.audit import audit_run
from tests.support.ledger.audited_runs import RUN, SIZES, doubts, keep
from tests.support.ledger.frozen_files import FROZEN, copied


def test_audit_misses_a_ledger(run: Path) -> None:
    (run / "ledgers" / "00001.sqlite").unlink()

    assert "the ledger of client 00001 is missing" in doubts(run)


def test_audit_misses_all_ledgers_of_a_simulation(run: Path) -> None:
    shutil.rmtree(run / "ledgers")

    assert "the ledger of client 00002 is missing" in doubts(run)


def test_audit_misses_the_heads(run: Path) -> None:
    (run / "heads.jsonl").unlink()

    assert "heads.jsonl is missing" in doubts(run)


def test_audit_finds_a_noise_sampler_that_the_ledgers_did_not_charge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of an earlier version, restated as if its noise had a bound."""
    monkeypatch.chdir(FROZEN)
    run = copied("private-run", tmp_path)
    content = json.loads((run / "privacy.json").read_text())
    for client in content["clients"].values():
        client["events"]["training"][0] |= {"sampler": 1, "draws-per-step": MAX_DRAWS}
    content |= stated([from_json(event) for event in c["events"]["training"]] for c in content["clients"].values())
    (run / "privacy.json").write_text(json.dumps(content))

    assert "client 00000 charged a noise sampler whose error has no bound" in audit_run(run).remarks.doubts


def test_audit_finds_another_clients_ledger(run: Path) -> None:
    shutil.copy(run / "ledgers" / "00000.sqlite", run / "ledgers" / "00001.sqlite")

    assert "the ledger of client 00001 is not the one" in doubts(run)


def test_audit_finds_an_older_copy_of_a_ledger(run: Path, config: RunConfig) -> None:
    file = run / "ledgers" / "00001.sqlite"
    file.unlink()
    keep(file, config.plan(SIZES["00001"]), "00001", 1, closing=False)

    assert "ledger of client 00001: the head of entry 9: the ledger ends before it" in doubts(run)


def test_audit_finds_a_changed_ledger(run: Path) -> None:
    connection = sqlite3.connect(run / "ledgers" / "00001.sqlite")
    connection.execute("DROP TRIGGER entry_DELETE")
    connection.execute("DELETE FROM entry WHERE kind = 'reserve'")
    connection.commit()
    connection.close()

    assert "ledger of client 00001: the ledger's chain is broken" in doubts(run)


def test_audit_finds_a_forged_head(run: Path) -> None:
    line = json.loads((run / "heads.jsonl").read_text().splitlines()[0])
    with (run / "heads.jsonl").open("a") as stream:
        stream.write(json.dumps(line | {"signature": "0" * 128}) + "\n")

    assert "is not signed by the key" in doubts(run)


def test_audit_takes_one_head_after_the_stated_one_and_no_more(run: Path) -> None:
    keys, ledger = HolderKeys.simulated(0, "00001"), Ledger(run / "ledgers" / "00001.sqlite", durable=False)
    session = LedgerSession(ledger, keys, simulated=True)

    def say(what: str) -> None:
        session.note(RUN, "00001", what)
        with (run / "heads.jsonl").open("a") as stream:
            stream.write(json.dumps({"client": "00001"} | asdict(sign_head(keys, ledger.head()))) + "\n")

    say("the answer to the closing message")
    assert audit_run(run).verdict == "verified"
    say("something else")
    ledger.close()
    assert "client 00001 has sent heads after the one that is stated" in doubts(run)


def test_audit_finds_exact_counts_that_are_not_stated(run: Path) -> None:
    ledger = Ledger(run / "ledgers" / "00001.sqlite", durable=False)
    LedgerSession(ledger, HolderKeys.simulated(0, "00001"), simulated=True).note(RUN, "00001", "exact counts left")
    ledger.close()

    assert "exact counts left client 00001" in doubts(run)


def test_audit_finds_gradients_in_batches_that_are_not_stated(run: Path) -> None:
    ledger = Ledger(run / "ledgers" / "00001.sqlite", durable=False)
    LedgerSession(ledger, HolderKeys.simulated(0, "00001"), simulated=True).note(RUN, "00001", NOTE)
    ledger.close()

    assert "client 00001 computed gradients in batches, and the statement does not say so" in doubts(run)


def test_audit_finds_a_plan_beyond_the_target(run: Path) -> None:
    text = (run / "config.toml").read_text()
    (run / "config.toml").write_text(text.replace("target-epsilon = 4.0", "target-epsilon = 3.5"))

    assert "the target was 3.5" in doubts(run)


def test_audit_finds_noise_that_was_not_configured(run: Path) -> None:
    text = (run / "config.toml").read_text().replace("target-epsilon = 4.0", 'target-epsilon = ""')
    (run / "config.toml").write_text(text.replace('noise-multiplier = ""', "noise-multiplier = 1.5"))

    assert "another noise than the run was configured for" in doubts(run)


def test_audit_finds_another_epsilon_in_the_summary(run: Path) -> None:
    (run / "summary.json").write_text('{"epsilon_max": 1.0}')

    assert "summary.json: it says epsilon_max 1.0" in doubts(run)


def test_audit_finds_a_run_that_stopped_early_and_says_otherwise(run: Path) -> None:
    (run / "rounds.jsonl").write_text('{"round": 1, "clients": 3, "failures": {}}\n')

    assert "1 of 2 rounds were run" in doubts(run)
