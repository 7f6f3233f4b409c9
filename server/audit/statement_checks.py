"""Checks of a run's statement against its events, configuration and signed heads."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.config.schema import RunConfig
from common.errors import PrivacyError
from common.ledger.audit.costs import cost_alone, cost_of
from common.ledger.audit.integrity_checks import Remarks
from common.ledger.signed_heads import SignedHead
from common.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION, Spent
from common.privacy.batched_gradients import IN_WORDS, OPACUS
from common.privacy.counts.counts_plan import label_noise
from common.privacy.events import merged
from common.privacy.mechanisms.contract import Mechanism
from common.privacy.noise_error import in_words
from common.privacy.noise_error import stated as stated_noise
from common.privacy.plan import PrivacyPlan
from common.privacy.public_constants import PublicConstants
from server.audit.statement_reader import ClientStatement, PrivacyStatement
from server.audit.statement_words import check_bundles
from server.rounds.cohorts import draw_cohorts, join_cohorts, shrunk_cohort
from server.state.privacy_spent import (
    LABELS_IN_WORDS,
    ClientPrivacyCost,
    RunPrivacyCost,
    charged_rounds,
    rounds_of,
)

# Relative difference of two figures that count as equal.
_TOLERANCE = 1e-9
# Relative difference of two calibrations to one target, on different machines.
_CALIBRATED = 2e-3
# Relative: rounding of two noises of at least 0.5, each up by less than 1/1024.
_ROUNDED = 4e-3
# Field of a plan of counts -> its name in a statement, without the ending.
_NOISES = {"noise_stddev": "counts", "closing_noise_stddev": "closing"}
# The same for releases that not every plan has.
_FURTHER_NOISES = {
    "scores_noise_stddev": "scores",
    "calibration_noise_stddev": "calibration",
    "subgroups_noise_stddev": "subgroups",
}
# Client name -> ledger id, entry number and hash of each signed head that was kept.
KeptHeads = dict[str, set[tuple[str, int, str]]]
# Heads that belong to no round, namely those of enrollment, closing counts and end of the run.
_HEADS_BESIDE_ROUNDS = 3
# A client replies to the closing message with a head, after the statement of a complete run was written.
_HEADS_AFTER_END = 1


def is_same(first: float, second: float) -> bool:
    """Return whether two figures are equal up to rounding, False for NaN."""
    return abs(first - second) <= _TOLERANCE * max(abs(first), abs(second))


def check_epsilons(statement: PrivacyStatement, recomputed: Mapping[str, Spent], remarks: Remarks) -> None:
    """Compare every stated epsilon with the recomputed cost of its events."""
    for name, client in statement.clients.items():
        for accountant in ("pld", "rdp"):
            stated, cost = getattr(client.spent, accountant), getattr(recomputed[name], accountant)
            if not is_same(stated, cost):
                remarks.doubts.append(
                    f"client {name} states epsilon {stated:.6g} ({accountant.upper()}), its events cost {cost:.6g}"
                )
    for accountant in ("pld", "rdp"):
        stated = getattr(statement.spent, accountant)
        largest = max(getattr(client.spent, accountant) for client in statement.clients.values())
        if stated != largest:
            remarks.doubts.append(
                f"the run states epsilon {stated:.6g} ({accountant.upper()}), its largest is {largest:.6g}"
            )
    _check_alone(statement, remarks)
    # Readers look at the sentence first, so it must state the same figures.
    if f"epsilon <= {statement.spent.pld:.4f} at delta {statement.delta:g} " not in statement.text["statement"]:
        remarks.doubts.append("the sentence of the statement says another epsilon or delta than its figures")


def _check_alone(statement: PrivacyStatement, remarks: Remarks) -> None:
    """Compare the stated epsilons of one client's own share with its events."""
    figures = []
    for name, client in statement.clients.items():
        if any(event.noise_shares for events in client.events.values() for event in events):
            cost = cost_alone(client.events, delta=statement.delta).pld
            figures.append(cost)
            stated = statement.text["clients"][name].get("epsilon_alone")
            if not is_same(math.inf if stated is None else stated, cost) and not (stated is None and cost == math.inf):
                remarks.doubts.append(
                    f"client {name} states {stated} if all others collude, its events cost {cost:.6g}"
                )
    largest = max(figures, default=None)
    stated = statement.text.get("epsilon_max_alone")
    if largest is not None and stated != (largest if math.isfinite(largest) else None):
        remarks.doubts.append(f"the run states epsilon {stated} if all others collude, its largest is {largest:.6g}")


