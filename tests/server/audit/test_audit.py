"""An audit of runs: an honest run of each kind gets the verdict that can be given, and the command says so.

Drives `server.audit.run_report`, `server.commands.cli`.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bract import app
from common.config.schema import RunConfig
from common.errors import ConfigError
from server.audit.audit import audit_run
from server.reporting.privacy_statement import privacy_statement
from server.state.run_directory import RunDirectory
from tests.support.ledger.audited_runs import (
    ROUNDS,
    SETTINGS,
    SIZES,
    MakeConfig,
    doubts,
    edit,
    fewer_rounds,
    keep,
    more_noise,
    smaller_figures,
    write_run,
)


def test_audit_of_an_honest_run_is_verified(honest: Path) -> None:
    before = {str(file): file.read_bytes() for file in honest.rglob("*") if file.is_file()}

    report = audit_run(honest)

    assert (report.verdict, report.remarks.doubts, report.remarks.warnings) == ("verified", [], [])
    assert report.ledgers == 3
    assert {name: client.reserved for name, client in report.clients.items()} == dict.fromkeys(SIZES, ROUNDS)
    assert all(client.stated == client.recomputed for client in report.clients.values())
    assert {str(file): file.read_bytes() for file in honest.rglob("*") if file.is_file()} == before


def test_audit_of_an_interrupted_run_wants_the_whole_plan(tmp_path: Path, config: RunConfig) -> None:
    run = write_run(tmp_path / "run", config, rounds=1, complete=False)

    report = audit_run(run)

    assert (report.verdict, report.remarks.doubts) == ("verified", [])
    assert {client.rounds for client in report.clients.values()} == {ROUNDS}
    assert {client.reserved for client in report.clients.values()} == {1}
    edit(run, fewer_rounds)
    assert "1 rounds are charged where 2 must be" in doubts(run)


def test_audit_takes_fewer_reserved_rounds_where_a_client_failed(run: Path, config: RunConfig) -> None:
    name, plan = "00001", config.plan(SIZES["00001"])
    (run / "ledgers" / f"{name}.sqlite").unlink()
    head = keep(run / "ledgers" / f"{name}.sqlite", plan, name, 1, closing=True)
    heads = [line for line in (run / "heads.jsonl").read_text().splitlines(keepends=True) if name not in line]
    (run / "heads.jsonl").write_text("".join([*heads, json.dumps({"client": name} | asdict(head)) + "\n"]))
    edit(run, lambda s: s["clients"][name].update(ledger={"id": head.ledger, "seq": head.seq, "head": head.hash}))

    assert "client 00001 reserved 1 rounds, the statement charges 2" in doubts(run)
    (run / "rounds.jsonl").write_text(
        '{"round": 1, "clients": 3, "failures": {}}\n{"round": 2, "clients": 2, "failures": {"00001": "INTERNAL"}}\n'
    )
    report = audit_run(run)
    assert report.verdict == "verified"
    assert "client 00001 reserved 1 of 2 rounds" in report.remarks.warnings[0]


def test_audit_of_real_clients_says_that_ledgers_were_not_seen(tmp_path: Path, config: RunConfig) -> None:
    run = write_run(tmp_path / "run", config, simulated=False)
    shutil.rmtree(run / "ledgers")

    report = audit_run(run)

    assert (report.verdict, report.remarks.doubts, report.ledgers) == ("internally consistent", [], 0)
    done = CliRunner().invoke(app, ["audit", "run", str(run)])
    assert done.exit_code == 0
    assert "no ledger was read" in " ".join(done.output.split())


def test_audit_of_central_noise_names_who_must_be_trusted(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(SETTINGS | {"privacy.mechanism": "client-dp", "privacy.noise-multiplier": 3.0})
    run = write_run(tmp_path / "run", config)

    report = audit_run(run)

    assert (report.verdict, report.remarks.doubts) == ("internally consistent", [])
    assert "the server must be trusted" in report.trust
    edit(run, more_noise)
    assert "another noise than the run was configured for" in doubts(run)


def test_audit_compares_a_clip_bound_by_rule(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(SETTINGS | {"privacy.mechanism": "client-dp"})
    run = write_run(tmp_path / "run", config)
    assert (config.privacy.clipping_norm, audit_run(run).remarks.doubts) == (None, [])

    edit(run, lambda statement: statement.update(max_grad_norm=1.0))

    assert "the statement says max_grad_norm 1.0, the run was configured for" in doubts(run)


def test_audit_of_a_run_without_privacy_says_so(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config({"privacy.mechanism": "none", "output-dir": str(tmp_path / "run")})
    directory = RunDirectory.create(config)
    directory.write_json("privacy.json", privacy_statement(config, None, status="complete"))

    done = CliRunner().invoke(app, ["audit", "run", str(directory.path)])

    assert done.exit_code == 0
    assert "NOT PRIVATE: there is nothing to audit" in done.output


def test_audit_refuses_what_is_no_run(tmp_path: Path, run: Path) -> None:
    with pytest.raises(ConfigError, match="is this the folder of a run"):
        audit_run(tmp_path)
    (run / "privacy.json").write_text('{"private": true, "private": false}')
    with pytest.raises(ConfigError, match="a name stands twice"):
        audit_run(run)
    (run / "privacy.json").write_text("[]")
    assert CliRunner().invoke(app, ["audit", "run", str(run)]).exit_code == 2


def test_command_shows_clients_and_exits_with_1_on_a_doubt(run: Path) -> None:
    runner = CliRunner(env={"COLUMNS": "80"})
    done = runner.invoke(app, ["audit", "run", str(run)])
    assert done.exit_code == 0
    assert "Run run: verified" in done.output
    assert max(map(len, done.output.splitlines())) <= 80

    edit(run, smaller_figures)
    done = runner.invoke(app, ["audit", "run", str(run), "--json"])
    assert done.exit_code == 1
    assert json.loads(done.output)["verdict"] == "DOUBTFUL"
