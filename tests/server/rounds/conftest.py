"""Fixtures of the tests of rounds."""

import logging
from pathlib import Path

import pytest

from common.ledger.signed_heads import HeadKeeper


@pytest.fixture(name="keeper")
def keeper_fixture(tmp_path: Path) -> HeadKeeper:
    return HeadKeeper([tmp_path / "heads.jsonl"])


@pytest.fixture(name="log")
def log_fixture(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """The log, at a level at which it shows refusals also where an earlier test has set another."""
    caplog.set_level(logging.ERROR, logger="bract.server")
    return caplog
