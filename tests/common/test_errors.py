"""What leaves a client when something went wrong: a code from a closed list."""

from collections.abc import Iterator

import pytest
from flwr.app import Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common.errors import (
    BractError,
    BundleError,
    ClientFailure,
    ConfigError,
    DataError,
    FederationError,
    LedgerError,
    PolicyError,
    PrivacyError,
    WeightsError,
)
from common.messages.codec import failure_reply

_DETAILS = "patient-4711 in /ward-7, label 3, shape (8, 8)"


@pytest.fixture
def request_message() -> Iterator[Message]:
    """A training message, as Flower hands it to a client."""
    names = ("_run_id", "_node_id", "_task_id")
    before = {name: getattr(TaskIdentity, name) for name in names}
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 2, 3
    yield Message(RecordDict(), dst_node_id=5, message_type="train")
    for name, value in before.items():
        setattr(TaskIdentity, name, value)


class _SubclassOfDataError(DataError):
    pass


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(_DETAILS), 1001),
        (DataError(_DETAILS), 1002),
        (_SubclassOfDataError(_DETAILS), 1002),
        (WeightsError(_DETAILS), 1003),
        (PrivacyError(_DETAILS), 1004),
        (FederationError(_DETAILS), 1005),
        (PolicyError(_DETAILS), 1006),
        (LedgerError(_DETAILS), 1007),
        (BundleError(_DETAILS), 1008),
        (BractError(_DETAILS), 1000),
        (KeyError(_DETAILS), 1000),
    ],
)
def test_failure_reply_carries_the_code_and_nothing_of_the_error(
    request_message: Message, error: Exception, code: int
) -> None:
    failure = ClientFailure.of(error)

    reply = failure_reply(failure, request_message)

    assert not reply.has_content()
    assert (reply.error.code, reply.error.reason) == (code, failure.name)
    assert not [word for word in ("patient", "ward", "label", "shape") if word in repr(reply)]


def test_failure_reply_answers_the_message_it_was_given(request_message: Message) -> None:
    reply = failure_reply(ClientFailure.DATA, request_message)

    assert reply.metadata.dst_node_id == request_message.metadata.src_node_id
    assert reply.metadata.message_type == request_message.metadata.message_type


def test_failure_codes_are_all_reachable_and_distinct() -> None:
    errors = [ConfigError(), DataError(), WeightsError(), PrivacyError(), FederationError(), ValueError()]
    errors += [PolicyError(), LedgerError(), BundleError()]

    assert sorted(ClientFailure.of(error) for error in errors) == sorted(ClientFailure)
