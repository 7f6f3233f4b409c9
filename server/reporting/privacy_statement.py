"""What a run states about privacy: events, the bound they imply, and what is not protected."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from common.config.schema import RunConfig
from common.ledger.signed_heads import SignedHead
from common.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION
from common.privacy.events import as_json
from server.state.privacy_spent import ClientPrivacyCost, RunPrivacyCost

VERSIONED = ("bract", "flwr", "torch", "timm", "opacus", "dp-accounting", "numpy")


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    return {name: version(name) for name in VERSIONED}


@dataclass(frozen=True)
class Parties:
    """Who took part in a run, and how.

    Attributes:
        refusals: Why clients did not take part, by node.
        heads: Latest head of each client's ledger.
        joined_late: First round of each client that came late.
        bundles: The bundle of code that each client says it has pinned; empty for those that run any.
    """

    refusals: Mapping[str, str] = field(default_factory=dict)
    heads: Mapping[str, SignedHead] = field(default_factory=dict)
    joined_late: Mapping[str, int] = field(default_factory=dict)
    bundles: Mapping[str, str] = field(default_factory=dict)


NOBODY = Parties()


def privacy_statement(
    config: RunConfig,
    privacy_cost: RunPrivacyCost | None,
    *,
    status: str,
    run_id: str = "",
    parties: Parties = NOBODY,
    simulated: bool = False,
    early: bool = False,
) -> dict[str, Any]:
    """The content of `privacy.json`.

    Args:
        config: The run.
        privacy_cost: None if no mechanism was on.
        status: `complete` or `interrupted`.
        run_id: The run's name.
        parties: Who took part and who did not.
        simulated: Whether the clients are a simulation's.
        early: Whether the run ended before its last round, by choice.
    """
    if privacy_cost is None:
        return {
            "private": False,
            "statement": "NOT PRIVATE: updates and exact counts left every client",
            "mechanism": config.privacy.mechanism,
            "run": run_id,
            "status": status,
            "refusals": dict(parties.refusals),
            "versions": versions(),
        }
    plan = privacy_cost.example_plan
    whole = status == "complete" and not early
    return {
        "private": True,
        "statement": _statement(config, privacy_cost),
        "mechanism": plan.mechanism,
        "run": run_id,
        "privacy_unit": plan.privacy_unit,
        "neighboring_relation": NEIGHBORING_RELATION,
        "sampling_method": config.mechanism.sampling_method,
        "accountant": ACCOUNTANT,
        "delta": config.privacy.delta,
        "epsilon_max": privacy_cost.epsilon_max,
        "epsilon_max_rdp": privacy_cost.rdp_max,
        "max_grad_norm": plan.max_grad_norm,
        "metrics": _metrics(config, privacy_cost),
        "charged": "rounds sent" if whole else "the whole plan, because the run stopped early",
        "scope": "this run alone; what earlier runs over the same images have spent is in their holder's ledger",
        "ledger": config.mechanism.ledger_text(simulated=simulated, kept=config.system.ledger),
        "floating_point": "noise on a grid, counted in the multiplier: a mitigation, not a proof",
        "status": status,
        "not_protected": _not_protected(config, privacy_cost, parties),
        **_who(config, privacy_cost, parties),
        "versions": versions(),
    }


def _who(config: RunConfig, privacy_cost: RunPrivacyCost, parties: Parties) -> dict[str, Any]:
    """Who took part, who refused, and how many never came."""
    return {
        "refusals": dict(parties.refusals),
        "absent": max(0, config.num_clients - len(privacy_cost.shares) - len(parties.refusals)),
        "joined_late": dict(parties.joined_late),
        "bundles": dict(parties.bundles),
        "clients": {name: _client(share, parties.heads.get(name)) for name, share in privacy_cost.shares.items()},
    }


def _statement(config: RunConfig, privacy_cost: RunPrivacyCost) -> str:
    plan = privacy_cost.example_plan
    exact = "; EXACT COUNTS of held-out images left and are not covered" if config.metrics == "exact" else ""
    return (
        f"each {plan.privacy_unit}: epsilon <= {privacy_cost.epsilon_max:.4f} at delta {config.privacy.delta:g} "
        f"({NEIGHBORING_RELATION}), {config.mechanism.noise_place}{exact}"
    )


def _metrics(config: RunConfig, privacy_cost: RunPrivacyCost) -> dict[str, Any]:
    counts = privacy_cost.example_plan.counts
    if counts is None:
        return {"release": config.metrics}
    return {
        "release": config.metrics,
        "mechanism": "exact discrete Gaussian, one vote a unit",
        "counts_noise_stddev": counts.noise_stddev,
        "closing_noise_stddev": counts.closing_noise_stddev,
    }


def _not_protected(config: RunConfig, privacy_cost: RunPrivacyCost, parties: Parties) -> list[str]:
    unpinned = [name for name in privacy_cost.shares if not parties.bundles.get(name)]
    exact = ("held-out images: their exact counts left",) if config.metrics == "exact" else ()
    gaps = config.mechanism.not_protected(num_clients=len(privacy_cost.shares), num_unpinned=len(unpinned))
    return [*gaps, *exact]


def _client(share: ClientPrivacyCost, head: SignedHead | None) -> dict[str, Any]:
    found: dict[str, Any] = {
        "epsilon": share.spent.pld,
        "epsilon_rdp": share.spent.rdp,
        "rounds": share.rounds,
        "closing": share.closing,
        "num_units": share.plan.num_units,
        "events": {part: [as_json(event) for event in events] for part, events in share.events.items()},
    }
    if head is not None:
        found["ledger"] = {"id": head.ledger, "seq": head.seq, "head": head.hash}
    return found
