"""A server that asks the clients of a secure sum for more than it may, through their real handlers."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Message

import client.app as client_app
from common.messages.codec import arrays_to_record
from tests.support.server.failing_federation import FIRST_NODE, FailingGrid, round_of


def kind_of(message: Message) -> str:
    return message.metadata.message_type.removeprefix("query.")


def unless(kind: str, *clients: int, in_round: int = 2) -> Callable[[int, Message], bool]:
    def fails(number: int, message: Message) -> bool:
        if kind_of(message) != kind or number not in clients:
            return False
        if kind == "train":
            return round_of(message) == in_round
        if kind == "unmask":
            return message.content.config_records["secure"]["round"] == in_round
        return True

    return fails


class Probe:
    """A server that asks more than it may, in the middle of a round, before it goes on as it should."""

    def __init__(self, *, number: int, kind: str, in_round: int) -> None:
        self._wanted, self._fails = number, unless(kind, number, in_round=in_round)
        self.asked: dict[tuple[str, int], Message] = {}
        self.grid: FailingGrid
        self.codes: dict[str, str] = {}

    def __call__(self, number: int, message: Message) -> bool:
        if number == self._wanted:
            self.asked[kind_of(message), max(round_of(message), secure_round(message))] = copy_of(message)
            if self._fails(number, message) and not self.codes:
                # A process that is killed here has nothing in memory when it goes on.
                self.grid._contexts.clear()
                self.probe()
        return False

    def probe(self) -> None:
        raise NotImplementedError

    def ask(self, message: Message) -> Message:
        client_app.SESSIONS.clear()
        assert self.grid._homes is not None
        os.environ["BRACT_HOME"] = str(self.grid._homes[message.metadata.dst_node_id - FIRST_NODE])
        return client_app.app(copy_of(message), self.grid._new_context(message.metadata.dst_node_id))


def secrets_of(home: Path, message: Message) -> list[Path]:
    """The file of mask secrets of a message's run; earlier runs that were never closed have left theirs."""
    return list(folder_of(home, message).glob("*"))


def folder_of(home: Path, message: Message) -> Path:
    return home / "holder" / "secure-sums" / str(message.content.config_records["config"]["run-id"])


def secure_round(message: Message) -> int:
    secure = message.content.config_records.get("secure")
    return int(secure.get("round", 0)) if secure is not None else 0


def copy_of(message: Message) -> Message:
    return Message(message.content.copy(), message.metadata.dst_node_id, message.metadata.message_type)


def changed(message: Message, **values: Any) -> Message:
    other = copy_of(message)
    other.content["secure"] = type(message.content["secure"])(dict(message.content["secure"]) | values)
    return other


def other_model(message: Message) -> Message:
    other = copy_of(message)
    record = other.content.array_records["arrays"]
    other.content["arrays"] = arrays_to_record({name: array.numpy() + np.float32(1) for name, array in record.items()})
    return other


def wrong_run(message: Message) -> Message:
    other = copy_of(message)
    other.content["config"] = type(message.content["config"])(dict(message.content["config"]) | {"run-id": "ab" * 16})
    return other
