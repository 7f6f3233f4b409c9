"""Audit of a run's privacy statement against the ledgers of its clients."""

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from common.config.loading import defaults, load_file, override, parse
from common.config.secure_sum import SecureSum
from common.errors import ConfigError, PrivacyError
from common.ledger.audit.audit import Heads, kept_heads
from common.ledger.audit.costs import cost_of
from common.ledger.audit.integrity_checks import Remarks
from common.ledger.audit.report import LedgerReport
from common.ledger.registrations import planned_events
from common.privacy.accounting import Spent
from common.privacy.mechanisms.contract import Mechanism
from common.privacy.plan import PrivacyPlan
from common.system.progress import ProgressFactory, no_progress
from server.audit.attached_attacks import check_attached
from server.audit.ledger_comparison import audit_ledgers, compare_clients
from server.audit.run_report import AuditedClient, RunReport
from server.audit.statement_checks import (
    check_end,
    check_epsilons,
    check_heads_of,
    check_noise_error,
    check_number_of_heads,
    check_plans,
    check_target,
    check_terms,
    events_cost,
)
from server.audit.statement_reader import PrivacyStatement, read_json
from server.audit.statement_words import check_aggregation, check_sentence, check_words
from server.state.privacy_spent import RunPrivacyCost

_SIMULATED = "; a simulation's keys follow from its seed, so they prove nothing against a person with its folder"


def audit_run(folder: Path, progress: ProgressFactory = no_progress) -> RunReport:
    """Check a run's statement against its configuration, its heads and its clients' ledgers.

    Guarantee: every epsilon is computed anew from events, and nothing in the folder changes.

    Args:
        folder: Folder of the run.
        progress: Gets one step per ledger.

    Raises:
        ConfigError: The folder does not hold a run, or one that this version cannot read.
        LedgerError: The heads cannot be read.
    """
    content = read_json(folder / "privacy.json")
    config = parse(override(defaults(), load_file(folder / "config.toml")))
    remarks = Remarks()
    with remarks.about("the audits"):
        check_attached(folder, content, remarks)
    mechanism, secure = config.mechanism, config.secure
    check_aggregation(content, secure, noised=config.private, remarks=remarks)
    if content.get("private") is not True:
        if config.private or content.get("private") is not False:
            remarks.doubts.append(f"the statement does not say private, the run was configured for {mechanism.name}")
        return _report(folder, content, mechanism, secure, remarks)
    stated = None
    with remarks.about("the statement"):
        stated = PrivacyStatement.of(content)
    if stated is None:
        return _report(folder, content, mechanism, secure, remarks)
    lines = _lines(folder)
    check_terms(stated, config, remarks)
    check_end(stated, config.num_rounds, lines, remarks)
    _check_copies(folder, stated, remarks)
    costs: Mapping[str, Spent] = {}
    noise = ""
    with remarks.about("the error of the noise"):
        noise = check_noise_error(stated, remarks)
    with remarks.about("what the stated events cost"):
        costs = events_cost(stated)
        check_epsilons(stated, costs, remarks)
    plans: Mapping[str, PrivacyPlan] = {}
    cost: RunPrivacyCost | None = None
    with remarks.about("the plans"):
        plans, cost = check_plans(stated, mechanism, config.public_constants, config.num_rounds, config.seed, remarks)
    with remarks.about("the words of the statement"):
        # Without a cost there is a doubt already.
        asked = config.privacy, config.metrics, config.training.gradients
        words = check_words(content, mechanism, cost, *asked, remarks) if cost else None
        check_sentence(content, config.model.initial, words, remarks)
    with remarks.about("what the plans cost"):
        spent = {name: cost_of(planned_events(plan), delta=plan.delta) for name, plan in plans.items()}
        check_target(spent, config.privacy.target_epsilon, remarks)
    reports: dict[str, LedgerReport] = {}
    if mechanism.noise_at_client:
        heads = _heads(folder, remarks)
        check_heads_of(stated, heads, remarks)
        check_number_of_heads(stated, heads, remarks)
        reports = audit_ledgers(folder, stated, heads, remarks, progress)
    clients = compare_clients(stated, costs, plans, reports, _missing_replies(lines, config.cohort_size), remarks)
    return _report(folder, content, mechanism, secure, remarks, stated, len(reports), clients, noise)


def _report(
    folder: Path,
    content: dict[str, Any],
    mechanism: Mechanism,
    secure: SecureSum | None,
    remarks: Remarks,
    stated: PrivacyStatement | None = None,
    ledgers: int = 0,
    clients: Mapping[str, AuditedClient] = MappingProxyType({}),
    noise: str = "",
) -> RunReport:
    run, statement = (str(content.get(name, "")) for name in ("run", "statement"))
    delta, spent = (0.0, None) if stated is None else (stated.delta, stated.spent)
    # Whom the run rests on follows from its settings. A statement could name fewer.
    trust = (
        _who_adds_noise(mechanism, secure)
        + _pinned_code(stated, mechanism)
        + (_SIMULATED if stated and stated.simulated else "")
    )
    charged = not mechanism.noise_at_server
    return RunReport(
        folder, run, mechanism.name, statement, delta, spent, trust, ledgers, dict(clients), remarks, noise, charged
    )


def _who_adds_noise(mechanism: Mechanism, secure: SecureSum | None) -> str:
    """Return the part of the trust sentence about the noise."""
    if mechanism.noise_at_client and secure is not None:
        clip = "clips its own update and " if mechanism.clips_clients else ""
        return (
            f"each client {clip}adds a share of the noise; {secure.honest} of {secure.num_clients} clients must be "
            "honest in each sum"
        )
    return mechanism.trust


def _heads(folder: Path, remarks: Remarks) -> Heads:
    file = folder / "heads.jsonl"
    if not file.is_file():
        remarks.doubts.append("heads.jsonl is missing, with all that the clients signed")
        return []
    return kept_heads(file)


def _lines(folder: Path) -> list[dict[str, Any]] | None:
    """Return the lines of `rounds.jsonl`, None without such a file."""
    file = folder / "rounds.jsonl"
    if not file.is_file():
        return None
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({type(error).__name__})") from None
    return [line for line in lines if isinstance(line, dict)]


def _missing_replies(lines: list[dict[str, Any]] | None, cohort_size: int) -> dict[str, int]:
    """Return the number of rounds in which each client failed, by name.

    The empty name counts the rounds in which a client that is not named did not reply.
    """
    missing: Counter[str] = Counter()
    for line in lines or ():
        failures = line.get("failures")
        names = list(failures) if isinstance(failures, dict) else []
        if line.get("clients", 0) + len(names) < cohort_size:
            names.append("")
        missing.update(names)
    return missing


def _check_copies(folder: Path, stated: PrivacyStatement, remarks: Remarks) -> None:
    """Compare the epsilon in the run's other files with the statement."""
    for name in ("summary.json", "model/card.json"):
        if not (folder / name).is_file():
            continue
        with remarks.about(name):
            epsilon = read_json(folder / name).get("epsilon_max")
            if epsilon != stated.spent.pld:
                raise PrivacyError(f"it says epsilon_max {epsilon}, the statement {stated.spent.pld}")


def _pinned_code(stated: PrivacyStatement | None, mechanism: Mechanism) -> str:
    """Return the part of the trust sentence about pinned code."""
    if stated is None or not mechanism.noise_at_client:
        return ""
    unpinned = [name for name in stated.clients if not stated.text["bundles"].get(name)]
    if not unpinned:
        return "; each client declares that it runs only the code that it has pinned"
    return f"; {len(unpinned)} of {len(stated.clients)} clients have not pinned any code, and trust the server's"
