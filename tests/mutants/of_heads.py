"""Heads of ledgers that are checked on one path alone, in part, or not kept."""

from functools import partial

from common.ledger import signed_heads
from common.ledger.signed_heads import HeadKeeper, SignedHead
from server import federation, late_joining
from server.rounds import closing_evaluation, enrollment, node_registry
from server.rounds.node_registry import NodeRegistry
from server.rounds.replies import ReplyCollector
from tests.common.ledger import test_signed_heads as keeping
from tests.contracts import test_whole_digests as digests
from tests.mutants.faults import planted
from tests.server.rounds import test_enrollment as meetings
from tests.server.rounds import test_heads_on_each_path as paths
from tests.server.rounds import test_node_registry as nodes
from tests.server.rounds import test_replies as collected
from tests.support.server.enrollment import head_of

_MEETING = meetings.test_meet_clients_keeps_heads_and_leaves_an_older_ledger_out
planted(
    _MEETING,
    enrollment.reject_unverified,
    {
        "heads that nobody looks at in an enrollment": ("older = keeper.accept(heads.items())", "older = {}"),
        "an older ledger that takes part all the same": (" and reply.name not in older]", "]"),
    },
)
_FORGED = paths.test_a_forged_head_binds_no_node_to_a_ledger
planted(
    _FORGED,
    enrollment._checked_head,
    {
        "a forged head that binds a node": ("            head.check()\n", "            pass\n"),
    },
)

_LATE = late_joining.LateJoinHandler.poll
_LATE_HEAD = paths.test_a_late_client_with_an_older_forked_or_forged_ledger_is_turned_away
_LATE_NODE = paths.test_a_late_node_that_had_another_ledger_or_takes_a_name_is_turned_away
planted(
    _LATE_HEAD,
    _LATE,
    {
        "heads that nobody looks at when a client comes late": (
            "channel.keeper, channel.nodes, refusals",
            "None, channel.nodes, refusals",
        ),
    },
)
planted(
    _LATE_NODE,
    _LATE,
    {
        "nodes that nobody looks up when a client comes late": (
            "channel.keeper, channel.nodes, refusals",
            "channel.keeper, None, refusals",
        ),
    },
)

_DROP, _CLOSING = ReplyCollector._drop_older_ledgers, closing_evaluation._evaluate_in_parts
_EVALUATED = partial(
    paths.test_a_closing_evaluation_with_an_older_forked_or_forged_ledger_does_not_count, odd=head_of(1, 8)
)
_CLOSED = paths.test_a_closing_message_brings_the_last_head_and_an_older_one_is_heard
_NO_KEEPER = "ReplyCollector(Channel(channel.grid, channel.releases, channel.run_id), "
planted(
    _EVALUATED,
    _CLOSING,
    {
        "heads that nobody looks at in the closing evaluation": ("ReplyCollector(channel, ", _NO_KEEPER),
    },
)
planted(
    _CLOSED,
    closing_evaluation.close_at_clients,
    {
        "heads that nobody looks at when a run is closed": ("ReplyCollector(channel, ", _NO_KEEPER),
    },
)
planted(
    _EVALUATED,
    _DROP,
    {
        "heads that count beside a model alone": ("if LEDGER in reply.content", "if 'arrays' in reply.content"),
    },
)
planted(
    _CLOSED,
    _DROP,
    {
        "heads that count in replies with metrics alone": (
            "if LEDGER in reply.content",
            "if 'metrics' in reply.content",
        ),
    },
)
planted(
    _EVALUATED,
    _DROP,
    {
        "an older ledger whose reply is taken": ("del accepted[name]", "pass"),
    },
)
planted(
    collected.test_replies_leave_a_client_out_that_brings_no_head_or_a_broken_one,
    ReplyCollector._check,
    {
        "a reply without a head": ("decode_head(reply.content)", "pass"),
    },
)

