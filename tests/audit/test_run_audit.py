"""An audit of runs: an honest statement follows from its ledgers, a tampered one does not."""

import json
import shutil
import sqlite3
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import typer
from ledger_cases import ASKED, holding
from typer.testing import CliRunner

from common.audit.audit_command import audit_app
from common.config import Scalar
from common.errors import ConfigError
from common.ledger.books import Books
from common.ledger.heads import HeadKeeper, SignedHead, sign_head
from common.ledger.keys import HolderKeys
from common.ledger.ledger import Ledger
from common.privacy.accounting import spent_by
from common.privacy.events import Event, from_json
from common.privacy.plan import PrivacyPlan, plan_for
from common.privacy.policy import ANYTHING
from common.sections import RunConfig
from server import cli as server_cli
from server.audit.run_audit import audit_run
from server.run_directory import RunDirectory
from server.spending import account
from server.statement import privacy_statement

MakeConfig = Callable[..., RunConfig]
Statement = dict[str, Any]
SIZES = {"00000": 40, "00001": 50, "00002": 60}
SETTINGS: dict[str, Scalar] = {"num-rounds": 2, "num-clients": 3, "training.local-epochs": 1}
ROUNDS = 2
RUN = "a1b2"

app = typer.Typer()
app.add_typer(audit_app, name="audit")
server_cli.mount(app)


def keep(file: Path, plan: PrivacyPlan, name: str, rounds: int, *, closing: bool) -> SignedHead:
    """A client's ledger after so many rounds."""
    keys, ledger = HolderKeys.simulated(0, name), Ledger(file, durable=False)
    books = Books(ledger, keys, simulated=True)
    agreed = books.register(RUN, name, plan, (holding(0, 2), holding(2, 3)), ANYTHING)
    for server_round in range(1, rounds + 1):
        books.reserve(agreed, server_round, "train", ASKED, ANYTHING)
        books.commit(agreed, server_round, "train", b"reply", keep=2)
    if closing:
        books.reserve(agreed, rounds, "closing", ASKED, ANYTHING)
        books.commit(agreed, rounds, "closing", b"counts", keep=2)
        books.close(RUN, name)
    head = sign_head(keys, ledger.head())
    ledger.close()
    return head


def write_run(
    folder: Path, config: RunConfig, *, rounds: int = ROUNDS, complete: bool = True, simulated: bool = True
) -> Path:
    """The folder that a run of three clients leaves, as the server writes it."""
    directory = RunDirectory.create(config.model_copy(update={"output_dir": str(folder)}))
    spending = account(config, SIZES, [list(SIZES)] * rounds, complete=complete)
    keeper = HeadKeeper([folder / "heads.jsonl"])
    if config.noises_gradients:
        (folder / "ledgers").mkdir()
        for name, share in spending.shares.items():
            head = keep(folder / "ledgers" / f"{name}.sqlite", share.plan, name, rounds, closing=complete)
            assert not keeper.accept([(name, head)])
    statement = privacy_statement(
        config,
        spending,
        status="complete" if complete else "interrupted",
        run_id=RUN,
        heads=keeper.latest(SIZES),
        simulated=simulated,
    )
    directory.write_json("privacy.json", statement)
    directory.write_json("summary.json", {"epsilon_max": spending.epsilon_max})
    lines = [json.dumps({"round": number, "clients": 3, "failures": {}}) for number in range(1, rounds + 1)]
    directory.write_text("rounds.jsonl", "".join(f"{line}\n" for line in lines))
    return folder


@pytest.fixture(scope="module")
def config(make_config: MakeConfig) -> RunConfig:
    return make_config(SETTINGS | {"privacy.target-epsilon": 4.0})


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory, config: RunConfig) -> Path:
    return write_run(tmp_path_factory.mktemp("honest") / "run", config)


@pytest.fixture
def run(honest: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(honest, tmp_path / "run"))


def edit(run: Path, change: Callable[[Statement], object]) -> None:
    file = run / "privacy.json"
    statement = json.loads(file.read_text())
    change(statement)
    file.write_text(json.dumps(statement))


def doubts(run: Path) -> str:
    report = audit_run(run)
    assert report.verdict == "DOUBTFUL"
    return "\n".join(report.remarks.doubts)


def lie(statement: Statement) -> None:
    """What a careful liar does after changing events: every figure fits them."""
    for client in statement["clients"].values():
        events: list[list[Event]] = [list(map(from_json, listed)) for listed in client["events"].values()]
        spent = [spent_by(listed, delta=statement["delta"]) for listed in events]
        client |= {"epsilon": max(one.pld for one in spent), "epsilon_rdp": max(one.rdp for one in spent)}
    statement["epsilon_max"] = max(client["epsilon"] for client in statement["clients"].values())
    statement["epsilon_max_rdp"] = max(client["epsilon_rdp"] for client in statement["clients"].values())
    head, _, tail = statement["statement"].partition("<= ")
    tail = tail.partition(" (")[2]
    statement["statement"] = f"{head}<= {statement['epsilon_max']:.4f} at delta {statement['delta']:g} ({tail}"


