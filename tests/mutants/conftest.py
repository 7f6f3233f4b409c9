"""Fixtures of other folders that checks of planted faults take."""

from tests.client.conftest import images_fixture  # noqa: F401
from tests.common.ledger.conftest import session_fixture  # noqa: F401
from tests.server.deployment.conftest import home_fixture  # noqa: F401
from tests.server.rounds.conftest import keeper_fixture, log_fixture  # noqa: F401
