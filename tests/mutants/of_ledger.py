"""T8: a ledger that is short of what left."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from flwr.app import RecordDict

from client.guard import Compute, Guard
from common.errors import LedgerError
from common.ledger import registrations as agreements
from common.ledger import whole_file
from common.ledger.data_holder import Holder
from common.ledger.database import Ledger
from common.ledger.signed_heads import HeadKeeper
from common.ledger.transactions import LedgerSession
from common.messages.serialization import digest_of, pack
from tests.mutants.registry import mutant


@mutant("T8", "gets the same bytes, and no training", listed="retry not recorded")
def a_retry_is_computed_anew(patch: pytest.MonkeyPatch) -> None:
    """A question that comes twice is answered twice, with new noise, for one charge."""
    real = LedgerSession.commit

    def commit(self: LedgerSession, agreed: Any, server_round: int, release: Any, reply: bytes, *, keep: int) -> bytes:
        real(self, agreed, server_round, release, reply, keep=keep)
        return reply

    patch.setattr(LedgerSession, "_again", lambda self, before, content: None)
    patch.setattr(LedgerSession, "commit", commit)


@mutant("T8", "with another model it is refused")
def another_question_gets_the_charge_of_the_first(patch: pytest.MonkeyPatch) -> None:
    """The round names a release; what was asked in it does not matter."""

    def again(self: LedgerSession, before: Any, content: str) -> bytes | None:
        done = self.ledger.entries("request_id = ? AND kind = 'commit'", (before.request_id,))
        return self._kept(before.request_id) if done else None

    patch.setattr(LedgerSession, "_again", again)


@mutant("T8", "and is charged once")
def a_request_has_a_new_name_each_time(patch: pytest.MonkeyPatch) -> None:
    """A message's own id names the request: asked again, it is another one, is trained and leaves again."""
    real, times = agreements.Registration.request, [0]

    def request(self: agreements.Registration, server_round: int, release: Any) -> str:
        times[0] += 1
        name = real(self, server_round, release)
        return f"{(times[0] - 1) // 2:08x}{name[8:]}"

    patch.setattr(agreements.Registration, "request", request)
    patch.setattr(LedgerSession, "_check_room", lambda *_: None)


def _answer(patch: pytest.MonkeyPatch, work: Any) -> None:
    """Another order of what `Guard.answer` does under a plan."""

    def answer(
        self: Guard, run: str, server_round: int, release: Any, asked: RecordDict, compute: Compute, _: Any = None
    ) -> tuple[RecordDict, Any]:
        with self._ledger_session(run, server_round, release) as session:
            assert session is not None
            agreed = self._register(session, run, self.plan)

            def reserve() -> bytes | None:
                return session.reserve(agreed, server_round, release, digest_of(asked), self.policy)

            def commit(reply: RecordDict) -> bytes:
                return session.commit(agreed, server_round, release, pack(reply), keep=2)

            return work(reserve, lambda: compute(agreed.plan, None), commit), self._head(session)

    patch.setattr(Guard, "answer", answer)


@mutant("T8", "a crash leaves its charge")
def a_release_is_charged_when_it_is_done(patch: pytest.MonkeyPatch) -> None:
    """First the work, then the charge: what was computed before a crash, and may have left, is not in the ledger."""

    def work(reserve: Any, compute: Any, commit: Any) -> RecordDict:
        reply: RecordDict = compute()
        reserve()
        commit(reply)
        return reply

    _answer(patch, work)


@mutant("T8", "what is not committed does not leave")
def a_failed_commit_is_logged(patch: pytest.MonkeyPatch) -> None:
    """The reply goes out although nothing was written: "the ledger can catch up later"."""

    def work(reserve: Any, compute: Any, commit: Any) -> RecordDict:
        reserve()
        reply: RecordDict = compute()
        with suppress(LedgerError):
            commit(reply)
        return reply

    _answer(patch, work)


@mutant("T8", "an older ledger is refused by its holder", listed="old ledger restored")
def an_older_ledger_is_taken(patch: pytest.MonkeyPatch) -> None:
    """Nobody looks whether the ledger is the one that was there before."""
    patch.setattr(Holder, "_refuse_older", lambda self, ledger: None)


@mutant("T8", "with its head restored, by the server")
def a_server_takes_any_head_that_is_signed(patch: pytest.MonkeyPatch) -> None:
    """The signature is right, and the number is smaller than it was."""
    patch.setattr(HeadKeeper, "_check", lambda self, who, head: head.check())


@mutant("T8", "a ledger with a hole is refused")
def nobody_follows_the_chain(patch: pytest.MonkeyPatch) -> None:
    """The last entry is right, so the rest will be."""
    patch.setattr(whole_file, "check_chain", len)


@mutant("T8", "on a full disk nothing leaves")
def a_full_disk_is_no_error(patch: pytest.MonkeyPatch) -> None:
    """What the database says when it cannot write is swallowed."""

    @contextmanager
    def transaction(self: Ledger) -> Iterator[None]:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            yield
            self._connection.execute("COMMIT")
        except (sqlite3.Error, LedgerError):
            self._roll_back()
        except BaseException:
            self._roll_back()
            raise

    patch.setattr(Ledger, "transaction", transaction)


@mutant("T8", "a race spends what the plan has")
def both_of_two_answers_leave(patch: pytest.MonkeyPatch) -> None:
    """Two processes compute one release, each sends its own: two draws of noise for one charge."""
    real = LedgerSession.commit

    def commit(self: LedgerSession, agreed: Any, server_round: int, release: Any, reply: bytes, *, keep: int) -> bytes:
        real(self, agreed, server_round, release, reply, keep=keep)
        return reply

    patch.setattr(LedgerSession, "commit", commit)
