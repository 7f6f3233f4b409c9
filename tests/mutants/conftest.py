"""Fixtures of other folders that checks of planted faults take."""

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.client.conftest import images_fixture  # noqa: F401
from tests.common.commands.models.conftest import pet_run_fixture, pets_fixture  # noqa: F401
from tests.common.inference.conftest import stored_fixture  # noqa: F401
from tests.common.ledger.conftest import session_fixture  # noqa: F401
from tests.server.deployment.conftest import home_fixture  # noqa: F401
from tests.server.rounds.conftest import keeper_fixture, log_fixture  # noqa: F401


@pytest.fixture(autouse=True)
def messages_can_be_made() -> None:
    """Outside of a Flower process a message needs somebody that made it."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
