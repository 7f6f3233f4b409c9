"""Before round 1: wait for the clients, learn who they are, and let those go that refuse the run."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import ClientFailure, FederationError, LedgerError
from common.ledger.signed_heads import HeadKeeper, SignedHead
from common.messages.codec import CONFIG, Declaration, decode_declaration, decode_head, query_config
from server.rounds.messaging import DECIDED, LATE, UNREACHABLE, deliver, failure_of
from server.rounds.node_registry import NodeRegistry

_log = logging.getLogger("bract.server")
DISAGREES, SAME_NAME = "DISAGREES", "SAME-NAME"
_COMMON = ("classes", "input_shape", "backbone_hash")


@dataclass(frozen=True)
class Client:
    """One client of this run: what it declared, and where Flower reaches it; None while it is away."""

    declaration: Declaration
    node_id: int | None


@dataclass(frozen=True)
class Meeting:
    """Who came.

    Attributes:
        clients: Those that take part, by name, sorted.
        refusals: Why others do not, by Flower's number of their node.
        turned_away: Their nodes, without those that were only late.
    """

    clients: Mapping[str, Client]
    refusals: Mapping[str, str] = field(default_factory=dict)
    turned_away: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Declared:
    """A client's answer to the question who it is."""

    client: Client
    reply: Message

    @property
    def name(self) -> str:
        """What the client calls itself."""
        return self.client.declaration.name


def enroll_clients(
    grid: Grid,
    num_clients: int,
    *,
    run_id: str,
    keeper: HeadKeeper | None = None,
    nodes: NodeRegistry | None = None,
    least: int | None = None,
    classes: tuple[str, ...] = (),
    refuse: Callable[[Declaration], str] = lambda _: "",
    one_by_one: bool = False,
    poll_seconds: float = 0.5,
    wait_seconds: float = 120.0,
) -> Meeting:
    """Wait for all clients, ask each to declare itself and to agree to the run, and check that they agree.

    A client whose policy or budget does not allow the run is left out; the run goes on.

    Args:
        grid: Any Flower grid.
        num_clients: How many clients the run is configured for.
        run_id: The run's name, the same when it is resumed.
        keeper: Remembers the heads of the clients' ledgers, where replies carry them.
        nodes: Remembers which node came with which name and ledger.
        least: How many clients are enough: others may be away, fail, or disagree with most, and are left out and
            named. None where all must come, and a failure is a mistake to be mended.
        classes: What all must declare, with `least`; empty where the clients' own lists decide.
        refuse: Why the run has no place for a client, or an empty text; asked with `least`.
        one_by_one: See `deliver`.
        poll_seconds: Pause between looks while some are missing.
        wait_seconds: How long to wait for them, and for their answers.

    Raises:
        FederationError: Too few clients came or agreed, a client failed, two have one name, or they
            disagree on classes, input shape or backbone.
    """
    node_ids = _wait_for(grid, num_clients, least, poll_seconds, wait_seconds)
    answers, failures = ask_to_declare(
        grid, node_ids, run_id=run_id, seconds=wait_seconds, strict=least is None, one_by_one=one_by_one
    )
    refusals = {f"node {node}": why for node, why in failures.items()}
    if least is not None:
        answers = _drop_unfit(answers, classes, refuse, refusals)
    answers = reject_unverified(answers, keeper, nodes, refusals, strict=least is None)
    if not answers:
        raise FederationError(f"no client takes part: {', '.join(sorted(set(refusals.values()))) or 'nobody answered'}")
    if least is None:
        _check_agreement([one.client.declaration for one in answers])
    else:
        answers = _drop_minority(answers, refusals)
    for who, why in refusals.items():
        _log.error("%s does not take part: %s", who, why)
    taken = {one.client.node_id for one in answers}
    away = frozenset(node for node in node_ids if node not in taken and failures.get(node) not in (LATE, UNREACHABLE))
    return Meeting({one.name: one.client for one in sorted(answers, key=lambda one: one.name)}, refusals, away)


def ask_to_declare(
    grid: Grid, node_ids: Iterable[int], *, run_id: str, seconds: float, strict: bool, one_by_one: bool = False
) -> tuple[list[Declared], dict[int, str]]:
    """Ask nodes who they are, which is also when they agree to the run or refuse it.

    Args:
        grid: Any Flower grid.
        node_ids: Whom to ask.
        run_id: The run's name.
        seconds: How long to wait for answers.
        strict: Whether a failure that is no refusal ends the run.
        one_by_one: See `deliver`.

    Returns:
        What was declared, and why others did not, by node.

    Raises:
        FederationError: With `strict`: a client failed, is missing, or declared something malformed.
    """
    asked = sorted(node_ids)
    queries = [Message(RecordDict({CONFIG: query_config(run_id)}), node, MessageType.QUERY) for node in asked]
    replies = deliver(grid, queries, seconds=seconds, one_by_one=one_by_one)
    answers: list[Declared] = []
    failures = {node: LATE for node in asked if node not in replies}
    for node, reply in sorted(replies.items()):
        if reply is None or reply.has_error():
            failures[node] = failure_of(reply)
            if strict and failures[node] not in DECIDED:
                raise FederationError(f"a client could not declare itself: {failures[node]}; its own log says more")
            continue
        try:
            answers.append(Declared(Client(decode_declaration(reply.content), node), reply))
        except FederationError as error:
            if strict:
                raise
            _log.error("node %s: %s", node, error)
            failures[node] = ClientFailure.MESSAGE.name
    if strict and LATE in failures.values():
        raise FederationError(f"only {len(replies)} of {len(asked)} clients declared themselves")
    return answers, failures


