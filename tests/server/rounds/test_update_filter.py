"""Updates of clients that are broken or mean harm: left out, named, and the round goes on.

Drives `server.rounds.messaging`.
"""

import threading
import zipfile
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Context, Error, Message
from flwr.clientapp import ClientApp

from common.config.loading import Scalar, defaults, override, parse
from common.errors import ConfigError
from common.messages.codec import Declaration, Evaluation, encode_update
from common.messages.fields import ARRAYS, Releases
from common.metrics import Counts
from server.aggregation.strategies import build_strategy
from server.rounds.enrollment import EnrolledClient
from server.rounds.loop import RoundResult, RoundSettings, run_rounds
from server.rounds.messaging import deliver, failure_of
from server.rounds.replies import Channel
from server.rounds.update_filter import outlier_updates
from simulations.engines.in_process import InProcessGrid

START = {"w": np.zeros((2, 3), dtype=np.float32), "b": np.zeros(2, dtype=np.float32)}
Spoil = Callable[[Message], Message]


def named(number: int) -> str:
    return f"{number:05d}"


def as_array(values: Any, dtype: str = "float32", shape: tuple[int, ...] = (2, 3), data: bytes | None = None) -> Array:
    """An array that says of itself what it likes."""
    if data is None:
        stream = BytesIO()
        np.save(stream, values)
        data = stream.getvalue()
    return Array(dtype, shape, "numpy.ndarray", data)


def swapped(arrays: Mapping[str, Array]) -> Spoil:
    def spoil(reply: Message) -> Message:
        record = dict(reply.content.array_records[ARRAYS].items()) | arrays
        reply.content[ARRAYS] = ArrayRecord(record)
        return reply

    return spoil


def renamed(reply: Message) -> Message:
    record = reply.content.array_records[ARRAYS]
    reply.content[ARRAYS] = ArrayRecord({"v": record["w"], "b": record["b"]})
    return reply


def reordered(reply: Message) -> Message:
    record = reply.content.array_records[ARRAYS]
    reply.content[ARRAYS] = ArrayRecord({"b": record["b"], "w": record["w"]})
    return reply


def says(text: str, code: int = 4711) -> Spoil:
    def spoil(reply: Message) -> Message:
        error = Message(Error(code, text), reply_to=reply)
        error.metadata.__dict__["_reply_to_message_id"] = reply.metadata.reply_to_message_id
        error.metadata.__dict__["_src_node_id"] = reply.metadata.src_node_id
        return error

    return spoil


def archive() -> bytes:
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w") as opened:
        opened.writestr("w.npy", b"")
    return stream.getvalue()


def claims(shape: tuple[int, ...]) -> bytes:
    stream = BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return stream.getvalue()


ONES = np.ones((2, 3), dtype=np.float32)
HOSTILE: dict[str, tuple[Spoil, str]] = {
    "name": (renamed, "MESSAGE"),
    "order": (reordered, "MESSAGE"),
    "shape": (swapped({"w": as_array(ONES[:1], shape=(1, 3))}), "MESSAGE"),
    "shape-of-the-bytes": (swapped({"w": as_array(ONES.reshape(3, 2))}), "MESSAGE"),
    "float64": (swapped({"w": as_array(ONES.astype(np.float64), "float64")}), "MESSAGE"),
    "float16": (swapped({"w": as_array(ONES.astype(np.float16), "float16")}), "MESSAGE"),
    "integers": (swapped({"w": as_array(ONES.astype(np.int32), "int32")}), "MESSAGE"),
    "complex": (swapped({"w": as_array(ONES.astype(np.complex64), "complex64")}), "MESSAGE"),
    "text": (swapped({"w": as_array(np.full((2, 3), "abcd"))}), "MESSAGE"),
    "objects": (swapped({"w": as_array(np.full((2, 3), None, dtype=object))}), "MESSAGE"),
    "nan": (swapped({"w": as_array(ONES * np.float32("nan"))}), "NOT-FINITE"),
    "infinite": (swapped({"w": as_array(ONES * np.float32("inf"))}), "NOT-FINITE"),
    "no-bytes": (swapped({"w": as_array(None, data=b"")}), "MESSAGE"),
    "garbage": (swapped({"w": as_array(None, data=b"\x93NUMPY\x07\x00garbage")}), "MESSAGE"),
    "archive": (swapped({"w": as_array(None, data=archive())}), "MESSAGE"),
    "a-terabyte-in-a-few-bytes": (swapped({"w": as_array(None, data=claims((500_000, 500_000)))}), "MESSAGE"),
    "cut-off": (swapped({"w": as_array(None, data=claims((2, 3)) + bytes(20))}), "MESSAGE"),
    "too-large": (swapped({"w": as_array(None, data=claims((2, 3)) + bytes(100_000))}), "MESSAGE"),
    "absurd": (swapped({"w": as_array(ONES * np.float32(1e12))}), "NORM"),
    "a-lie-in-words": (says("\x1b[2J all is well"), "OTHER"),
    "a-code-of-flower": (says("gone", 5), "UNREACHABLE"),
}


