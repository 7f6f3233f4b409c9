"""Charges that no agreement explains, and heads that come in any order."""

from pathlib import Path

import pytest

from common.errors import LedgerError
from common.ledger.database import Head, Ledger
from common.ledger.registrations import charges_in
from common.ledger.signed_heads import HeadKeeper, sign_head
from common.ledger.transactions import LedgerSession
from common.privacy.policy import ANYTHING
from tests.support.ledger.builders import KEYS, PLAN, holding, release


def test_a_charge_without_an_agreement_stops_everything(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.sqlite", durable=False)
    session = LedgerSession(ledger, KEYS, simulated=True)
    release(session, "first", PLAN, (holding(0, 6), holding(6, 8)), [(1, "train")])
    with ledger.transaction():
        ledger.append("reserve", "cd" * 32, {"run": "x\0i", "client": "a", "round": 1, "release": "train"})

    with pytest.raises(LedgerError, match="belong to no agreement"):
        charges_in(ledger)
    with pytest.raises(LedgerError, match="belong to no agreement"):
        session.register("second", "a", PLAN, (holding(8, 12), holding(12, 14)), ANYTHING)


def test_clients_of_one_holder_may_answer_in_any_order(tmp_path: Path) -> None:
    keeper = HeadKeeper([tmp_path / "heads.jsonl"])
    later, earlier = (sign_head(KEYS, Head(seq, f"{seq:02d}" * 32)) for seq in (12, 11))

    assert keeper.accept([("a", later), ("b", earlier)]) == {}
    assert keeper.latest(["a", "b"])["b"] == later
    assert set(keeper.accept([("a", earlier)])) == {"a"}


def test_two_copies_of_a_ledger_in_one_round_are_not_both_believed(tmp_path: Path) -> None:
    keeper = HeadKeeper([tmp_path / "heads.jsonl"])
    one, other = (sign_head(KEYS, Head(12, digit * 64)) for digit in "ab")

    assert set(keeper.accept([("a", one), ("b", other)])) == {"b"}
