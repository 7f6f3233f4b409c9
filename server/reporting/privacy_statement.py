"""Privacy statement of a run, written to `privacy.json`."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from typing import Any

from common.config.schema import RunConfig
from common.config.sections import PrivacyConfig
from common.ledger.signed_heads import SignedHead
from common.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION
from common.privacy.batched_gradients import AUTO, GAP, IN_WORDS, NOT_COVERED, OPACUS
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.events import as_json
from common.privacy.mechanisms.contract import Mechanism
from common.privacy.noise_error import stated
from common.system.console import format_alone
from server.reporting.missing_clients import missing_text
from server.state.initial_model import stated_start
from server.state.privacy_spent import LABELS_IN_WORDS, ClientPrivacyCost, RunPrivacyCost

ALL_UNITS = "none: every unit is in every sum"
SCOPE = "this run alone; what earlier runs over the same images have spent is in their holder's ledger"
COUNTS_IN_SHARES = "Gaussian noise in shares, on a grid, one vote a unit"
VERSIONED = ("bract", "flwr", "torch", "timm", "opacus", "dp-accounting", "numpy")


def versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return dict(_installed())


@cache
def _installed() -> dict[str, str]:
    # Each look reads a package's files, which would take milliseconds in every round.
    return {name: version(name) for name in VERSIONED}


@dataclass(frozen=True)
class Parties:
    """Clients of a run, by name.

    Attributes:
        refusals: Reason of each client that does not take part, by "node N" or "client NAME".
        heads: Latest head of each client's ledger.
        joined_late: First round of each client that came late.
        bundles: Digest of the code that each client declares to have pinned; empty without a pin.
        missing: See `missing_clients`; empty if it is not known.
    """

    refusals: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, SignedHead] = field(default_factory=dict)
    joined_late: Mapping[str, int] = field(default_factory=dict)
    bundles: Mapping[str, str] = field(default_factory=dict)
    missing: Mapping[str, Any] = field(default_factory=dict)


NO_PARTIES = Parties()


def privacy_statement(
    config: RunConfig,
    privacy_cost: RunPrivacyCost | None,
    *,
    status: str,
    run_id: str = "",
    parties: Parties = NO_PARTIES,
    simulated: bool = False,
    early: bool = False,
    initial: Mapping[str, Any] | None = None,
    aggregation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the content of `privacy.json`.

    Args:
        config: Configuration of the run.
        privacy_cost: Privacy spent; None without a mechanism.
        status: `complete` or `interrupted`.
        run_id: Name of the run.
        parties: Clients that take part and clients that do not.
        simulated: Whether the clients are a simulation's.
        early: Whether the run stopped before its last round, by choice.
        initial: What is stated of an earlier model that the run started from; None if it started anew.
        aggregation: What is stated of secure aggregation; None where updates leave one by one.
    """
    statement = _run_statement(
        config, privacy_cost, status=status, run_id=run_id, parties=parties, simulated=simulated, early=early
    )
    if aggregation is not None:
        statement["aggregation"] = dict(aggregation)
    if initial is not None:
        statement["initial_model"], end = stated_start(initial, statement)
        statement["statement"] += end
    return statement