def fewer_rounds(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["rounds"] = 1
        client["events"]["training"][0]["steps"] //= 2
        client["events"]["evaluation"][0]["releases"] = 1
    lie(statement)


def more_noise(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["events"]["training"][0]["noise-multiplier"] *= 2
    lie(statement)


def more_noise_in_counts(statement: Statement) -> None:
    statement["metrics"]["counts_noise_stddev"] *= 2
    for client in statement["clients"].values():
        client["events"]["evaluation"][0]["noise-stddev"] *= 2
    lie(statement)


def less_noise_in_counts(statement: Statement) -> None:
    statement["metrics"]["counts_noise_stddev"] /= 2
    for client in statement["clients"].values():
        client["events"]["evaluation"][0]["noise-stddev"] /= 2
    lie(statement)


def no_closing(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["closing"] = False
        del client["events"]["evaluation"][1]
    lie(statement)


def larger_delta(statement: Statement) -> None:
    statement["delta"] = 1e-3
    lie(statement)


def smaller_figures(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["epsilon"] /= 2
    statement["epsilon_max"] /= 2
    statement["statement"] = statement["statement"].replace("<= 3.99", "<= 1.99").replace("<= 4.0", "<= 2.0")


def without_client(statement: Statement) -> None:
    del statement["clients"]["00001"]
    statement["epsilon_max"] = max(client["epsilon"] for client in statement["clients"].values())


LIES: dict[str, tuple[Callable[[Statement], object], str]] = {
    "one epsilon": (lambda s: s["clients"]["00001"].update(epsilon=1.0), "client 00001 states epsilon 1 (PLD)"),
    "one epsilon by RDP": (lambda s: s["clients"]["00001"].update(epsilon_rdp=1.0), "states epsilon 1 (RDP)"),
    "a larger epsilon": (lambda s: s["clients"]["00001"].update(epsilon=9.0), "client 00001 states epsilon 9"),
    "no number": (lambda s: s["clients"]["00001"].update(epsilon=float("nan")), "client 00001 states epsilon nan"),
    "all figures": (smaller_figures, "its events cost"),
    "fewer rounds": (fewer_rounds, "client 00000 reserved 2 rounds, the statement charges 1"),
    "more noise": (more_noise, "client 00000 agreed to another plan"),
    "more noise in counts": (more_noise_in_counts, "client 00000 agreed to another plan"),
    "less noise in counts": (less_noise_in_counts, "less noise than the run was configured for"),
    "no closing": (no_closing, "the closing counts are charged where there are none"),
    "a larger delta": (larger_delta, "the statement says delta 0.001"),
    "fewer clients": (without_client, "client 00001 has sent heads"),
    "the largest epsilon": (lambda s: s.update(epsilon_max=1.0), "the run states epsilon 1 (PLD)"),
    "the sentence": (lambda s: s.update(statement="each image: epsilon <= 1.0000 at delta 1e-05 (x)"), "the sentence"),
    "a field": (lambda s: s.pop("not_protected"), "it lacks not_protected"),
    "a client's field": (lambda s: s["clients"]["00001"].pop("rounds"), "the statement: it cannot be read"),
    "a word for a number": (lambda s: s["clients"]["00001"].update(rounds="2"), "rounds is not of the kind"),
    "an event": (lambda s: s["clients"]["00001"].update(events={"training": [{"kind": "x"}]}), "no event"),
    "the events": (lambda s: s["clients"]["00001"]["events"].update(evaluation=[]), "events of client 00001"),
    "the mechanism": (lambda s: s.update(mechanism="client-dp"), "the statement says mechanism 'client-dp'"),
    "the unit": (lambda s: s.update(privacy_unit="group"), "the statement says privacy_unit 'group'"),
    "the clip bound": (lambda s: s.update(max_grad_norm=9.0), "the statement says max_grad_norm"),
    "the counts": (lambda s: s["metrics"].update(release="none"), "the statement says metrics 'none'"),
    "the size": (lambda s: s["clients"]["00001"].update(num_units=900), "events of client 00001"),
    "the status": (lambda s: s.update(status="interrupted"), "the run was interrupted"),
    "what is charged": (lambda s: s.update(charged="nothing"), "what was charged"),
    "the run": (lambda s: s.update(run="another"), "has nothing about this run"),
    "a head": (lambda s: s["clients"]["00001"]["ledger"].update(head="0" * 64), "not among those that were kept"),
    "an older head": (lambda s: s["clients"]["00001"]["ledger"].update(seq=1), "not among those that were kept"),
    "no head": (lambda s: s["clients"]["00001"].pop("ledger"), "not among those that were kept"),
    "no clients": (lambda s: s.update(clients={}), "about no client"),
    "no privacy": (lambda s: s.update(private=False), "configured for dp-sgd"),
}


def test_audit_of_an_honest_run_is_verified(honest: Path) -> None:
    before = {str(file): file.read_bytes() for file in honest.rglob("*") if file.is_file()}

    report = audit_run(honest)

    assert (report.verdict, report.remarks.doubts, report.remarks.warnings) == ("verified", [], [])
    assert report.ledgers == 3
    assert {name: client.reserved for name, client in report.clients.items()} == dict.fromkeys(SIZES, ROUNDS)
    assert all(client.stated == client.recomputed for client in report.clients.values())
    assert {str(file): file.read_bytes() for file in honest.rglob("*") if file.is_file()} == before


@pytest.mark.parametrize("what", LIES)
def test_audit_finds_a_lie(run: Path, what: str) -> None:
    change, expected = LIES[what]
    edit(run, change)

    assert expected in doubts(run)


def test_audit_warns_of_another_accountant(run: Path) -> None:
    edit(run, lambda s: s.update(accountant="an older one"))

    report = audit_run(run)

    assert report.verdict == "verified"
    assert "another accountant than this version" in report.remarks.warnings[0]


def test_audit_finds_fewer_rounds_also_without_ledgers(run: Path) -> None:
    edit(run, fewer_rounds)
    edit(run, lambda s: s.update(ledger="each client's own; only its signed heads are known here"))
    shutil.rmtree(run / "ledgers")

    assert "1 rounds are charged where 2 must be" in doubts(run)


def test_audit_finds_a_client_that_was_left_out_everywhere(run: Path) -> None:
    edit(run, without_client)
    heads = (run / "heads.jsonl").read_text().splitlines(keepends=True)
    (run / "heads.jsonl").write_text("".join(line for line in heads if "00001" not in line))

    assert "client 00001 reserved rounds, and the statement is silent" in doubts(run)
    (run / "ledgers" / "00001.sqlite").unlink()
    assert "the statement is about 2 clients and 0 refusals, the run had 3" in doubts(run)


def test_audit_misses_a_ledger(run: Path) -> None:
    (run / "ledgers" / "00001.sqlite").unlink()

    assert "the ledger of client 00001 is missing" in doubts(run)


def test_audit_misses_all_ledgers_of_a_simulation(run: Path) -> None:
    shutil.rmtree(run / "ledgers")

    assert "the ledger of client 00002 is missing" in doubts(run)


def test_audit_misses_the_heads(run: Path) -> None:
    (run / "heads.jsonl").unlink()

    assert "heads.jsonl is missing" in doubts(run)


def test_audit_finds_another_clients_ledger(run: Path) -> None:
    shutil.copy(run / "ledgers" / "00000.sqlite", run / "ledgers" / "00001.sqlite")

    assert "the ledger of client 00001 is not the one" in doubts(run)


def test_audit_finds_an_older_copy_of_a_ledger(run: Path, config: RunConfig) -> None:
    file = run / "ledgers" / "00001.sqlite"
    file.unlink()
    keep(file, plan_for(config, SIZES["00001"]), "00001", 1, closing=False)

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
    books = Books(ledger, keys, simulated=True)

    def say(what: str) -> None:
        books.note(RUN, "00001", what)
        with (run / "heads.jsonl").open("a") as stream:
            stream.write(json.dumps({"client": "00001"} | asdict(sign_head(keys, ledger.head()))) + "\n")

    say("the answer to the closing message")
    assert audit_run(run).verdict == "verified"
    say("something else")
    ledger.close()
    assert "client 00001 has sent heads after the one that is stated" in doubts(run)


def test_audit_finds_exact_counts_that_are_not_stated(run: Path) -> None:
    ledger = Ledger(run / "ledgers" / "00001.sqlite", durable=False)
    Books(ledger, HolderKeys.simulated(0, "00001"), simulated=True).note(RUN, "00001", "exact counts left")
    ledger.close()

    assert "exact counts left client 00001" in doubts(run)


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


def test_audit_of_an_interrupted_run_wants_the_whole_plan(tmp_path: Path, config: RunConfig) -> None:
    run = write_run(tmp_path / "run", config, rounds=1, complete=False)

    report = audit_run(run)

    assert (report.verdict, report.remarks.doubts) == ("verified", [])
    assert {client.rounds for client in report.clients.values()} == {ROUNDS}
    assert {client.reserved for client in report.clients.values()} == {1}
    edit(run, fewer_rounds)
    assert "1 rounds are charged where 2 must be" in doubts(run)


def test_audit_takes_fewer_reserved_rounds_where_a_client_failed(run: Path, config: RunConfig) -> None:
    name, plan = "00001", plan_for(config, SIZES["00001"])
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
    assert "ledgers were not seen" in " ".join(done.output.split())


def test_audit_of_central_noise_names_who_must_be_trusted(tmp_path: Path, make_config: MakeConfig) -> None:
    config = make_config(SETTINGS | {"privacy.mechanism": "client-dp", "privacy.noise-multiplier": 3.0})
    run = write_run(tmp_path / "run", config)

    report = audit_run(run)

    assert (report.verdict, report.remarks.doubts) == ("internally consistent", [])
    assert "the server must be trusted" in report.trust
    edit(run, more_noise)
    assert "another noise than the run was configured for" in doubts(run)


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
