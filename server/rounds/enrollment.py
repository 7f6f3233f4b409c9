"""Enrollment of clients, each of which accepts or refuses the whole run."""

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from flwr.app import Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common.errors import ClientFailure, FederationError, LedgerError
from common.ledger.signed_heads import HeadKeeper, SignedHead
from common.messages.codec import CONFIG, Declaration, decode_declaration, decode_head, query_config
from server.rounds.messaging import DECIDED, LATE, UNREACHABLE, deliver, failure_of
from server.rounds.node_registry import NodeRegistry
from server.rounds.waiting import Heard, Waiting

_log = logging.getLogger("bract.server")
# Codes for clients that the server does not let take part.
DISAGREES, SAME_NAME = "DISAGREES", "SAME-NAME"
# Attributes of a declaration in which all clients of one model must be equal.
_SHARED = ("classes", "input_shape", "backbone_hash")


@dataclass(frozen=True)
class EnrolledClient:
    """A client that takes part in the run.

    `node_id` is Flower's number of the client's node, None while the client is away.
    """

    declaration: Declaration
    node_id: int | None


@dataclass(frozen=True)
class Enrollment:
    """Result of the enrollment.

    `clients` are sorted by name. `refusals` says why others do not take part, by "node N" or "client NAME".
    `turned_away` holds their nodes, without those that were only late.
    """

    clients: Mapping[str, EnrolledClient]
    refusals: Mapping[str, str] = field(default_factory=dict)
    turned_away: frozenset[int] = frozenset()


@dataclass(frozen=True)
class EnrollmentReply:
    """A client's declaration, with the message that brought it."""

    client: EnrolledClient
    message: Message

    @property
    def name(self) -> str:
        """Name that the client declared."""
        return self.client.declaration.name

    @property
    def shared(self) -> tuple[object, ...]:
        """Values in which all clients of one model must be equal."""
        return tuple(getattr(self.client.declaration, attribute) for attribute in _SHARED)


def enroll_clients(
    grid: Grid,
    num_clients: int,
    *,
    run_id: str,
    keeper: HeadKeeper | None = None,
    nodes: NodeRegistry | None = None,
    min_clients: int | None = None,
    classes: tuple[str, ...] = (),
    reject: Callable[[Declaration], str] = lambda _: "",
    one_by_one: bool = False,
    waiting: Waiting | None = None,
    poll_seconds: float = 0.5,
    wait_seconds: float = 120.0,
    sizes: Mapping[str, int] | None = None,
) -> Enrollment:
    """Wait for the clients, ask for their declarations and check that these agree.

    A client whose policy or budget does not allow the run is left out, and the run goes on. With `min_clients`, so many
    are enough. Others may be away, fail, or disagree with the majority, and are left out, as are those that do not
    declare `classes` (if any are named) and those for which `reject` returns a reason. Without it all must come, and a
    failure is a mistake to be fixed. `run_id` is the same when a run is resumed. `wait_seconds` passes for the clients,
    and again for their replies. `one_by_one` is as in `deliver`. `waiting` records whom the run waits for. `sizes` are
    the declared sizes by name, in the order of the nodes. With them the first client is asked for all.

    Raises:
        FederationError: Too few clients came or agreed, a client failed, two have one name, or they disagree on
            classes, input shape or backbone.
    """
    strict = min_clients is None
    waiting, needed = waiting or Waiting(), num_clients if min_clients is None else min_clients
    with waiting.during("connect", {}, seconds=wait_seconds, total=num_clients, needed=needed) as heard:
        node_ids = _wait_for(grid, num_clients, min_clients, poll_seconds, wait_seconds, heard)
    asked = node_ids if sizes is None else node_ids[:1]
    replies, failures = ask_to_declare(
        grid, asked, run_id=run_id, seconds=wait_seconds, strict=strict, one_by_one=one_by_one, waiting=waiting
    )
    if sizes is not None and replies:
        replies = _repeated(replies[0], node_ids, sizes)
    refusals = {f"node {node}": failure for node, failure in failures.items()}
    if not strict:
        replies = _drop_rejected(replies, classes, reject, refusals)
    replies = reject_unverified(replies, keeper, nodes, refusals, strict=strict)
    if not replies:
        reasons = ", ".join(sorted(set(refusals.values()))) or "no client answered"
        raise FederationError(f"no client takes part: {reasons}")
    if strict:
        _check_agreement(replies)
    else:
        replies = _drop_minority(replies, refusals)
    log_refusals(refusals)
    enrolled = {reply.client.node_id for reply in replies}
    # A client that was only late may come later. One that has decided must not be asked before each round.
    late = {node for node, failure in failures.items() if failure in (LATE, UNREACHABLE)}
    clients = {reply.name: reply.client for reply in sorted(replies, key=lambda reply: reply.name)}
    return Enrollment(clients, refusals, frozenset(set(node_ids) - enrolled - late))