def app_of(spoilt: Mapping[int, Spoil]) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        counts = Evaluation(Counts(np.eye(2, dtype=np.int64), 0.5))
        update = {name: array + np.float32(number + 1) for name, array in START.items()}
        reply = Message(encode_update(update, 10, counts), reply_to=message)
        return spoilt[number](reply) if number in spoilt else reply

    return app


def one_round(spoilt: Mapping[int, Spoil], clients: int = 5, **settings: Any) -> RoundResult:
    grid = InProcessGrid(app_of(spoilt), clients, {})
    met = {named(n): EnrolledClient(Declaration(named(n), 10, ("a", "b"), (3,), ""), n + 2) for n in range(clients)}
    strategy = build_strategy(parse(override(defaults(), {"privacy.mechanism": "none", "num-clients": clients})))
    (result,) = run_rounds(
        Channel(grid, Releases(), "run"), strategy, START, RoundSettings(met, [list(met)], **settings)
    )
    return result


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_update_is_left_out_and_named_and_the_round_goes_on(how: str) -> None:
    spoil, code = HOSTILE[how]

    result = one_round({1: spoil, 3: spoil})

    assert result.record.failures == {"00001": code, "00003": code}
    assert result.record.num_clients == 3
    assert result.arrays["w"].tolist() == [[3.0] * 3] * 2  # the mean of 1, 3 and 5


def test_a_long_update_is_left_out_by_a_bound_that_was_set_even_where_it_is_one_of_two() -> None:
    spoil = swapped({"w": as_array(ONES * np.float32(40))})

    assert one_round({1: spoil}, clients=2).record.failures == {}
    assert one_round({1: spoil}, clients=2, max_update_norm=30.0).record.failures == {"00001": "NORM"}


def test_honest_clients_of_very_different_sizes_are_not_absurd() -> None:
    assert outlier_updates({str(n): 10.0 ** (n % 3) for n in range(30)}, max_update_norm=None) == set()
    assert outlier_updates({"a": 0.0, "b": 0.0, "c": 5.0}, max_update_norm=None) == set()  # a median of nothing


def test_one_of_two_cannot_blow_up_the_model() -> None:
    spoil = swapped({"w": as_array(ONES * np.float32(3e38))})

    result = one_round({1: spoil}, clients=2)

    assert result.record.failures == {"00001": "NORM"}
    assert result.arrays["w"].tolist() == [[1.0] * 3] * 2


def test_a_bound_on_whole_updates_does_not_go_with_clipping_at_the_server() -> None:
    given: dict[str, Scalar] = {"privacy.mechanism": "client-dp", "max-update-norm": 3.0, "num-clients": 5}

    with pytest.raises(ConfigError, match="max-update-norm"):
        parse(override(defaults(), given))


