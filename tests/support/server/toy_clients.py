"""Clients of two parameters, whose rounds are worked out by hand."""

import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import Strategy

from common.config.loading import Scalar, defaults, override, parse
from common.config.schema import RunConfig
from common.messages.codec import (
    Declaration,
    Evaluation,
    encode_declaration,
    encode_evaluation,
    encode_update,
    record_to_arrays,
)
from common.messages.fields import METRICS, Releases
from common.metrics import Counts
from server.rounds.enrollment import EnrolledClient, enroll_clients
from server.rounds.loop import RoundResult, RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid

SHIFTS = np.array([0.1, 0.4, -0.2, 0.9, 0.3, 0.5], dtype=np.float32)


START = {"w": np.zeros(2, dtype=np.float32)}


OPEN = Releases()


def toy_app(
    *,
    failing: Iterable[int] = (),
    classes: dict[int, tuple[str, ...]] | None = None,
    loss: float | None = None,
    spoilt: dict[int, dict[str, Any]] | None = None,
) -> ClientApp:
    """Clients of two parameters: each adds its own shift; sizes are 10, 20, 30, ..."""
    app = ClientApp()

    def who(context: Context) -> int:
        return int(context.node_config["partition-id"])

    def spoil(reply: RecordDict, client: int) -> RecordDict:
        for key, value in (spoilt or {}).get(client, {}).items():
            reply.metric_records[METRICS][key] = value
        return reply

    @app.query()
    def query(message: Message, context: Context) -> Message:
        names = (classes or {}).get(who(context), ("a", "b"))
        declared = Declaration(f"{who(context):05d}", 10 * (who(context) + 1), names, (2,), "")
        return Message(encode_declaration(declared), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if who(context) in failing:
            return Message(Error(1000, "INTERNAL"), reply_to=message)
        weights = record_to_arrays(message.content.array_records["arrays"])["w"] + SHIFTS[who(context)]
        counts = Counts(np.array([[who(context), 1], [0, 2]]), 0.5)
        reply = encode_update({"w": weights}, 10 * (who(context) + 1), Evaluation(counts, None, loss))
        return Message(spoil(reply, who(context)), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        found = Evaluation(Counts(np.array([[who(context), 0], [0, 1]]), 1.0))
        return Message(spoil(encode_evaluation(10 * (who(context) + 1), found), who(context)), reply_to=message)

    return app


class ScrambledGrid(InProcessGrid):
    """Replies arrive in any order."""

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        random.shuffle(replies)
        return replies


def config_for(name: str, clients: int = 6) -> RunConfig:
    settings: dict[str, Scalar] = {"strategy.name": name, "num-clients": clients, "privacy.mechanism": "none"}
    return parse(override(defaults(), settings))


def meet(grid: InProcessGrid) -> Mapping[str, EnrolledClient]:
    return enroll_clients(grid, 6, run_id="run").clients


def rounds_of(
    grid: InProcessGrid,
    strategy: Strategy,
    clients: Mapping[str, EnrolledClient],
    cohorts: list[list[str]],
    releases: Releases = OPEN,
) -> Iterator[RoundResult]:
    return run_rounds(Channel(grid, releases, "run"), strategy, START, RoundSettings(clients, cohorts))