def _run_statement(
    config: RunConfig,
    privacy_cost: RunPrivacyCost | None,
    *,
    status: str,
    run_id: str,
    parties: Parties,
    simulated: bool,
    early: bool,
) -> dict[str, Any]:
    """Return the statement of a run that started anew."""
    if privacy_cost is None:
        return {
            "private": False,
            "statement": statement_sentence(config.mechanism, None, config.privacy, config.metrics)
            + missing_words(parties.missing),
            "mechanism": config.privacy.mechanism,
            "run": run_id,
            "status": status,
            "refusals": dict(parties.refusals),
            "missing": dict(parties.missing),
            "versions": versions(),
        }
    plan, mechanism = privacy_cost.example_plan, config.mechanism
    # Stopping early is a choice that can depend on the data, so it saves no epsilon.
    all_rounds = status == "complete" and not early
    return {
        "private": True,
        "statement": statement_sentence(
            mechanism, privacy_cost, config.privacy, config.metrics, config.training.gradients
        )
        + missing_words(parties.missing),
        "mechanism": plan.mechanism,
        "run": run_id,
        "privacy_unit": plan.privacy_unit,
        "neighboring_relation": NEIGHBORING_RELATION,
        "sampling_method": sampling_words(mechanism, privacy_cost),
        "accountant": ACCOUNTANT,
        "delta": config.privacy.delta,
        "epsilon_max": privacy_cost.epsilon_max,
        "epsilon_max_rdp": privacy_cost.rdp_max,
        **in_shares(privacy_cost),
        **_parts(privacy_cost),
        "max_grad_norm": plan.max_grad_norm,
        "metrics": _metrics(config.metrics, privacy_cost),
        **({"gradients": IN_WORDS} if config.training.gradients == OPACUS else {}),
        **({"class_weights": LABELS_IN_WORDS} if plan.label_events() else {}),
        "charged": "rounds sent" if all_rounds else "the whole plan, because the run stopped early",
        "scope": SCOPE,
        "ledger": mechanism.ledger_text(simulated=simulated, kept=config.system.ledger),
        **stated([*events] for cost in privacy_cost.distinct for events in cost.events.values()),
        "status": status,
        "not_protected": not_protected(
            mechanism, privacy_cost, parties.bundles, config.metrics, config.training.gradients
        ),
        **_clients(config.num_clients, privacy_cost, parties),
        "versions": versions(),
    }


def _clients(num_clients: int, privacy_cost: RunPrivacyCost, parties: Parties) -> dict[str, Any]:
    return {
        "refusals": dict(parties.refusals),
        "absent": max(0, num_clients - len(privacy_cost.shares) - len(parties.refusals)),
        "joined_late": dict(parties.joined_late),
        "missing": dict(parties.missing),
        "bundles": dict(parties.bundles),
        "clients": {name: _client(cost, parties.heads.get(name)) for name, cost in privacy_cost.shares.items()},
    }


def sampling_words(mechanism: Mechanism, privacy_cost: RunPrivacyCost) -> str:
    """Return how units join a batch."""
    return ALL_UNITS if privacy_cost.example_plan.noise_shares else mechanism.sampling_method


def statement_sentence(
    mechanism: Mechanism,
    privacy_cost: RunPrivacyCost | None,
    privacy: PrivacyConfig,
    metrics: str,
    gradients: str = AUTO,
) -> str:
    """Return the guarantee of a run in one sentence."""
    if privacy_cost is None and privacy.aggregation == "secure":
        return "NOT PRIVATE: exact sums of the clients' updates and counts left, and the server saw no client's own"
    if privacy_cost is None:
        return "NOT PRIVATE: updates and exact counts left every client"
    exact = "; EXACT COUNTS of held-out images left and are not covered" if metrics == "exact" else ""
    rounding = NOT_COVERED if gradients == OPACUS else ""
    return (
        f"each {privacy_cost.example_plan.privacy_unit}: epsilon <= {privacy_cost.epsilon_max:.4f} at delta "
        f"{privacy.delta:g} ({NEIGHBORING_RELATION}), {_noise_place(mechanism, privacy_cost)}{exact}{rounding}"
    )


def _noise_place(mechanism: Mechanism, privacy_cost: RunPrivacyCost) -> str:
    shares = privacy_cost.example_plan.noise_shares
    if not shares:
        return mechanism.noise_place
    return (
        f"noise added in shares at the clients: this holds while {shares} clients of each sum are honest, its own "
        f"client among them; if all others collude with the server: {format_alone(privacy_cost.alone_max)}"
    )


