"""Clients that say what a test wants, that the tests of meeting and gathering share."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message
from flwr.clientapp import ClientApp

from common.errors import ClientFailure
from common.ledger.database import Head
from common.ledger.holder_keys import HolderKeys
from common.ledger.signed_heads import HeadKeeper, SignedHead, sign_head
from common.messages.codec import Declaration, Evaluation, encode_declaration, encode_head, encode_update
from common.messages.fields import LEDGER, Releases
from common.metrics import NoisedCounts
from common.privacy.mechanisms.registry import MECHANISMS
from server.rounds.enrollment import Enrollment, enroll_clients
from simulations.engines.in_process import InProcessGrid

RUN = "ab" * 16
SHAPES: dict[str, tuple[int, ...]] = {"w": (2,)}
PRIVATE = Releases(MECHANISMS["dp-sgd"], "private")
DECLARED: dict[str, Any] = {"num_units": 10, "classes": ("a", "b"), "input_shape": (2,), "backbone_hash": "cafe"}
Say = Callable[[Message], Message]


def head_of(client: int, seq: int, digit: str = "a") -> SignedHead:
    return sign_head(HolderKeys.simulated(0, str(client)), Head(seq, digit * 64))


def declares(client: int, head: SignedHead | None = None, **other: Any) -> Say:
    """Answers a query with a declaration, and with a head if there is one."""

    def say(message: Message) -> Message:
        content = encode_declaration(Declaration(**{"name": f"{client:05d}"} | DECLARED | other))
        if head is not None:
            content[LEDGER] = encode_head(head)
        return Message(content, reply_to=message)

    return say


def fails(failure: ClientFailure) -> Say:
    return lambda message: Message(Error(int(failure), failure.name), reply_to=message)


def updates(client: int, head: SignedHead | None = None) -> Say:
    """Answers a training message as clients of a private run do."""

    def say(message: Message) -> Message:
        findings = Evaluation(noised=NoisedCounts(np.array([3, 4])))
        content = encode_update({"w": np.full(2, client, dtype=np.float32)}, 10, findings)
        if head is not None:
            content[LEDGER] = encode_head(head)
        return Message(content, reply_to=message)

    return say


def app_of(queried: Mapping[int, Say], trained: Mapping[int, Say] | None = None) -> ClientApp:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return queried.get(client, declares(client))(message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        client = int(context.node_config["partition-id"])
        return (trained or {}).get(client, updates(client))(message)

    return app


class LossyGrid(InProcessGrid):
    """The last client's reply never arrives; every message that went out is kept."""

    sent: list[Message]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        self.sent = list(messages)
        ids = list(super().push_messages(self.sent))
        del self._sent[ids[-1]]
        return ids


def meet(queried: Mapping[int, Say], keeper: HeadKeeper | None = None, clients: int = 3, **more: Any) -> Enrollment:
    if keeper is not None:  # who is not spoken of has a ledger as it should be
        queried = {n: declares(n, head_of(n, 5)) for n in range(clients)} | dict(queried)
    return enroll_clients(InProcessGrid(app_of(queried), clients, {}), clients, run_id=RUN, keeper=keeper, **more)
