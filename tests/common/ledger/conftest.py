"""Fixtures of the ledger's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from common.ledger.transactions import LedgerSession
from tests.support.ledger.sessions import opened


@pytest.fixture(name="session")
def session_fixture(tmp_path: Path) -> Iterator[LedgerSession]:
    found = opened(tmp_path)
    yield found
    found.ledger.close()