def in_shares(privacy_cost: RunPrivacyCost) -> dict[str, Any]:
    """Return what holds with fewer honest clients, empty without noise in shares."""
    shares = privacy_cost.example_plan.noise_shares
    if not shares:
        return {}
    alone = privacy_cost.alone_max
    words = format_alone(alone)
    return {"noise_shares": shares, "epsilon_max_alone": _figure(alone), "if_all_others_collude": words}


def _figure(epsilon: float) -> float | None:
    """Return an epsilon as a plain value, None for no protection."""
    return epsilon if math.isfinite(epsilon) else None


def missing_words(missing: Mapping[str, Any]) -> str:
    """Return what a statement's sentence says of `missing_clients`."""
    text = missing_text(missing) if missing else ""
    return f"; MISSING FROM THE MODEL: {text}" if text else ""


def _parts(privacy_cost: RunPrivacyCost) -> dict[str, Any]:
    """Return the cost of trained and of held-out units.

    The result is empty where no counts are charged.
    """
    parts = privacy_cost.parts()
    return {"epsilon_parts": parts} if parts else {}


def _metrics(release: str, privacy_cost: RunPrivacyCost) -> dict[str, Any]:
    counts = privacy_cost.example_plan.counts
    if counts is None:
        return {"release": release}
    return {
        "release": release,
        "mechanism": COUNTS_IN_SHARES if counts.noise_shares else "exact discrete Gaussian, one vote a unit",
        "counts_noise_stddev": counts.noise_stddev,
        "closing_noise_stddev": counts.closing_noise_stddev,
        **_histograms(counts),
        **_subgroups(counts),
    }


def _histograms(counts: CountsPlan) -> dict[str, Any]:
    """Return the noise of histograms, empty if none leave."""
    if counts.num_classes is None:
        return {}
    return {
        "closing": "confusion matrix, one score histogram a class, confidence histogram of the likeliest class",
        "scores_noise_stddev": counts.scores_noise_stddev,
        "calibration_noise_stddev": counts.calibration_noise_stddev,
    }


def _subgroups(counts: CountsPlan) -> dict[str, Any]:
    """Return the list and the noise of subgroups, empty without any."""
    if not counts.subgroups:
        return {}
    return {"subgroups": list(counts.subgroups), "subgroups_noise_stddev": counts.subgroups_noise_stddev}


def not_protected(
    mechanism: Mechanism,
    privacy_cost: RunPrivacyCost,
    bundles: Mapping[str, str],
    metrics: str,
    gradients: str = AUTO,
) -> list[str]:
    """Return what an observer may learn in spite of the run's guarantee."""
    unpinned = [name for name in privacy_cost.shares if not bundles.get(name)]
    exact = ("held-out images: their exact counts left",) if metrics == "exact" else ()
    counts = privacy_cost.example_plan.counts
    subgroups = ("the list of subgroups",) if counts is not None and counts.subgroups else ()
    rounding = (GAP,) if gradients == OPACUS else ()
    gaps = mechanism.not_protected(num_clients=len(privacy_cost.shares), num_unpinned=len(unpinned))
    plan = privacy_cost.example_plan
    shares = (
        f"more than `if_all_others_collude` says, once fewer than {plan.noise_shares} clients of a sum are honest: "
        "clients that collude with the server take their shares of the noise out of the sum",
    )
    return [*gaps, *(shares if plan.noise_shares else ()), *subgroups, *exact, *rounding]


def _client(cost: ClientPrivacyCost, head: SignedHead | None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "epsilon": cost.spent.pld,
        "epsilon_rdp": cost.spent.rdp,
        "rounds": cost.rounds,
        "closing": cost.closing,
        "num_units": cost.plan.num_units,
        **({"epsilon_alone": _figure(cost.alone.pld)} if cost.plan.noise_shares else {}),
        "events": {part: [as_json(event) for event in events] for part, events in cost.events.items()},
    }
    if head is not None:
        content["ledger"] = {"id": head.ledger, "seq": head.seq, "head": head.hash}
    return content
