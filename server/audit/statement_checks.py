"""Whether a run's statement follows from its events, its configuration and its heads."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from common.config.schema import RunConfig
from common.errors import PrivacyError
from common.ledger.audit.costs import cost_of
from common.ledger.audit.integrity_checks import Remarks
from common.ledger.signed_heads import SignedHead
from common.privacy.accounting import ACCOUNTANT, NEIGHBORING_RELATION, Spent
from common.privacy.events import merged
from common.privacy.plan import CountsPlan, PrivacyPlan
from server.audit.statement_reader import ClientStatement, PrivacyStatement
from server.rounds.cohorts import draw_cohorts, join_cohorts, shrunk_cohort
from server.state.privacy_spent import ClientPrivacyCost

_EXACT = 1e-9
# Client -> ledger, number and hash of each head that was kept.
Kept = dict[str, set[tuple[str, int, str]]]
# Heads of the first meeting, of the closing counts, and of the end of a run.
_BESIDE_ROUNDS = 3
_AFTER_THE_END = 1  # heads that follow a complete run's statement: the answer to its closing message


def is_same(one: float, other: float) -> bool:
    """Equal up to the last digits; nothing equals what is no number."""
    return abs(one - other) <= _EXACT * max(abs(one), abs(other))


def check_epsilons(statement: PrivacyStatement, recomputed: Mapping[str, Spent], remarks: Remarks) -> None:
    """Stated figures are those that the stated events cost, and the largest is the largest."""
    for name, client in statement.clients.items():
        for what in ("pld", "rdp"):
            said, found = getattr(client.spent, what), getattr(recomputed[name], what)
            if not is_same(said, found):
                remarks.doubts.append(
                    f"client {name} states epsilon {said:.6g} ({what.upper()}), its events cost {found:.6g}"
                )
    for what in ("pld", "rdp"):
        said, most = getattr(statement.spent, what), max(getattr(c.spent, what) for c in statement.clients.values())
        if said != most:
            remarks.doubts.append(f"the run states epsilon {said:.6g} ({what.upper()}), its largest is {most:.6g}")
    if f"epsilon <= {statement.spent.pld:.4f} at delta {statement.delta:g} " not in statement.text["statement"]:
        remarks.doubts.append("the sentence of the statement says another epsilon or delta than its figures")


def events_cost(statement: PrivacyStatement) -> dict[str, Spent]:
    """Client -> what its stated events cost, computed anew.

    Raises:
        PrivacyError: The accountants disagree.
    """
    return {name: cost_of(client.events, delta=statement.delta) for name, client in statement.clients.items()}


def check_terms(statement: PrivacyStatement, config: RunConfig, remarks: Remarks) -> None:
    """What the statement says of mechanism, unit and size is what the run was configured for."""
    text, privacy = statement.text, config.privacy
    at_server = config.mechanism.noise_at_server
    unit = "client" if at_server else privacy.unit
    bound = privacy.clipping_norm if at_server else privacy.max_grad_norm
    wanted: dict[str, tuple[Any, Any]] = {
        "mechanism": (statement.mechanism, privacy.mechanism),
        "delta": (statement.delta, privacy.delta),
        "privacy_unit": (text["privacy_unit"], unit),
        "max_grad_norm": (text["max_grad_norm"], bound),
        "metrics": (text["metrics"].get("release"), config.metrics),
    }
    for name, (said, found) in wanted.items():
        if said != found:
            remarks.doubts.append(f"the statement says {name} {said!r}, the run was configured for {found!r}")
    constants = {"accountant": ACCOUNTANT, "neighboring_relation": NEIGHBORING_RELATION}
    for name, known in constants.items():
        if text[name] != known:
            remarks.warnings.append(
                f"the statement names another {name.replace('_', ' ')} than this version: {text[name]!r}"
            )
    if len(statement.clients) + len(text["refusals"]) + text["absent"] < config.num_clients:
        remarks.doubts.append(
            f"the statement is about {len(statement.clients)} clients and {len(text['refusals'])} refusals, "
            f"the run had {config.num_clients}"
        )


def check_plans(statement: PrivacyStatement, config: RunConfig, remarks: Remarks) -> dict[str, PrivacyPlan]:
    """Stated events are those of the plan that the configuration gives; returns the plans that can be made."""
    plans: dict[str, PrivacyPlan] = {}
    asked = _asked(statement, config)
    for name, client in statement.clients.items():
        with remarks.about(f"the events of client {name}"):
            plans[name] = _plan_of(statement, client, config)
            _check_events(client, plans[name], plans[name].num_rounds if statement.whole_plan else asked[name])
    return plans


def _check_events(client: ClientStatement, plan: PrivacyPlan, rounds: int) -> None:
    expected = ClientPrivacyCost(plan, client.rounds, client.closing, client.spent).events
    if {part: merged(events) for part, events in expected.items()} != client.events:
        raise PrivacyError("they do not follow from the run's configuration and the stated rounds")
    if client.rounds != rounds:
        raise PrivacyError(f"{client.rounds} rounds are charged where {rounds} must be")
    if client.closing != (plan.counts is not None):
        raise PrivacyError("the closing counts are charged where there are none, or the other way round")


def _asked(statement: PrivacyStatement, config: RunConfig) -> Counter[str]:
    """Client -> rounds of a whole run in which it was asked: cohorts follow from the names and the seed."""
    names = [name for name in statement.clients if name not in statement.joined_late]
    size = shrunk_cohort(config, len(names))
    cohorts = draw_cohorts(names, cohort_size=size, num_rounds=config.num_rounds, seed=config.seed)
    for name, first in statement.joined_late.items():  # in the order in which they came
        if name not in statement.clients:
            continue
        cohorts = join_cohorts(
            cohorts, name, first, cohort_size=config.cohort_size, participations=config.participations
        )
    return Counter(name for cohort in cohorts for name in cohort)


def _plan_of(statement: PrivacyStatement, client: ClientStatement, config: RunConfig) -> PrivacyPlan:
    """The plan from public constants, with the noise as stated: no noise is looked for again."""
    wanted = config.privacy.noise_multiplier
    if len(client.noises) != 1 or (wanted is not None and client.noises != {wanted}):
        raise PrivacyError("they have another noise than the run was configured for")
    constants = replace(config.public_constants, noise_multiplier=min(client.noises), target_epsilon=None)
    plan = config.mechanism.plan(constants, client.num_units)
    if plan.counts is None:
        return plan
    metrics = statement.text["metrics"]
    counts = CountsPlan(plan.num_rounds, metrics["counts_noise_stddev"], metrics["closing_noise_stddev"])
    enough = counts.noise_stddev >= plan.counts.noise_stddev
    if not (enough and counts.closing_noise_stddev >= plan.counts.closing_noise_stddev):
        raise PrivacyError("its counts have less noise than the run was configured for")
    return replace(plan, counts=counts)


def check_target(spent: Mapping[str, Spent], config: RunConfig, remarks: Remarks) -> None:
    """No whole plan costs more than the run promised."""
    target = config.privacy.target_epsilon
    if target is None:
        return
    for name, found in spent.items():
        if not found.pld <= target * (1 + _EXACT):
            remarks.doubts.append(f"the plan of client {name} costs epsilon {found.pld:.6g}, the target was {target:g}")


def check_end(
    statement: PrivacyStatement, config: RunConfig, lines: Sequence[Mapping[str, Any]] | None, remarks: Remarks
) -> None:
    """A statement that charges the rounds that were sent is about a run that had all of them."""
    if statement.whole_plan:
        return
    if not statement.complete:
        remarks.doubts.append("the run was interrupted, and its statement charges the rounds sent, not the whole plan")
    if lines is None:
        remarks.warnings.append("rounds.jsonl is missing: whether the run stopped early cannot be told from it")
    elif len(lines) != config.num_rounds:
        remarks.doubts.append(
            f"{len(lines)} of {config.num_rounds} rounds were run, and the statement does not charge the whole plan"
        )


def check_heads_of(statement: PrivacyStatement, heads: Iterable[tuple[str, SignedHead]], remarks: Remarks) -> None:
    """Every stated head is signed and was kept, and nobody whose head was kept is left out."""
    kept: Kept = {}
    # Clients of one holder share a ledger, so that the latest head of one may have been sent by another.
    of_any: set[tuple[str, int, str]] = set()
    for who, head in heads:
        with remarks.about(f"the head of client {who} at entry {head.seq}"):
            head.check()
            kept.setdefault(who, set()).add((head.ledger, head.seq, head.hash))
            of_any.add((head.ledger, head.seq, head.hash))
    for who in sorted(kept.keys() - statement.clients.keys()):
        remarks.doubts.append(f"client {who} has sent heads of its ledger, and the statement is silent about it")
    for name, client in statement.clients.items():
        mine = kept.get(name, set())
        if client.head not in of_any or client.head[0] not in {ledger for ledger, *_ in mine}:
            remarks.doubts.append(f"the head that is stated for client {name} is not among those that were kept")
        elif statement.complete and sum(seq > client.head[1] for _, seq, _ in mine) > _AFTER_THE_END:
            remarks.doubts.append(f"client {name} has sent heads after the one that is stated at the end of the run")


def check_number_of_heads(
    statement: PrivacyStatement, heads: Iterable[tuple[str, SignedHead]], remarks: Remarks
) -> None:
    """A client does not sign more different heads than the rounds that are charged explain.

    Each round leaves two entries, and a head with its reply. More heads than rounds come from a client that was killed
    between its entries, or that refused something; more than entries come from nowhere.
    """
    kept: Kept = {}
    for who, head in heads:
        kept.setdefault(who, set()).add((head.ledger, head.seq, head.hash))
    for name, client in statement.clients.items():
        mine = kept.get(name, set())
        if not mine or not _alone(name, kept):
            continue
        said = f"client {name} has sent {len(mine)} different heads, and {client.rounds} rounds are charged"
        if len(mine) > 2 * client.rounds + _BESIDE_ROUNDS + 1:
            remarks.doubts.append(f"{said}: there were more")
        elif len(mine) > client.rounds + _BESIDE_ROUNDS:
            remarks.warnings.append(f"{said}: kills or refusals on the way would explain it")


def _alone(name: str, kept: Kept) -> bool:
    """Whether no other client has the ledger: others' entries would move its heads."""
    mine = {ledger for ledger, *_ in kept[name]}
    return not any(mine & {ledger for ledger, *_ in heads} for other, heads in kept.items() if other != name)