def events_cost(statement: PrivacyStatement) -> dict[str, Spent]:
    """Return the epsilon of each client's stated events, computed again.

    Raises:
        PrivacyError: The accountants disagree.
    """
    return {name: cost_of(client.events, delta=statement.delta) for name, client in statement.clients.items()}


def check_terms(statement: PrivacyStatement, config: RunConfig, remarks: Remarks) -> None:
    """Compare mechanism, unit, delta, pinned code and number of clients with the run's configuration."""
    check_bundles(statement, config.system.bundle, remarks)
    text, privacy = statement.text, config.privacy
    unit = "client" if config.mechanism.clips_clients else privacy.unit
    terms: dict[str, tuple[Any, Any]] = {
        "mechanism": (statement.mechanism, privacy.mechanism),
        "delta": (statement.delta, privacy.delta),
        "privacy_unit": (text["privacy_unit"], unit),
        "metrics": (text["metrics"].get("release"), config.metrics),
        "gradients": (text.get("gradients"), IN_WORDS if config.training.gradients == OPACUS else None),
        "class_weights": (text.get("class_weights"), LABELS_IN_WORDS if config.counts_labels else None),
    }
    for name, (stated, configured) in terms.items():
        if stated != configured:
            remarks.doubts.append(f"the statement says {name} {stated!r}, the run was configured for {configured!r}")
    constants = {"accountant": ACCOUNTANT, "neighboring_relation": NEIGHBORING_RELATION}
    for name, constant in constants.items():
        if text[name] != constant:
            remarks.warnings.append(
                f"the statement names another {name.replace('_', ' ')} than this version: {text[name]!r}"
            )
    # Every client must be named, counted as absent, or refused. Otherwise one could be left out unseen.
    if len(statement.clients) + len(text["refusals"]) + text["absent"] < config.num_clients:
        remarks.doubts.append(
            f"the statement is about {len(statement.clients)} clients and {len(text['refusals'])} refusals, "
            f"the run had {config.num_clients}"
        )


def check_plans(
    statement: PrivacyStatement,
    mechanism: Mechanism,
    constants: PublicConstants,
    num_rounds: int,
    seed: int,
    remarks: Remarks,
) -> tuple[dict[str, PrivacyPlan], RunPrivacyCost | None]:
    """Compare clip bound and events with the plans by the run's configuration.

    Args:
        statement: Privacy statement of the run.
        mechanism: Configured mechanism.
        constants: Configured public constants.
        num_rounds: Configured number of rounds.
        seed: Root seed of the run, from which cohorts are drawn.
        remarks: Gets a doubt for each client whose events do not follow.

    Returns:
        Plan of each client by name, without the clients for which no plan follows, and the stated cost of the run if
        it follows from the plans of all.
    """
    plans: dict[str, PrivacyPlan] = {}
    costs: dict[str, ClientPrivacyCost] = {}
    asked = rounds_of(statement.clients, _cohorts(statement, constants, num_rounds, seed))
    for name, client in statement.clients.items():
        with remarks.about(f"the events of client {name}"):
            plans[name] = _stated_plan(statement, client, mechanism, constants)
            costs[name] = _checked_cost(client, plans[name], None if statement.whole_plan else asked[name])
    # A clip bound by rule follows from the stated noise, so it is compared here and not with the settings.
    stated = statement.text["max_grad_norm"]
    for bound in {plan.max_grad_norm for plan in plans.values()}:
        if stated != bound:
            remarks.doubts.append(f"the statement says max_grad_norm {stated!r}, the run was configured for {bound!r}")
    if len(costs) < len(statement.clients):
        return plans, None
    _check_parts(statement, costs, remarks)
    return plans, RunPrivacyCost(costs)


def _check_parts(statement: PrivacyStatement, costs: Mapping[str, ClientPrivacyCost], remarks: Remarks) -> None:
    """Compare the stated epsilon of trained and held-out units with that of their events."""
    stated = statement.text.get("epsilon_parts")
    # Statements from before this field existed lack it.
    if stated is None:
        return
    parts = RunPrivacyCost(costs).parts(fresh=True)
    with remarks.about("epsilon_parts"):
        if stated.keys() != parts.keys() or not all(is_same(stated[name], parts[name]) for name in parts):
            raise PrivacyError("they are not what the events of trained and of held-out units cost")


def _checked_cost(client: ClientStatement, plan: PrivacyPlan, asked: Sequence[int] | None) -> ClientPrivacyCost:
    """Compare a client's stated events with its plan and return their cost."""
    rounds, counted = charged_rounds(plan, asked)
    cost = ClientPrivacyCost(plan, client.rounds, counted, client.closing, client.spent)
    if client.rounds != rounds:
        raise PrivacyError(f"{client.rounds} rounds are charged where {rounds} must be")
    if {part: merged(events) for part, events in cost.events.items()} != client.events:
        raise PrivacyError("they do not follow from the run's configuration and the stated rounds")
    if client.closing != (plan.counts is not None):
        raise PrivacyError("the closing counts are charged though the plan has none, or the other way round")
    return cost


