"""What a ledger keeps of rounds that nothing is charged for: one reply, one set of survivors."""

import pytest

from common.errors import PolicyError
from common.ledger.audit.integrity_checks import Remarks, check_replies
from common.ledger.transactions import LedgerSession

TEXT = "secure sum: masked train of round 1"


def answered(session: LedgerSession, asked: str, reply: bytes, *, text: str = TEXT, client: str = "a") -> bytes:
    return session.answer_once("run", client, text, asked, lambda: reply, keep=9)


def doubts(session: LedgerSession) -> list[str]:
    remarks = Remarks([], [])
    check_replies(session.ledger, session.ledger.entries(), remarks)
    return remarks.doubts


def test_the_first_reply_leaves_whenever_the_same_is_asked(session: LedgerSession) -> None:
    assert [answered(session, "model 1", reply) for reply in (b"first", b"second")] == [b"first", b"first"]
    assert answered(session, "model 1", b"other", client="b") == b"other"
    assert answered(session, "model 1", b"next", text="secure sum: masked train of round 2") == b"next"
    assert doubts(session) == []


def test_another_question_for_the_same_round_is_refused_and_not_computed(session: LedgerSession) -> None:
    answered(session, "model 1", b"first")

    with pytest.raises(PolicyError, match="again with another model"):
        session.answer_once("run", "a", TEXT, "model 2", lambda: pytest.fail("computed"), keep=9)


def test_of_two_processes_that_compute_at_once_the_first_one_counts(session: LedgerSession) -> None:
    def slow() -> bytes:
        assert answered(session, "model 1", b"of the faster one") == b"of the faster one"
        return b"of the slower one"

    assert session.answer_once("run", "a", TEXT, "model 1", slow, keep=9) == b"of the faster one"
    assert len(session.ledger.entries("kind = 'note'")) == 1


def test_a_closed_run_answers_nothing_and_keeps_no_reply(session: LedgerSession) -> None:
    answered(session, "model 1", b"first")
    session.close("run", "a")

    for text in (TEXT, "secure sum: masked train of round 2"):
        with pytest.raises(PolicyError, match="a run that is closed"):
            answered(session, "model 1", b"late", text=text)
    assert session.ledger.query("SELECT * FROM reply") == []


def test_a_stored_reply_that_was_changed_is_doubted(session: LedgerSession) -> None:
    answered(session, "model 1", b"first")
    session.ledger._connection.execute("UPDATE reply SET content = ?", (b"forged",))

    assert len(doubts(session)) == 1


def test_a_marker_is_about_one_thing(session: LedgerSession) -> None:
    assert session.mark("run", "a", "secure sum: opened round 1", "survivors 1")
    assert not session.mark("run", "a", "secure sum: opened round 1", "survivors 1")
    assert session.mark("run", "a", "secure sum: opened round 2", "survivors 2")
    with pytest.raises(PolicyError, match="answered before for something else"):
        session.mark("run", "a", "secure sum: opened round 1", "survivors 2")


def test_a_set_up_is_no_sum_and_masked_words_or_an_opened_sum_are_one(session: LedgerSession) -> None:
    session.mark("run", "a", "secure sum: set-up ab", "")
    session.note("run", "a", "took part")
    assert not session.has_summed("run", "a")

    answered(session, "model 1", b"first")
    session.mark("run", "b", "secure sum: opened round 1", "survivors 1")
    assert [session.has_summed("run", client) for client in "abc"] == [True, True, False]