def ask_to_declare(
    grid: Grid,
    node_ids: Iterable[int],
    *,
    run_id: str,
    seconds: float,
    strict: bool,
    one_by_one: bool = False,
    waiting: Waiting | None = None,
) -> tuple[list[EnrollmentReply], dict[int, str]]:
    """Ask nodes for their declarations.

    A client that declares itself agrees to the run and reserves its whole plan. Return the declarations, and failure
    codes by node for the rest. With `strict` a failure that is not a refusal ends the run. `one_by_one` is as in
    `deliver`.

    Raises:
        FederationError: With `strict`, a client failed, is missing, or declared something malformed.
    """
    asked = sorted(node_ids)
    queries = [Message(RecordDict({CONFIG: query_config(run_id)}), node, MessageType.QUERY) for node in asked]
    nodes = {f"node {node}": node for node in asked}
    with (waiting or Waiting()).during("agree", nodes, seconds=seconds, needed=len(asked) if strict else 0) as heard:
        arrived = deliver(grid, queries, seconds=seconds, one_by_one=one_by_one, heard=heard)
    replies: list[EnrollmentReply] = []
    failures = {node: LATE for node in asked if node not in arrived}
    for node, message in sorted(arrived.items()):
        if message is None or message.has_error():
            failures[node] = failure_of(message)
            if strict and failures[node] not in DECIDED:
                raise FederationError(f"a client could not declare itself: {failures[node]}; its own log says more")
            continue
        try:
            replies.append(EnrollmentReply(EnrolledClient(decode_declaration(message.content), node), message))
        except FederationError as error:
            if strict:
                raise
            _log.error("node %s: %s", node, error)
            failures[node] = ClientFailure.MESSAGE.name
    if strict and LATE in failures.values():
        raise FederationError(f"only {len(arrived)} of {len(asked)} clients declared themselves")
    return replies, failures


def reject_unverified(
    replies: Sequence[EnrollmentReply],
    keeper: HeadKeeper | None,
    nodes: NodeRegistry | None,
    refusals: dict[str, str],
    *,
    strict: bool,
) -> list[EnrollmentReply]:
    """Return the clients whose name and ledger belong to their node.

    The reasons for the others are added to `refusals`. Runs without ledgers have no `keeper`, nodes without keys no
    `nodes`. With `strict` two clients of one name end the run.

    Raises:
        FederationError: With `strict`, two clients have one name.
    """
    # Names come first. A head is kept under a client's name, so a stranger's head must not get there.
    owned = [reply for reply in replies if _may_have_name(reply, nodes, refusals)]
    times = Counter(reply.name for reply in owned)
    repeated = [reply for reply in owned if times[reply.name] > 1]
    if strict and repeated:
        raise FederationError(f"two clients call themselves {repeated[0].name!r}")
    refusals |= {f"node {reply.client.node_id}": SAME_NAME for reply in repeated}
    named = [reply for reply in owned if times[reply.name] == 1]
    heads = {reply.name: head for reply in named if (head := _checked_head(reply, keeper, nodes, refusals)) is not None}
    if keeper is None:
        return named
    older = keeper.accept(heads.items())
    for name, reason in older.items():
        _log.error("%s", reason)
        refusals[f"client {name}"] = ClientFailure.LEDGER.name
    return [reply for reply in named if reply.name in heads and reply.name not in older]


def _repeated(first: EnrollmentReply, node_ids: Sequence[int], sizes: Mapping[str, int]) -> list[EnrollmentReply]:
    """Return the declarations of clients that differ in name and size only.

    Raises:
        FederationError: The first client declares another name or size, so the others' are not known either.
    """
    declared, (name, size) = first.client.declaration, next(iter(sizes.items()))
    if (declared.name, declared.num_units) != (name, size):
        raise FederationError(f"the first client declares itself {declared.name!r}, but {name!r} was expected")
    return [
        EnrollmentReply(EnrolledClient(replace(declared, name=name, num_units=size), node), first.message)
        for node, (name, size) in zip(node_ids, sizes.items(), strict=True)
    ]


