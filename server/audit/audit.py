"""Whether what a run states about privacy follows from the ledgers of its clients."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.config.loading import defaults, load_file, override, parse
from common.config.schema import RunConfig
from common.errors import ConfigError, PrivacyError
from common.ledger.audit.audit import Heads, kept_heads
from common.ledger.audit.costs import cost_of
from common.ledger.audit.integrity_checks import Remarks
from common.ledger.audit.report import LedgerReport
from common.ledger.registrations import planned_events
from common.privacy.accounting import Spent
from common.privacy.mechanisms import MECHANISMS, names_where
from common.system.progress import ProgressFactory, no_progress
from server.audit.attached_attacks import check_attached
from server.audit.ledger_comparison import audit_ledgers, compare_clients
from server.audit.run_report import AuditedClient, RunReport
from server.audit.statement_checks import (
    check_end,
    check_epsilons,
    check_heads_of,
    check_number_of_heads,
    check_plans,
    check_target,
    check_terms,
    events_cost,
)
from server.audit.statement_reader import PrivacyStatement, read_json

_SIMULATED = "; a simulation's keys follow from its seed, and prove nothing against whoever holds its folder"


def audit_run(folder: Path, progress: ProgressFactory = no_progress) -> RunReport:
    """Check a run's statement against its configuration, its heads and its clients' ledgers.

    Guarantee: every epsilon is computed anew from events, and nothing in the folder changes.

    Args:
        folder: The run's folder.
        progress: Hears about each client.

    Raises:
        ConfigError: It is no run's folder, or one that this version cannot read.
        LedgerError: The heads cannot be read.
    """
    found = read_json(folder / "privacy.json")
    config = parse(override(defaults(), load_file(folder / "config.toml")))
    remarks = Remarks()
    with remarks.about("the audits"):
        check_attached(folder, found, remarks)
    if found.get("private") is not True:
        return _not_private(folder, found, config, remarks)
    stated = None
    with remarks.about("the statement"):
        stated = PrivacyStatement.of(found)
    if stated is None:
        return _report(folder, found, None, 0, {}, remarks)
    lines = _lines(folder)
    check_terms(stated, config, remarks)
    check_end(stated, config, lines, remarks)
    _check_copies(folder, stated, remarks)
    costs: Mapping[str, Spent] = {}
    with remarks.about("what the stated events cost"):
        costs = events_cost(stated)
        check_epsilons(stated, costs, remarks)
    plans = check_plans(stated, config, remarks)
    with remarks.about("what the plans cost"):
        spent = {name: cost_of(planned_events(plan), delta=plan.delta) for name, plan in plans.items()}
        check_target(spent, config, remarks)
    reports: dict[str, LedgerReport] = {}
    if config.mechanism.noise_at_client:
        heads = _heads(folder, remarks)
        check_heads_of(stated, heads, remarks)
        check_number_of_heads(stated, heads, remarks)
        reports = audit_ledgers(folder, stated, heads, remarks, progress)
    clients = compare_clients(stated, costs, plans, reports, _silent(lines, config), remarks)
    return _report(folder, found, stated, len(reports), clients, remarks)


def _not_private(folder: Path, found: dict[str, Any], config: RunConfig, remarks: Remarks) -> RunReport:
    if config.private or found.get("private") is not False:
        remarks.doubts.append(
            f"the statement does not say private, the run was configured for {config.privacy.mechanism}"
        )
    return _report(folder, found, None, 0, {}, remarks)


def _report(
    folder: Path,
    found: dict[str, Any],
    stated: PrivacyStatement | None,
    ledgers: int,
    clients: dict[str, AuditedClient],
    remarks: Remarks,
) -> RunReport:
    run, mechanism, statement = (str(found.get(name, "")) for name in ("run", "mechanism", "statement"))
    delta, spent = (0.0, None) if stated is None else (stated.delta, stated.spent)
    trust = (
        (MECHANISMS[mechanism].trust if mechanism in MECHANISMS else "")
        + _code(stated)
        + (_SIMULATED if stated and stated.simulated else "")
    )
    return RunReport(folder, run, mechanism, statement, delta, spent, trust, ledgers, clients, remarks)


def _heads(folder: Path, remarks: Remarks) -> Heads:
    file = folder / "heads.jsonl"
    if not file.is_file():
        remarks.doubts.append("heads.jsonl is missing: what the clients signed cannot be seen")
        return []
    return kept_heads(file)


def _lines(folder: Path) -> list[dict[str, Any]] | None:
    """Lines of `rounds.jsonl`; None if there is no such file."""
    file = folder / "rounds.jsonl"
    if not file.is_file():
        return None
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"{file} cannot be read ({type(error).__name__})") from None
    return [line for line in lines if isinstance(line, dict)]


def _silent(lines: list[dict[str, Any]] | None, config: RunConfig) -> dict[str, int]:
    """Client -> rounds in which it failed; under the empty name, rounds in which somebody did not answer."""
    found: dict[str, int] = {}
    for line in lines or ():
        failures = line.get("failures")
        names = list(failures) if isinstance(failures, dict) else []
        if line.get("clients", 0) + len(names) < config.cohort_size:
            names.append("")
        for name in names:
            found[name] = found.get(name, 0) + 1
    return found


def _check_copies(folder: Path, stated: PrivacyStatement, remarks: Remarks) -> None:
    """Other files of the run that repeat epsilon say the same."""
    for name in ("summary.json", "model/card.json"):
        if not (folder / name).is_file():
            continue
        with remarks.about(name):
            said = read_json(folder / name).get("epsilon_max")
            if said != stated.spent.pld:
                raise PrivacyError(f"it says epsilon_max {said}, the statement {stated.spent.pld}")


def _code(stated: PrivacyStatement | None) -> str:
    """Whether clients say that they run only what they have pinned."""
    if stated is None or stated.mechanism not in names_where("noise_at_client"):
        return ""
    loose = [name for name in stated.clients if not stated.text["bundles"].get(name)]
    if not loose:
        return "; each says that it runs only the code that it has pinned"
    return f"; {len(loose)} of {len(stated.clients)} clients have pinned no code, and trust what the server sends"
