"""An audit of runs: a statement that leaves out whom its epsilon rests on is found."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.loading import Scalar
from common.ledger.audit.integrity_checks import Remarks
from server.audit.audit import audit_run
from server.audit.statement_reader import PrivacyStatement
from server.audit.statement_words import check_bundles, check_sentence
from server.state.initial_model import OPEN_START
from tests.support.ledger.audited_runs import (
    SETTINGS,
    Lie,
    MakeConfig,
    Statement,
    assert_found,
    doubts,
    edit,
    write_run,
)

SECURE: dict[str, Scalar] = SETTINGS | {
    "privacy.mechanism": "client-dp",
    "privacy.aggregation": "secure",
    "privacy.delta": 1e-3,
    "privacy.target-epsilon": 8.0,
    "round-retries": 0,
    "client-fraction": 1.0,
}
TRUST = "each client clips its own update and adds a share of the noise; 2 of 3 clients must be honest in each sum"


@pytest.fixture(name="shared", scope="module")
def shared_fixture(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    return write_run(tmp_path_factory.mktemp("shared") / "run", make_config(SECURE))


def unconditional(statement: Statement) -> None:
    """The sentence of a run whose clients each add all of the noise."""
    sentence = statement["statement"]
    statement["statement"] = sentence[: sentence.index("noise added")] + "noise added at its own client"


def without_shares(statement: Statement) -> None:
    """The careful liar: nothing is left that says that noise was in shares."""
    unconditional(statement)
    for name in ("noise_shares", "epsilon_max_alone", "if_all_others_collude", "aggregation"):
        del statement[name]
    statement["not_protected"].pop()


def said_of_sums(**changes: object) -> Callable[[Statement], object]:
    return lambda statement: statement["aggregation"].update(changes)


LIES: dict[str, Lie] = {
    "no condition at all": (without_shares, "the statement says noise_shares None, this run gives 2"),
    "no condition in the sentence": (unconditional, "the statement says statement 'each client: epsilon <= "),
    "a comforting end": (lambda s: s.update(statement=s["statement"] + "; audited"), "the statement says statement"),
    "fewer honest clients": (lambda s: s.update(noise_shares=1), "the statement says noise_shares 1, this run gives 2"),
    "a share that protects": (
        lambda s: s.update(if_all_others_collude="epsilon 8.000"),
        "the statement says if_all_others_collude 'epsilon 8.000'",
    ),
    "no gaps": (lambda s: s.update(not_protected=[]), "the statement says not_protected []"),
    "one gap less": (lambda s: s["not_protected"].pop(0), "the statement says not_protected ["),
    "no aggregation": (lambda s: s.pop("aggregation"), "disagree on whether updates left in secure sums"),
    "an odd aggregation": (lambda s: s.update(aggregation="secure"), "disagree on whether updates left in secure sums"),
    "fewer honest clients in sums": (said_of_sums(honest=1), "says aggregation.honest 1, this run gives 2"),
    "more colluding clients": (said_of_sums(colluding=2), "says aggregation.colluding 2, this run gives 1"),
    "more clients": (said_of_sums(num_clients=9), "says aggregation.num_clients 9, this run gives 3"),
    "smaller sums": (said_of_sums(min_survivors=2), "says aggregation.min_survivors 2, this run gives 3"),
    "other words on sums": (said_of_sums(statement="nobody need be honest"), "says aggregation.statement 'nobody"),
    "no gaps of sums": (said_of_sums(not_protected=[]), "the statement says aggregation.not_protected []"),
    "another sampling": (
        lambda s: s.update(sampling_method="Poisson, public rate"),
        "this run gives 'none: every unit",
    ),
    "more words on sums": (said_of_sums(note="safe"), "the statement says aggregation.note 'safe'"),
}


@pytest.mark.parametrize("what", LIES)
def test_audit_finds_a_missing_condition(shared: Path, tmp_path: Path, what: str) -> None:
    run = Path(shutil.copytree(shared, tmp_path / "run"))

    assert_found(LIES[what], run)
    # Whom a reader must trust comes from the settings, whatever the statement says.
    assert audit_run(run).trust.startswith(TRUST)


def test_audit_verifies_noise_in_shares(shared: Path) -> None:
    report = audit_run(shared)

    assert (report.remarks.doubts, report.verdict) == ([], "verified")
    assert report.trust.startswith(TRUST)


LIES_OF_PLAIN_RUNS: dict[str, Lie] = {
    "shares": (lambda s: s.update(noise_shares=2), "the statement says noise_shares 2, this run gives None"),
    "sums": (lambda s: s.update(aggregation={"honest": 2}), "disagree on whether updates left in secure sums"),
    "a condition": (lambda s: s.update(if_all_others_collude="epsilon 1.000"), "says if_all_others_collude"),
    "a pin": (lambda s: s.update(bundles=dict.fromkeys(s["clients"], "ab" * 32)), "the statement says not_protected"),
    "another place": (
        lambda s: s.update(statement=s["statement"].replace("at its own client", "somewhere")),
        "the statement says statement",
    ),
    "another scope": (lambda s: s.update(scope="all runs over these images"), "the statement says scope 'all runs"),
    "no scope": (lambda s: s.pop("scope"), 'the statement says scope None, this run gives "this run alone'),
    "another sampling": (
        lambda s: s.update(sampling_method="Poisson, secret rate"),
        "says sampling_method 'Poisson, secret rate', this run gives 'Poisson, public rate'",
    ),
    "a simulated pin": (
        lambda s: s.update(bundles={"00001": "ab" * 32}),
        "client 00001 has pinned code, and simulated clients pin none",
    ),
    "missing clients": (
        lambda s: s.update(missing={"clients": {}, "unit": "image", "never_joined": 1}),
        "MISSING FROM THE MODEL: 1 planned client in all rounds",
    ),
    "odd missing clients": (lambda s: s.update(missing={"clients": 1}), "the words of the statement: it cannot be"),
}


@pytest.mark.parametrize("what", LIES_OF_PLAIN_RUNS)
def test_audit_finds_other_words_of_a_plain_run(run: Path, what: str) -> None:
    assert_found(LIES_OF_PLAIN_RUNS[what], run)


@pytest.mark.parametrize(
    ("sent", "pinned", "late", "num_doubts", "num_warnings"),
    [
        ("ab", "ab", False, 0, 0),
        ("ab", "", False, 0, 0),
        ("", "cd", False, 0, 0),  # a run that nobody started by `bract run` does not say what it sent
        ("ab", "cd", False, 1, 0),
        ("ab", "cd", True, 0, 1),
    ],
)
def test_audit_compares_pins_with_the_code_that_was_sent(
    run: Path, sent: str, pinned: str, late: bool, num_doubts: int, num_warnings: int
) -> None:
    content = json.loads((run / "privacy.json").read_text())
    content |= {"bundles": {"00001": pinned * 32}, "joined_late": {"00001": 2} if late else {}, "ledger": "at clients"}
    remarks = Remarks()

    check_bundles(PrivacyStatement.of(content), sent * 32, remarks)

    assert (len(remarks.doubts), len(remarks.warnings)) == (num_doubts, num_warnings)
    assert all("client 00001 has pinned the code cdcd" in text for text in (*remarks.doubts, *remarks.warnings))


def test_audit_still_reads_statements_without_missing_clients(run: Path) -> None:
    edit(run, lambda s: s.pop("missing"))

    assert audit_run(run).verdict == "verified"


def test_audit_finds_sums_that_a_run_without_privacy_did_not_have(tmp_path: Path, make_config: MakeConfig) -> None:
    run = tmp_path / "run"
    config = make_config({"privacy.mechanism": "none", "output-dir": str(run)})
    run.mkdir()
    shutil.copy(write_run(tmp_path / "other", make_config(SETTINGS)) / "config.toml", run / "config.toml")
    (run / "config.toml").write_text((run / "config.toml").read_text().replace('"dp-sgd"', '"none"'))
    assert config.secure is None
    (run / "privacy.json").write_text(json.dumps({"private": False, "aggregation": {"kind": "secure"}}))

    assert "disagree on whether updates left in secure sums" in doubts(run)


@pytest.mark.parametrize(("words", "num_doubts"), [("", 0), ("; audited", 1)])
def test_audit_finds_words_before_those_on_an_earlier_model(words: str, num_doubts: int) -> None:
    remarks = Remarks()
    content = {"private": True, "initial_model": {"private": False}, "statement": f"epsilon{words}{OPEN_START}"}

    check_sentence(content, "model", "epsilon", remarks)

    assert len(remarks.doubts) == num_doubts