def reject_unverified(
    answers: Sequence[Declared],
    keeper: HeadKeeper | None,
    nodes: NodeRegistry | None,
    refusals: dict[str, str],
    *,
    strict: bool,
) -> list[Declared]:
    """Those that are who they say, with the ledger they had; the others are added to the refusals, by their nodes.

    Names first: a head is kept under a name, and must not be kept under another's.

    Args:
        answers: What was declared.
        keeper: Remembers the heads; None in runs without.
        nodes: Remembers which node came with which name and ledger.
        refusals: Who does not take part, and why; changed.
        strict: Whether two of one name end the run.

    Raises:
        FederationError: With `strict`: two clients have one name.
    """
    owned = [one for one in answers if _may_have_name(one, nodes, refusals)]
    if strict:
        _check_names(owned)
    named = _drop_same_names(owned, refusals)
    heads = {one.name: head for one in named if (head := _head_of(one, keeper, nodes, refusals)) is not None}
    refused = {} if keeper is None else keeper.accept(heads.items())
    for name, why in refused.items():
        _log.error("%s", why)
        refusals[f"client {name}"] = ClientFailure.LEDGER.name
    if keeper is not None:
        named = [one for one in named if one.name in heads and one.name not in refused]
    return named


def _may_have_name(one: Declared, nodes: NodeRegistry | None, refusals: dict[str, str]) -> bool:
    node = one.client.node_id
    if nodes is None or node is None or nodes.owns(node, one.name):
        return True
    _log.error("node %s calls itself %s, which is another node's name", node, one.name)
    refusals[f"node {node}"] = SAME_NAME
    return False


def _head_of(
    one: Declared, keeper: HeadKeeper | None, nodes: NodeRegistry | None, refusals: dict[str, str]
) -> SignedHead | None:
    """The head that a client came with, if it is its own; remembers the node with it."""
    node, head = one.client.node_id, None
    try:
        if keeper is not None:
            head = decode_head(one.reply.content)
            head.check()
        if nodes is not None and node is not None:
            nodes.check(node, one.name, "" if head is None else head.ledger)
    except LedgerError as error:
        _log.error("client %s: %s", one.name, error)
        refusals[f"client {one.name}"] = ClientFailure.LEDGER.name
        return None
    except FederationError as error:
        _log.error("client %s: %s", one.name, error)
        refusals[f"client {one.name}"] = ClientFailure.MESSAGE.name
        return None
    return head


def _drop_unfit(
    answers: Sequence[Declared],
    classes: tuple[str, ...],
    refuse: Callable[[Declaration], str],
    refusals: dict[str, str],
) -> list[Declared]:
    kept = []
    for one in answers:
        declared = one.client.declaration
        why = DISAGREES if classes and declared.classes != classes else refuse(declared)
        if why:
            refusals[f"client {one.name}"] = why
        else:
            kept.append(one)
    return kept


def agrees(declaration: Declaration, other: Declaration) -> bool:
    """Whether two clients can train one model."""
    return all(getattr(declaration, name) == getattr(other, name) for name in _COMMON)


def _wait_for(grid: Grid, num_clients: int, least: int | None, poll_seconds: float, wait_seconds: float) -> list[int]:
    deadline = time.monotonic() + wait_seconds
    while len(node_ids := sorted(grid.get_node_ids())) < num_clients:
        if time.monotonic() >= deadline:
            if least is not None and len(node_ids) >= least:
                _log.warning("%d of %d clients are there after %.0f s", len(node_ids), num_clients, wait_seconds)
                break
            fewer = "min-clients lets a run begin with fewer" if least is None else f"min-clients={least} are needed"
            raise FederationError(
                f"num-clients={num_clients} but only {len(node_ids)} nodes are there after {wait_seconds:.0f} s: "
                f"{fewer}; under Ray, pass --federation-config num-supernodes={num_clients}"
            )
        time.sleep(poll_seconds)
    return node_ids


def _check_names(answers: Sequence[Declared]) -> None:
    for name, times in Counter(one.name for one in answers).items():
        if times > 1:
            raise FederationError(f"two clients call themselves {name!r}")


def _drop_same_names(answers: Sequence[Declared], refusals: dict[str, str]) -> list[Declared]:
    times = Counter(one.name for one in answers)
    for one in answers:
        if times[one.name] > 1:
            refusals[f"node {one.client.node_id}"] = SAME_NAME
    return [one for one in answers if times[one.name] == 1]


def _check_agreement(declarations: Sequence[Declaration]) -> None:
    first = declarations[0]
    for other in declarations[1:]:
        for field_name in _COMMON:
            if getattr(other, field_name) != getattr(first, field_name):
                raise FederationError(f"clients {first.name} and {other.name} disagree on {field_name}")


def _drop_minority(answers: Sequence[Declared], refusals: dict[str, str]) -> list[Declared]:
    """Those that agree with most; where it is a draw there is no telling who is right.

    Raises:
        FederationError: It is a draw.
    """
    groups = Counter(tuple(getattr(one.client.declaration, name) for name in _COMMON) for one in answers)
    ranked = groups.most_common(2)
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        _check_agreement([one.client.declaration for one in answers])
    kept = [one for one in answers if tuple(getattr(one.client.declaration, name) for name in _COMMON) == ranked[0][0]]
    for one in answers:
        if one not in kept:
            refusals[f"client {one.name}"] = DISAGREES
    return kept
