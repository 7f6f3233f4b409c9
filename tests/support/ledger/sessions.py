"""Books over an empty ledger, and the policies that their tests hold them to."""

from pathlib import Path

from common.ledger.database import Ledger
from common.ledger.transactions import LedgerSession
from common.privacy.policy import Policy
from tests.support.ledger.builders import KEYS, PLAN, holding

PARTS = (holding(0, 6), holding(6, 8))
OTHERS = (holding(10, 16), holding(16, 18))
ONE_PLAN = Policy(max_epsilon=PLAN.spent().pld, delta=PLAN.delta)


def opened(folder: Path) -> LedgerSession:
    return LedgerSession(Ledger(folder / "ledger.sqlite", durable=False), KEYS, simulated=True)


def everything(session: LedgerSession) -> list[str]:
    return list(session.ledger._connection.iterdump())


def capped(epsilon: float, accountant: str = "pld") -> Policy:
    return Policy.model_validate({"max-epsilon": epsilon, "delta": PLAN.delta, "accountant": accountant})
