"""An audit of runs: a statement that does not follow from the run is found, however well its figures fit.

Drives `server.audit.statement_reader`.
"""

import json
import shutil
from pathlib import Path

import pytest

from common.config.loading import Scalar
from common.privacy.batched_gradients import GAP, IN_WORDS, NOT_COVERED
from common.privacy.noise_error import MITIGATION
from server.audit.audit import audit_run
from tests.support.ledger.audited_runs import (
    SETTINGS,
    Lie,
    MakeConfig,
    Statement,
    assert_found,
    doubts,
    edit,
    fewer_rounds,
    lie,
    more_noise,
    smaller_figures,
    without_client,
    write_run,
)


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


def no_sampler(statement: Statement) -> None:
    for client in statement["clients"].values():
        del client["events"]["training"][0]["sampler"], client["events"]["training"][0]["draws-per-step"]


def fewer_draws(statement: Statement) -> None:
    statement["clients"]["00001"]["events"]["training"][0]["draws-per-step"] = 1000


def another_sampler(statement: Statement) -> None:
    statement["clients"]["00001"]["events"]["training"][0]["sampler"] = 9


def larger_delta(statement: Statement) -> None:
    statement["delta"] = 1e-3
    lie(statement)


LIES: dict[str, Lie] = {
    "one epsilon": (lambda s: s["clients"]["00001"].update(epsilon=1.0), "client 00001 states epsilon 1 (PLD)"),
    "one epsilon by RDP": (lambda s: s["clients"]["00001"].update(epsilon_rdp=1.0), "states epsilon 1 (RDP)"),
    "a larger epsilon": (lambda s: s["clients"]["00001"].update(epsilon=9.0), "client 00001 states epsilon 9"),
    "no number": (lambda s: s["clients"]["00001"].update(epsilon=float("nan")), "client 00001 states epsilon nan"),
    "all figures": (smaller_figures, "its events cost"),
    "fewer rounds": (fewer_rounds, "client 00000 reserved 2 rounds, the statement charges 1"),
    "more noise": (more_noise, "client 00000 agreed to another plan"),
    "more noise in counts": (more_noise_in_counts, "client 00000 agreed to another plan"),
    "less noise in counts": (less_noise_in_counts, "less noise than the run was configured for"),
    "no closing": (no_closing, "the closing counts are charged though the plan has none"),
    "a part of the cost": (lambda s: s["epsilon_parts"].update(held_out_closing=0.1), "epsilon_parts: they are not"),
    "a lost part": (lambda s: s["epsilon_parts"].pop("trained"), "epsilon_parts: they are not"),
    "the noise": (lambda s: s.update(floating_point=MITIGATION), "the statement says of its noise 'noise on a grid"),
    "the figure of the noise": (lambda s: s["noise_error"].update(delta_noise=0.0), "has delta_noise 0.0 of the noise"),
    "no figure of the noise": (lambda s: s["noise_error"].update(delta_noise="0"), "has delta_noise '0' of the noise"),
    "no figures of the noise": (lambda s: s.pop("noise_error"), "stated without its figures"),
    "fewer figures of the noise": (lambda s: s["noise_error"].pop("draws"), "stated without its figures"),
    "the sampler": (no_sampler, "its events 'noise on a grid, counted in the multiplier: a mitigation"),
    "fewer draws": (fewer_draws, "charges fewer draws than a step"),
    "an unknown sampler": (another_sampler, "the noise sampler 9, which this version does not know"),
    "a larger delta": (larger_delta, "the statement says delta 0.001"),
    "fewer clients": (without_client, "client 00001 has sent heads"),
    "the largest epsilon": (lambda s: s.update(epsilon_max=1.0), "the run states epsilon 1 (PLD)"),
    "the sentence": (lambda s: s.update(statement="each image: epsilon <= 1.0000 at delta 1e-05 (x)"), "the sentence"),
    "a field": (lambda s: s.pop("not_protected"), "it lacks not_protected"),
    "a client's field": (lambda s: s["clients"]["00001"].pop("rounds"), "the statement: it cannot be read"),
    "a word for a number": (lambda s: s["clients"]["00001"].update(rounds="2"), "rounds is not of the kind"),
    "an event": (lambda s: s["clients"]["00001"].update(events={"training": [{"kind": "x"}]}), "not an event"),
    "the events": (lambda s: s["clients"]["00001"]["events"].update(evaluation=[]), "events of client 00001"),
    "the mechanism": (lambda s: s.update(mechanism="client-dp"), "the statement says mechanism 'client-dp'"),
    "the unit": (lambda s: s.update(privacy_unit="group"), "the statement says privacy_unit 'group'"),
    "the clip bound": (lambda s: s.update(max_grad_norm=9.0), "the statement says max_grad_norm"),
    "the counts": (lambda s: s["metrics"].update(release="none"), "the statement says metrics 'none'"),
    "the size": (lambda s: s["clients"]["00001"].update(num_units=900), "client 00001 agreed to another plan"),
    "the status": (lambda s: s.update(status="interrupted"), "the run was interrupted"),
    "what is charged": (lambda s: s.update(charged="nothing"), "what was charged"),
    "the run": (lambda s: s.update(run="another"), "has nothing about this run"),
    "a head": (lambda s: s["clients"]["00001"]["ledger"].update(head="0" * 64), "not among those that were kept"),
    "an older head": (lambda s: s["clients"]["00001"]["ledger"].update(seq=1), "not among those that were kept"),
    "another client's head": (
        lambda s: s["clients"]["00001"].update(ledger=s["clients"]["00000"]["ledger"]),
        "stated for client 00001 is not among those that were kept",
    ),
    "no head": (lambda s: s["clients"]["00001"].pop("ledger"), "not among those that were kept"),
    "no clients": (lambda s: s.update(clients={}), "about no client"),
    "no privacy": (lambda s: s.update(private=False), "configured for dp-sgd"),
}