class MuddledGrid(InProcessGrid):
    """Replies come twice, for messages nobody sent, and from nodes that nobody asked."""

    def pull_messages(self, message_ids: Any) -> Any:
        found = list(super().pull_messages(message_ids))
        for reply in found:
            reply.metadata.__dict__["_src_node_id"] = 1  # as Flower's own error replies have it
        stranger = Message(Error(3, "unavailable"), reply_to=Message(found[0].content, 2, "train")) if found else None
        return [*([stranger] if stranger else []), *found, *found]


def test_deliver_pairs_replies_by_the_message_they_answer() -> None:
    grid = MuddledGrid(app_of({}), 3, {})
    sent = [Message(encode_update(START, 10, None), node, "train") for node in (2, 3, 4)]

    arrived = deliver(grid, sent, seconds=5.0)

    shifts = {node: reply.content.array_records[ARRAYS]["b"].numpy()[0] for node, reply in arrived.items()}
    assert shifts == {2: 1.0, 3: 2.0, 4: 3.0}


class BrokenGrid(InProcessGrid):
    """One reply cannot be read, one never ends, one comes late; whoever fetches it gets stuck with it."""

    def __init__(self) -> None:
        super().__init__(app_of({}), 4, {})
        self.node_of: dict[str, int] = {}
        self.never, self.looks = threading.Event(), 0

    def push_messages(self, messages: Any) -> Any:
        sent = list(messages)
        ids = list(super().push_messages(sent))
        self.node_of = dict(zip(ids, (message.metadata.dst_node_id for message in sent), strict=True))
        return ids

    def pull_messages(self, message_ids: Any) -> Any:
        nodes = {self.node_of[key] for key in message_ids}
        if 3 in nodes:
            raise IndexError("list index out of range")
        if 4 in nodes:
            self.never.wait(30)
        if 5 in nodes:
            self.looks += 1
            return super().pull_messages(message_ids) if self.looks > 2 else []
        return super().pull_messages(message_ids)


def test_replies_that_are_fetched_apart_harm_nobody_else() -> None:
    grid = BrokenGrid()
    sent = [Message(encode_update(START, 10, None), node, "train") for node in (2, 3, 4, 5)]

    arrived = deliver(grid, sent, seconds=2.0, one_by_one=True)
    grid.never.set()

    assert sorted(arrived) == [2, 3, 5]  # 4 is late
    assert arrived[3] is None
    assert failure_of(arrived[3]) == "MESSAGE"
    assert [arrived[node].content.array_records[ARRAYS]["b"].numpy()[0] for node in (2, 5)] == [1.0, 4.0]  # type: ignore[union-attr]


def test_a_reply_that_comes_while_another_is_taken_is_as_late_as_it_was() -> None:
    class SlowGrid(InProcessGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            found = list(super().pull_messages(message_ids))
            if found and found[0].metadata.src_node_id != 2:
                taking.wait(10)
            return found

    taking, ready = threading.Event(), threading.Event()
    grid = SlowGrid(app_of({}), 3, {})
    sent = [Message(encode_update(START, 10, None), node, "train") for node in (2, 3, 4)]

    def take(node: int, _: object) -> None:
        # Beyond the deadline, and then the others come.
        ready.wait(0.6)
        taking.set()
        ready.wait(0.3)

    arrived = deliver(grid, sent, seconds=0.5, one_by_one=True, take=take)

    assert list(arrived) == [2]


def test_an_error_of_the_network_is_the_runs_own() -> None:
    class DeadGrid(InProcessGrid):
        def pull_messages(self, message_ids: Any) -> Any:
            raise httpx.ConnectError("gone")

    grid = DeadGrid(app_of({}), 1, {})
    with pytest.raises(httpx.ConnectError):
        deliver(grid, [Message(encode_update(START, 10, None), 2, "train")], seconds=5.0, one_by_one=True)