def _cohorts(statement: PrivacyStatement, constants: PublicConstants, num_rounds: int, seed: int) -> list[list[str]]:
    """Return the cohorts of all rounds by the names in the statement."""
    names = [name for name in statement.clients if name not in statement.joined_late]
    size = shrunk_cohort(constants.cohort_size, constants.num_clients, taking_part=len(names))
    cohorts = draw_cohorts(names, cohort_size=size, num_rounds=num_rounds, seed=seed)
    # The late clients must be added in the order in which they came, since each takes the room that is left.
    for name, first in statement.joined_late.items():
        if name not in statement.clients:
            continue
        cohorts = join_cohorts(
            cohorts, name, first, cohort_size=constants.cohort_size, participations=constants.participations
        )
    return cohorts


def _stated_plan(
    statement: PrivacyStatement, client: ClientStatement, mechanism: Mechanism, constants: PublicConstants
) -> PrivacyPlan:
    """Return a client's plan by the configuration, with the noise that is stated.

    Raises:
        PrivacyError: The stated noise is not the configured one, or less than the plan needs.
    """
    of_labels = label_noise(constants, sample_rate=1.0, steps=1) if constants.noise_multiplier is None else None
    configured = constants.noise_multiplier
    if len(client.noises) != 1 or (configured is not None and client.noises != {configured}):
        raise PrivacyError("they have another noise than the run was configured for")
    # With the stated noise the plan needs no calibration, which could differ in its last digits. `check_target`
    # compares the cost with the target.
    # The same holds for noise of counts that was not set.
    metrics = statement.text["metrics"]
    constants = replace(
        constants,
        noise_multiplier=min(client.noises),
        target_epsilon=None,
        local_epochs=mechanism.local_epochs(constants, client.num_units),
        counts_noise=constants.counts_noise or metrics.get("counts_noise_stddev"),
        closing_noise=constants.closing_noise or metrics.get("closing_noise_stddev"),
    )
    plan = mechanism.plan(constants, client.num_units)
    # A run of an earlier version had another sampler. `check_noise_error` compares what is said of its error.
    plan = replace(plan, sampler=min(client.samplers))
    if plan.label_noise_stddev is not None:
        plan = replace(plan, label_noise_stddev=_stated_label_noise(client, of_labels or plan.label_noise_stddev))
    if plan.counts is None:
        return plan
    stated = {name: metrics[f"{prefix}_noise_stddev"] for name, prefix in _NOISES.items()}
    enough = all(noise >= getattr(plan.counts, name) for name, noise in stated.items())
    # Noises of histograms and subgroups, which not every plan has.
    of_more = {
        name: metrics[f"{prefix}_noise_stddev"]
        for name, prefix in _FURTHER_NOISES.items()
        if getattr(plan.counts, name) is not None
    }
    # They follow from the matrix's noise, which was rounded up before it was stated.
    enough = enough and all(noise >= getattr(plan.counts, name) * (1 - _ROUNDED) for name, noise in of_more.items())
    stated |= of_more
    if tuple(metrics.get("subgroups", ())) != plan.counts.subgroups:
        raise PrivacyError("its counts are divided into other subgroups than the run was configured for")
    if not enough:
        raise PrivacyError("its counts have less noise than the run was configured for")
    return replace(plan, counts=replace(plan.counts, **stated))


def _stated_label_noise(client: ClientStatement, least: float) -> float:
    """Return the stated noise of label counts.

    It may differ from the rule's in its last digits.

    Raises:
        PrivacyError: It is less than the rule's.
    """
    # A client that was asked in no round has counted nothing.
    stated = min(client.label_noises, default=least)
    if stated < least * (1 - _CALIBRATED):
        raise PrivacyError("its label counts have less noise than the run was configured for")
    return stated


def check_noise_error(statement: PrivacyStatement, remarks: Remarks) -> str:
    """Compare what is stated of the noise with the error of the events.

    Return one sentence on the noise, as the events say it.
    """
    histories = [events for client in statement.clients.values() for events in client.events.values()]
    _compare_noise(statement.text, stated_noise(histories), remarks)
    return in_words(histories)