@pytest.mark.parametrize("what", LIES)
def test_audit_finds_a_lie(run: Path, what: str) -> None:
    assert_found(LIES[what], run)


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

    assert "client 00001 reserved rounds, but the statement does not name it" in doubts(run)
    (run / "ledgers" / "00001.sqlite").unlink()
    assert "the statement is about 2 clients and 0 refusals, the run had 3" in doubts(run)


@pytest.mark.parametrize("settings", [{}, {"evaluation.every": 2}, {"privacy.counts-noise": 25.0}], ids=str)
def test_audit_verifies_noise_of_counts_that_follows_from_the_target(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Scalar]
) -> None:
    folder = write_run(tmp_path / "run", make_config(SETTINGS | {"num-rounds": 3} | settings), rounds=3)

    report = audit_run(folder)

    assert (report.remarks.doubts, report.verdict) == ([], "verified")


def test_audit_still_reads_statements_without_parts(run: Path) -> None:
    edit(run, lambda s: s.pop("epsilon_parts"))

    assert audit_run(run).verdict == "verified"


@pytest.fixture(name="balanced", scope="module")
def balanced_fixture(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    config = make_config(SETTINGS | {"privacy.target-epsilon": 4.0, "training.class-weights": "balanced"})
    return write_run(tmp_path_factory.mktemp("balanced") / "run", config)


def without_label_counts(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["events"]["training"] = client["events"]["training"][:1]
    lie(statement)


def less_noise_in_label_counts(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["events"]["training"][1]["noise-stddev"] *= 0.9
    lie(statement)


def more_noise_in_label_counts(statement: Statement) -> None:
    for client in statement["clients"].values():
        client["events"]["training"][1]["noise-stddev"] *= 2
    lie(statement)


@pytest.fixture(name="batched", scope="module")
def batched_fixture(tmp_path_factory: pytest.TempPathFactory, make_config: MakeConfig) -> Path:
    named = {"model.backbone": "cnn", "training.gradients": "opacus"}
    return write_run(tmp_path_factory.mktemp("batched") / "run", make_config(SETTINGS | named))


def without_the_rounding(statement: Statement) -> None:
    statement["statement"] = statement["statement"].replace(NOT_COVERED, "")


LIES_ABOUT_GRADIENTS: dict[str, Lie] = {
    "not said": (lambda s: s.pop("gradients"), "the statement says gradients None"),
    "no gap": (lambda s: s["not_protected"].remove(GAP), "the statement says not_protected"),
    "another sentence": (without_the_rounding, "the statement says statement"),
}


def test_audit_accepts_a_statement_about_gradients_in_batches(batched: Path) -> None:
    text = json.loads((batched / "privacy.json").read_text())

    assert audit_run(batched).verdict == "verified"
    assert text["gradients"] == IN_WORDS
    assert text["statement"].endswith(NOT_COVERED)
    assert GAP in text["not_protected"]


@pytest.mark.parametrize("what", LIES_ABOUT_GRADIENTS)
def test_audit_finds_a_lie_about_gradients_in_batches(batched: Path, tmp_path: Path, what: str) -> None:
    run = Path(shutil.copytree(batched, tmp_path / "run"))

    assert_found(LIES_ABOUT_GRADIENTS[what], run)


LIES_ABOUT_LABELS: dict[str, Lie] = {
    "no charge": (without_label_counts, "they do not follow from the run's configuration"),
    "less noise": (less_noise_in_label_counts, "its label counts have less noise than the run was configured for"),
    "more noise": (more_noise_in_label_counts, "client 00000 agreed to another plan"),
    "not said": (lambda s: s.pop("class_weights"), "the statement says class_weights None"),
    "another part": (lambda s: s["epsilon_parts"].update(trained_labels=0.1), "epsilon_parts: they are not"),
}


@pytest.mark.parametrize("what", LIES_ABOUT_LABELS)
def test_audit_finds_a_lie_about_label_counts(balanced: Path, tmp_path: Path, what: str) -> None:
    run = Path(shutil.copytree(balanced, tmp_path / "run"))

    assert_found(LIES_ABOUT_LABELS[what], run)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"privacy.target-epsilon": "", "privacy.noise-multiplier": 3.0},
        {"training.batch-size": 10, "privacy.noise-multiplier": 3.0, "privacy.target-epsilon": ""},
    ],
    ids=str,
)
def test_audit_verifies_label_counts_that_follow_from_the_rule(
    make_config: MakeConfig, tmp_path: Path, settings: dict[str, Scalar]
) -> None:
    config = make_config(SETTINGS | {"training.class-weights": "balanced"} | settings)

    report = audit_run(write_run(tmp_path / "run", config))

    assert (report.remarks.doubts, report.verdict) == ([], "verified")


def test_audit_finds_class_weights_that_no_run_had(run: Path) -> None:
    edit(run, lambda s: s.update(class_weights="balanced"))

    assert "the statement says class_weights 'balanced', the run was configured for None" in doubts(run)