def _may_have_name(reply: EnrollmentReply, nodes: NodeRegistry | None, refusals: dict[str, str]) -> bool:
    node = reply.client.node_id
    if nodes is None or node is None or nodes.owns(node, reply.name):
        return True
    _log.error("node %s calls itself %s, which is another node's name", node, reply.name)
    refusals[f"node {node}"] = SAME_NAME
    return False


def _checked_head(
    reply: EnrollmentReply, keeper: HeadKeeper | None, nodes: NodeRegistry | None, refusals: dict[str, str]
) -> SignedHead | None:
    """Return the checked head of a client's ledger, None if a check fails."""
    node, head = reply.client.node_id, None
    try:
        if keeper is not None:
            head = decode_head(reply.message.content)
            head.check()
        if nodes is not None and node is not None:
            nodes.check(node, reply.name, "" if head is None else head.ledger)
    except (LedgerError, FederationError) as error:
        _log.error("client %s: %s", reply.name, error)
        failure = ClientFailure.LEDGER if isinstance(error, LedgerError) else ClientFailure.MESSAGE
        refusals[f"client {reply.name}"] = failure.name
        return None
    return head


def _drop_rejected(
    replies: Sequence[EnrollmentReply],
    classes: tuple[str, ...],
    reject: Callable[[Declaration], str],
    refusals: dict[str, str],
) -> list[EnrollmentReply]:
    kept = []
    for reply in replies:
        declared = reply.client.declaration
        reason = DISAGREES if classes and declared.classes != classes else reject(declared)
        if reason:
            refusals[f"client {reply.name}"] = reason
        else:
            kept.append(reply)
    return kept


def agrees(declaration: Declaration, other: Declaration) -> bool:
    """Return whether two clients can train one model."""
    return all(getattr(declaration, attribute) == getattr(other, attribute) for attribute in _SHARED)


def log_refusals(refusals: Mapping[str, str]) -> None:
    """Log an error for each client that does not take part."""
    for client, reason in refusals.items():
        _log.error("%s does not take part: %s", client, reason)


def _wait_for(
    grid: Grid, num_clients: int, min_clients: int | None, poll_seconds: float, wait_seconds: float, heard: Heard
) -> list[int]:
    deadline = time.monotonic() + wait_seconds
    while len(node_ids := sorted(grid.get_node_ids())) < num_clients:
        if time.monotonic() >= deadline:
            if min_clients is not None and len(node_ids) >= min_clients:
                _log.warning("%d of %d clients are there after %.0f s", len(node_ids), num_clients, wait_seconds)
                break
            fewer = (
                "min-clients=N lets a run begin with fewer"
                if min_clients is None
                else f"min-clients={min_clients} are needed"
            )
            raise FederationError(
                f"num-clients={num_clients} but only {len(node_ids)} nodes are there after {wait_seconds:.0f} s: "
                f"{fewer}; under Ray, pass --federation-config num-supernodes={num_clients}"
            )
        heard(node_ids)
        time.sleep(poll_seconds)
    return node_ids


def _check_agreement(replies: Sequence[EnrollmentReply]) -> None:
    first = replies[0]
    for other in replies[1:]:
        for attribute, ours, theirs in zip(_SHARED, first.shared, other.shared, strict=True):
            if ours != theirs:
                raise FederationError(f"clients {first.name} and {other.name} disagree on {attribute}")


def _drop_minority(replies: Sequence[EnrollmentReply], refusals: dict[str, str]) -> list[EnrollmentReply]:
    """Return the clients that agree with the majority.

    Raises:
        FederationError: Two groups are equally large, so neither is the majority.
    """
    ranked = Counter(reply.shared for reply in replies).most_common(2)
    if len(ranked) > 1 and ranked[0][1] == ranked[1][1]:
        _check_agreement(replies)
    majority = ranked[0][0]
    refusals |= {f"client {reply.name}": DISAGREES for reply in replies if reply.shared != majority}
    return [reply for reply in replies if reply.shared == majority]