def _compare_noise(text: Mapping[str, Any], expected: Mapping[str, Any], remarks: Remarks) -> None:
    if text["floating_point"] != expected["floating_point"]:
        remarks.doubts.append(
            f"the statement says of its noise {text['floating_point']!r}, its events {expected['floating_point']!r}"
        )
    found, figures = text.get("noise_error"), expected.get("noise_error")
    if found is None and figures is None:
        return
    # The figures are computed anew from the constants of the sampler, and not read from the statement.
    if not isinstance(found, dict) or figures is None or found.keys() != figures.keys():
        remarks.doubts.append("the error of the noise is stated without its figures, or the other way round")
        return
    for name, figure in figures.items():
        if type(found[name]) not in (int, float) or not is_same(found[name], figure):
            remarks.doubts.append(f"the statement has {name} {found[name]!r} of the noise, its events have {figure!r}")


def check_target(costs: Mapping[str, Spent], target: float | None, remarks: Remarks) -> None:
    """Compare the cost of each client's whole plan with the run's target epsilon."""
    if target is None:
        return
    for name, cost in costs.items():
        if not cost.pld <= target * (1 + _TOLERANCE):
            remarks.doubts.append(f"the plan of client {name} costs epsilon {cost.pld:.6g}, the target was {target:g}")


def check_end(
    statement: PrivacyStatement, num_rounds: int, lines: Sequence[Mapping[str, Any]] | None, remarks: Remarks
) -> None:
    """Check that a run had all its rounds if its statement charges rounds sent.

    `lines` are those of `rounds.jsonl`, None without such a file.
    """
    # Stopping early is a choice that can depend on the data, so the whole plan must be charged then.
    if statement.whole_plan:
        return
    if not statement.complete:
        remarks.doubts.append("the run was interrupted, and its statement charges the rounds sent, not the whole plan")
    if lines is None:
        remarks.warnings.append("rounds.jsonl is missing, so it cannot be checked whether the run stopped early")
    elif len(lines) != num_rounds:
        remarks.doubts.append(
            f"{len(lines)} of {num_rounds} rounds were run, and the statement does not charge the whole plan"
        )


def check_heads_of(statement: PrivacyStatement, heads: Iterable[tuple[str, SignedHead]], remarks: Remarks) -> None:
    """Compare the stated heads with the signed heads that the server kept.

    A wrong signature is a doubt, and so is a client with heads that the statement does not name.
    """
    kept: KeptHeads = {}
    # Clients of one holder share a ledger, so another client may have sent the latest head of a client.
    all_heads: set[tuple[str, int, str]] = set()
    for name, head in heads:
        with remarks.about(f"the head of client {name} at entry {head.seq}"):
            head.check()
            kept.setdefault(name, set()).add((head.ledger, head.seq, head.hash))
            all_heads.add((head.ledger, head.seq, head.hash))
    for name in sorted(kept.keys() - statement.clients.keys()):
        remarks.doubts.append(f"client {name} has sent heads of its ledger, but the statement does not name it")
    for name, client in statement.clients.items():
        own_heads = kept.get(name, set())
        if client.head not in all_heads or client.head[0] not in {ledger for ledger, *_ in own_heads}:
            remarks.doubts.append(f"the head that is stated for client {name} is not among those that were kept")
        elif statement.complete and sum(seq > client.head[1] for _, seq, _ in own_heads) > _HEADS_AFTER_END:
            remarks.doubts.append(f"client {name} has sent heads after the one that is stated at the end of the run")


def check_number_of_heads(
    statement: PrivacyStatement, heads: Iterable[tuple[str, SignedHead]], remarks: Remarks
) -> None:
    """Compare the number of each client's heads with its charged rounds.

    Each round writes two entries to the ledger and sends one head. A client that was killed between its entries, or
    that refused a request, may have sent a few heads more. More heads than entries mean more rounds than are charged.
    """
    kept: KeptHeads = {}
    for name, head in heads:
        kept.setdefault(name, set()).add((head.ledger, head.seq, head.hash))
    for name, client in statement.clients.items():
        num_heads = len(kept.get(name, ()))
        # Entries of other clients in the same ledger would change its heads too.
        if not num_heads or _shares_ledger(name, kept):
            continue
        text = f"client {name} has sent {num_heads} different heads, and {client.rounds} rounds are charged"
        if num_heads > 2 * client.rounds + _HEADS_BESIDE_ROUNDS + 1:
            remarks.doubts.append(f"{text}: more rounds must have taken place")
        elif num_heads > client.rounds + _HEADS_BESIDE_ROUNDS:
            remarks.warnings.append(f"{text}: kills or refusals during the run would explain it")


def _shares_ledger(name: str, kept: KeptHeads) -> bool:
    """Return whether another client has sent heads of the same ledger."""
    own = {ledger for ledger, *_ in kept[name]}
    return any(own & {ledger for ledger, *_ in heads} for other, heads in kept.items() if other != name)