_REGRESS = partial(keeping.test_head_keeper_refuses_a_regress_also_after_a_restart, again=False)
_RESTART = partial(keeping.test_head_keeper_refuses_a_regress_also_after_a_restart, again=True)
planted(
    _REGRESS,
    HeadKeeper._check,
    {
        "a fork that is as long as the ledger was": (
            "(head.seq < known.seq or (head.seq == known.seq and head.hash != known.hash))",
            "head.seq < known.seq",
        ),
    },
)
planted(
    partial(keeping.test_signed_head_that_was_changed_is_refused, change={"seq": 8}),
    HeadKeeper._check,
    {
        "heads whose signature nobody checks": ("head.check()", "pass"),
    },
)
planted(
    partial(keeping.test_head_keeper_refuses_a_known_client_with_another_ledger, again=False),
    HeadKeeper._check,
    {
        "a known client with a new ledger": ("self._ledger_of.get(client, head.ledger) != head.ledger", "False"),
    },
)
planted(
    _RESTART,
    HeadKeeper.__init__,
    {
        "heads that are forgotten at a restart": ("read_heads(file) if file.is_file() else ()", "()"),
    },
)
planted(
    keeping.test_head_keeper_writes_every_file_and_believes_each_alone,
    HeadKeeper.accept,
    {
        "heads in one file of two": ("self._files if accepted else ()", "self._files[:1] if accepted else ()"),
    },
)
planted(
    keeping.test_head_keeper_believes_the_latest_of_two_files_in_either_order,
    HeadKeeper._remember,
    {
        "the head that came last in place of the latest": ("known is None or head.seq > known.seq", "True"),
    },
)
planted(
    partial(keeping.test_signed_head_that_was_changed_is_refused, change={"seq": 8}),
    SignedHead.message,
    {
        "a signature over everything but the number": ("\\x1f{self.seq}", ""),
    },
)
planted(
    partial(keeping.test_signed_head_that_was_changed_is_refused, change={"hash": "b" * 64}),
    SignedHead.message,
    {
        "a signature over everything but the hash": ("\\x1f{self.hash}", ""),
    },
)
planted(
    digests.test_id_of_a_ledger_follows_whole_from_its_key,
    SignedHead.check,
    {
        "a ledger id by its first digits": (
            "ledger_id_of(self.public_key) == self.ledger",
            "self.ledger.startswith(ledger_id_of(self.public_key)[:16])",
        ),
    },
)
planted(
    digests.test_hash_of_a_head_is_whole,
    HeadKeeper._check,
    {
        "a head by its hash's first digits": ("head.hash != known.hash", "head.hash[:16] != known.hash[:16]"),
    },
)

_SYNCED = partial(keeping.test_head_keeper_syncs_each_file_and_the_name_of_a_new_one, durable=True)
planted(
    _SYNCED,
    signed_heads.append_lines,
    {
        "heads that are not synced": ("os.fsync(stream.fileno())", "pass"),
        "heads that are synced before they are written": ("stream.flush()", "pass"),
        "a new file of heads whose name is not synced": ("sync_folder(file.parent)", "pass"),
    },
)
planted(
    keeping.test_head_keeper_goes_on_after_half_a_line,
    signed_heads.append_lines,
    {
        "heads behind half a line": ("if size and stream", "if not size and stream"),
    },
)

_SERVERS = paths.test_a_server_of_real_clients_keeps_heads_of_all_runs_and_syncs_them
planted(
    _SERVERS,
    federation._head_keeper,
    {
        "heads of this run alone": ("if not simulated:", "if simulated:"),
        "heads of real clients that are not synced": ("durable=not simulated", "durable=simulated"),
    },
)

_OTHER_LEDGER = nodes.test_a_node_that_comes_with_another_ledger_is_left_out_under_any_name
planted(
    _OTHER_LEDGER,
    NodeRegistry.check,
    {
        "a node with a new ledger": ("ledger and known and known != ledger", "False"),
    },
)
planted(
    _OTHER_LEDGER,
    enrollment._checked_head,
    {
        "a node that is not looked up in an enrollment": ("if nodes is not None and node is not None:", "if False:"),
    },
)
planted(
    _OTHER_LEDGER,
    NodeRegistry.check,
    {
        "a node that is not written down": ("self._remember(node, name, ledger)\n", "return\n"),
    },
)
planted(
    digests.test_ledger_of_a_node_is_whole,
    NodeRegistry.check,
    {
        "a node's ledger by its first digits": ("known != ledger", "known[:16] != ledger[:16]"),
    },
)
planted(
    partial(nodes.test_a_node_that_takes_anothers_name_is_left_out_and_the_other_is_not, ledgers=True),
    enrollment._may_have_name,
    {
        "a name that is another node's": ("nodes.owns(node, reply.name)", "True"),
    },
)
planted(
    digests.test_name_of_a_node_is_its_own_letter_by_letter,
    NodeRegistry.owns,
    {
        "a name by its letters alone": (
            "self._owner_of.get(name, node)",
            "{each.casefold(): owner for each, owner in self._owner_of.items()}.get(name.casefold(), node)",
        ),
    },
)
planted(
    nodes.test_a_revoked_nodes_name_may_be_another_keys,
    node_registry.forget_node,
    {
        "all other nodes that are forgotten": ("!= node]", "== node]"),
    },
)
planted(
    digests.test_clients_agree_on_whole_hashes_and_on_classes_letter_by_letter,
    enrollment.agrees,
    {
        "clients of two backbones that agree": (
            "getattr(declaration, attribute) == getattr(other, attribute)",
            "str(getattr(declaration, attribute))[:20].lower() == str(getattr(other, attribute))[:20].lower()",
        ),
    },
)
