"""Ledgers that can be changed, miss a charge, charge another or answer with another reply."""

import os
import sqlite3
import stat
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from common.errors import LedgerError, PolicyError
from common.ledger import database, hash_chain, registrations, transactions
from common.ledger.database import Head, Ledger
from common.ledger.hash_chain import check_chain
from common.ledger.registrations import charges_in
from common.ledger.transactions import LedgerSession
from common.privacy.policy import ANYTHING
from tests.common.ledger import test_hash_chain as chains
from tests.common.ledger import test_releases as releases
from tests.common.ledger import test_transactions as runs
from tests.contracts import test_whole_digests as digests
from tests.mutants.faults import planted, planted_value
from tests.support.ledger.builders import ASKED, KEYS, PLAN, release, write_honest
from tests.support.ledger.sessions import ONE_PLAN, OTHERS, PARTS, opened

_CHANGES = (
    *(f"DELETE FROM {table}" for table in ("entry", "fingerprint", "link", "part")),  # noqa: S608
    *("UPDATE entry SET event = '{}'", "UPDATE fingerprint SET image = 2", "UPDATE link SET same = 2"),
    *("UPDATE part SET images = x'00'", "INSERT OR REPLACE INTO part SELECT dataset, name, unit, x'', x'' FROM part"),
    "INSERT INTO entry SELECT 99, hash, kind, time, 'other', '', '', '{}', '{}', '' FROM entry LIMIT 1",
)


def nothing_can_be_changed(tmp_path: Path) -> None:
    write_honest(tmp_path / "ledger.sqlite")
    ledger = Ledger(tmp_path / "ledger.sqlite", durable=False)
    with ledger.transaction():
        ledger.insert("link", [(1, 2, 3)], "image, same, seq")
    for sql in _CHANGES:
        with pytest.raises(LedgerError, match=r"only ever added to|must follow"), ledger.transaction():
            ledger._connection.execute(sql)
    ledger.close()


_TRIGGERS = database._triggers
planted(
    nothing_can_be_changed,
    _TRIGGERS,
    {
        "a ledger without triggers for deletion": ('("UPDATE", "DELETE")', '("UPDATE",)'),
        "a ledger without triggers for changes": ('("UPDATE", "DELETE")', '("DELETE",)'),
    },
)
for _table in database._APPEND_ONLY:
    _others = tuple(table for table in database._APPEND_ONLY if table != _table)
    planted_value(f"a ledger without triggers for {_table}", nothing_can_be_changed, database, "_APPEND_ONLY", _others)
planted(
    nothing_can_be_changed,
    _TRIGGERS,
    {
        "a ledger that takes entries in any order": ("[*rules, _FOLLOWS]", "rules"),
    },
)
planted(
    nothing_can_be_changed,
    Ledger.__init__,
    {
        "a ledger in which a row can be replaced": ("recursive_triggers = ON", "recursive_triggers = OFF"),
    },
)


