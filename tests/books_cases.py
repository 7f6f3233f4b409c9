"""Books over an empty ledger, and the policies that their tests hold them to."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ledger_cases import KEYS, PLAN, holding

from common.ledger.database import Ledger
from common.ledger.transactions import Books
from common.privacy.policy import Policy

PARTS = (holding(0, 6), holding(6, 8))
OTHERS = (holding(10, 16), holding(16, 18))
ONE_PLAN = Policy(max_epsilon=PLAN.spent().pld, delta=PLAN.delta)


def opened(folder: Path) -> Books:
    return Books(Ledger(folder / "ledger.sqlite", durable=False), KEYS, simulated=True)


@pytest.fixture(name="books")
def books_fixture(tmp_path: Path) -> Iterator[Books]:
    found = opened(tmp_path)
    yield found
    found.ledger.close()


def everything(books: Books) -> list[str]:
    return list(books.ledger._connection.iterdump())


def capped(epsilon: float, accountant: str = "pld") -> Policy:
    return Policy.model_validate({"max-epsilon": epsilon, "delta": PLAN.delta, "accountant": accountant})