def a_commit_is_on_the_disk_and_one_writer_waits_for_the_other(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = Ledger(tmp_path / "ledger.sqlite", durable=True)
    finally:
        os.umask(before)
    assert ledger.query("PRAGMA synchronous") == [(2,)], "NORMAL does not sync a commit"
    assert stat.S_IMODE((tmp_path / "ledger.sqlite").stat().st_mode) == 0o600
    other = sqlite3.connect(tmp_path / "ledger.sqlite", timeout=0)
    with ledger.transaction(), pytest.raises(sqlite3.OperationalError, match="locked"):
        other.execute("BEGIN IMMEDIATE")
    other.close()
    ledger.close()


_DISK = a_commit_is_on_the_disk_and_one_writer_waits_for_the_other
planted(
    _DISK,
    Ledger.__init__,
    {
        "a ledger that does not sync its commits": ("'FULL' if durable", "'NORMAL' if durable"),
        "a ledger that others can read": ("0o600", "0o644"),
    },
)
planted(
    _DISK,
    Ledger.transaction,
    {
        "a ledger that locks when it writes, and not when it reads": ("BEGIN IMMEDIATE", "BEGIN"),
    },
)


class _Behind(Ledger):
    """A ledger whose first look comes before another process has written the first entry."""

    looked = False

    def head(self) -> Head:
        first, self.looked = not self.looked, True
        return Head(0, hash_chain.ORIGIN) if first else super().head()


def a_ledger_begins_once_and_with_one_holder(tmp_path: Path) -> None:
    opened(tmp_path).ledger.close()
    late = _Behind(tmp_path / "ledger.sqlite", durable=False)
    assert check_chain(LedgerSession(late, KEYS, simulated=True).ledger.entries()) == 1
    with pytest.raises(LedgerError, match="made with other keys"):
        LedgerSession(late, KEYS, simulated=False)
    late.close()


_BEGIN = a_ledger_begins_once_and_with_one_holder
planted(
    _BEGIN,
    LedgerSession.__init__,
    {
        "a genesis that is accepted twice": ("            if not ledger.head().seq:\n", "            if True:\n"),
        "a ledger of another holder": ("!= identity", "== {}"),
    },
)

_FIELD = chains.test_check_chain_finds_a_change
planted(
    partial(_FIELD, field="event", at=2),
    hash_chain.hash_of,
    {
        "a chain without its events": ('("hash", "prev_hash")', '("hash", "prev_hash", "event")'),
    },
)
planted(
    partial(_FIELD, field="versions", at=2),
    hash_chain.hash_of,
    {
        "a chain without its versions": ('("hash", "prev_hash")', '("hash", "prev_hash", "versions")'),
    },
)
planted(
    partial(chains.test_check_chain_finds_a_change_that_was_hashed_anew, at=0),
    hash_chain.check_chain,
    {
        "a chain whose links are not followed": ("entry.prev_hash != previous or ", ""),
    },
)
planted(
    partial(chains.test_check_chain_wants_one_genesis_and_wants_it_first, kinds=["genesis", "genesis"]),
    hash_chain.check_chain,
    {
        "a chain with two beginnings": ('(entry.kind == "genesis") != (count == 1)', "False"),
    },
)


def two_clients_of_one_holder_are_two(tmp_path: Path) -> None:
    """They share ledger, run, plan and images; each has its own charges, requests and replies."""
    session = opened(tmp_path)
    a = session.register("run", "a", PLAN, PARTS, ANYTHING)
    b = session.register("run", "b", PLAN, PARTS, ANYTHING)
    for agreed, reply in ((a, b"of a"), (b, b"of b")):
        assert session.reserve(agreed, 1, "train", ASKED, ANYTHING) is None
        assert session.commit(agreed, 1, "train", reply, keep=1) == reply
    assert session.reserve(a, 2, "train", ASKED, ANYTHING) is None
    session.commit(a, 2, "train", b"of a, again", keep=1)
    assert session.reserve(b, 1, "train", ASKED, ANYTHING) == b"of b"
    assert len(charges_in(session.ledger)) == 2
    assert len(charges_in(session.ledger, without=("run", "a"))) == 1
    session.close("run", "a")
    assert session.reserve(b, 1, "train", ASKED, ANYTHING) == b"of b"
    assert session.reserve(b, 2, "train", ASKED, ANYTHING) is None
    session.ledger.close()


_TWO = two_clients_of_one_holder_are_two
planted(
    _TWO,
    registrations.request_id,
    {
        "a request id without the client": ("(run, client, content", "(run, content"),
    },
)
planted(
    _TWO,
    registrations.charges_in,
    {
        "a second client of a holder without a charge": (
            "(agreed.run, agreed.client) != without",
            "agreed.run != (without or [''])[0]",
        ),
    },
)
planted(
    runs.test_register_counts_what_was_begun_and_not_what_was_only_agreed,
    registrations.charges_in,
    {
        "a second run of a client without a charge": (
            "(agreed.run, agreed.client) != without",
            "agreed.client != (without or ['', ''])[1]",
        ),
    },
)
planted(
    _TWO,
    Ledger.forget_replies,
    {
        "replies of another client that are forgotten": (
            "DELETE FROM reply WHERE run = ?1 AND client = ?2 AND",
            "DELETE FROM reply WHERE run = ?1 AND",
        ),
    },
)
planted_value(
    "entries of another client in a run",
    _TWO,
    registrations,
    "_OF_RUN",
    registrations._OF_RUN.replace("= ? AND kind", "IN (?, 'a') AND kind"),
)


def a_second_client_spends_the_same_budget(tmp_path: Path) -> None:
    session = opened(tmp_path)
    a = session.register("run", "a", PLAN, PARTS, ONE_PLAN)
    b = session.register("run", "b", PLAN, PARTS, ONE_PLAN)  # nothing was spent yet
    session.reserve(a, 1, "train", ASKED, ONE_PLAN)
    with pytest.raises(PolicyError, match="would come to"):
        session.reserve(b, 1, "train", ASKED, ONE_PLAN)
    with pytest.raises(PolicyError, match="would come to"):
        session.register("run", "c", PLAN, PARTS, ONE_PLAN)
    session.ledger.close()


_SAME = a_second_client_spends_the_same_budget
planted(
    _SAME,
    LedgerSession._others_began_since,
    {
        "a fellow client's charge that is overlooked": (
            "\"AND json_extract(event, '$.client') = ?) LIMIT 1\",",
            "\"AND ? <> '') LIMIT 1\",",
        ),
    },
)
planted(
    _SAME,
    LedgerSession._check_budget,
    {
        "a budget without the fellow client": ("without=(run, client)", "without=(run, 'a')"),
    },
)
planted(
    _SAME,
    LedgerSession._check_room,
    {
        "a run whose first round asks for no room": ("(not reserved and self._others_began_since(agreed))", "False"),
    },
)


def requests_are_told_apart(tmp_path: Path) -> None:
    session = opened(tmp_path)
    agreed = session.register("run", "a", PLAN, PARTS, ANYTHING)
    release(session, "run", PLAN, PARTS, [(1, "train"), (1, "closing"), (2, "train")])
    for server_round, kind in ((2, "train"), (1, "closing")):
        assert session.reserve(agreed, server_round, kind, ASKED, ANYTHING) == f"reply {server_round} {kind}".encode()  # type: ignore[arg-type]
    other = session.register("other", "a", PLAN, OTHERS, ANYTHING)
    assert session.reserve(other, 1, "train", ASKED, ANYTHING) is None
    third = replace(agreed, plan=replace(PLAN, noise_multiplier=9.0))
    assert third.request(1, "train") != agreed.request(1, "train")
    session.ledger.close()


_APART = requests_are_told_apart
planted(
    _APART,
    registrations.request_id,
    {
        "a request id without the round": ("str(server_round), kind", "kind"),
        "a request id without the kind": ("str(server_round), kind)", "str(server_round))"),
        "a request id without the run": ("(run, client, content", "(client, content"),
    },
)
planted(
    _APART,
    registrations.Registration.request,
    {
        "a request id without the plan": ("self.plan.digest", "''"),
    },
)
planted(
    _APART,
    LedgerSession.commit,
    {
        "a reply that is kept under another id": (
            "self.ledger.keep_reply(ident, ",
            "self.ledger.keep_reply(ident[::-1], ",
        ),
    },
)

_CLOSED = releases.test_close_ends_a_run_for_one_client_alone
planted(
    _CLOSED,
    LedgerSession._check_room,
    {
        "a closed run that goes on": ("is_closed(self.ledger, agreed) or ", ""),
    },
)
planted(
    _CLOSED,
    LedgerSession.close,
    {
        "a closed run whose replies are kept": ("keep=0", "keep=9"),
    },
)
planted(
    releases.test_reserve_refuses_more_rounds_than_the_plan_has,
    LedgerSession._check_room,
    {
        "one release more than the plan has": (">= planned", "> planned"),
    },
)
planted(
    releases.test_commit_refuses_what_nobody_reserved,
    LedgerSession.commit,
    {
        "a commit that nobody reserved": (
            "if not self.ledger.entries(\"request_id = ? AND kind = 'reserve'\", (ident,)):",
            "if False:",
        ),
    },
)
planted(
    digests.test_hash_of_a_repeated_request_is_whole,
    LedgerSession._again,
    {
        "a request with the digest's first half": (
            "before.content_digest != content",
            "before.content_digest[:32] != content[:32]",
        ),
    },
)

_NARROWER = releases.test_reserve_obeys_a_policy_that_became_narrower_and_one_that_became_wider
planted(
    _NARROWER,
    LedgerSession._check_room,
    {
        "a policy that became stricter and is not read again": ("policy.digest != agreed.policy or ", ""),
        "a plan that is not held to the policy of today": ("policy.check_plan(agreed.plan)", "pass"),
    },
)
_BEYOND = runs.test_register_refuses_a_plan_beyond_the_policy
planted(
    partial(_BEYOND, policy=ONE_PLAN.model_copy(update={"min_noise_multiplier": 4.5}), why="noise multiplier"),
    LedgerSession.register,
    {
        "a plan that is registered whatever its noise": ("policy.check_plan(plan)", "pass"),
    },
)
_CHANGED = runs.test_register_refuses_a_run_that_changes
planted(
    partial(_CHANGED, plan=PLAN, parts=OTHERS, what="another images"),
    transactions._unchanged,
    {
        "a run that is registered with other images": (" or known.dataset != dataset", ""),
    },
)
planted(
    partial(_CHANGED, plan=replace(PLAN, num_rounds=2), parts=PARTS, what="another plan"),
    transactions._unchanged,
    {
        "a run that is registered with another plan": ("known.plan.digest != plan.digest or ", ""),
    },
)
