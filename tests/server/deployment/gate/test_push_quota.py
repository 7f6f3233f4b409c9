"""An admitted node pushes its own replies only, no more and no larger than follows from what it was sent."""

import asyncio
import json
from typing import Any

import pytest
from flwr.proto.fleet_pb2 import PullMessagesRequest, PullMessagesResponse, PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    Message,
    Metadata,
    ObjectTree,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node

from server.deployment import superlink_api as api
from server.deployment.gate.push_quota import PushQuota
from server.deployment.request_filter import Gate
from tests.support.server.requests import STRANGER, Caller, scope

NODE, OTHER, RUN, SUPERLINK = 7, 8, 41, 1
MODEL = 100_000
MEGABYTE = 1024 * 1024


class Flower:
    """Accepts all requests of a node, as Flower does, and names each announced reply by a number."""

    def __init__(self) -> None:
        self.status = 200
        self.available = True
        self.reached: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path, body = scope["path"], (await receive())["body"]
        # Others get their turn, as while Flower asks its database.
        await asyncio.sleep(0)
        self.reached.append(path)
        if path == api.PULL_MESSAGES:
            sent = Message(metadata=Metadata(run_id=RUN, message_id="asked"))
            reply = PullMessagesResponse(messages_list=[sent] if self.status == 200 else [])
        elif path == api.PULL_OBJECT:
            size = int(PullObjectRequest.FromString(body).object_id.rpartition(" ")[2])
            # Before the server has pushed an object, Flower says that it is there, and gives nothing.
            content_of = bytes(size) if self.available else b""
            reply = PullObjectResponse(object_found=True, object_available=self.available, object_content=content_of)
        elif path == api.PUSH_MESSAGES:
            reply = PushMessagesResponse(session_id=f"session {self.reached.count(path)}")
        else:
            reply = PushObjectResponse(stored=True)
        content = reply.SerializeToString()
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        # In pieces, the last one empty, as a streamed reply comes.
        for piece in (content[:1], content[1:]):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


class Federation:
    """A gate with one node behind it, and what a node can ask."""

    def __init__(self, *, reply_megabytes: int = 1) -> None:
        self.flower = Flower()
        self.quota = PushQuota(reply_megabytes=reply_megabytes)
        self.gate = Gate(self.flower, quota=self.quota)
        self.reason = ""

    def ask(self, path: str, request: Any) -> int:
        caller = Caller(request if isinstance(request, bytes) else request.SerializeToString())
        asyncio.run(self.gate(scope(path, STRANGER), caller.receive, caller.send))
        status = int(caller.events[0]["status"])
        self.reason = json.loads(caller.events[1]["body"])["detail"] if status not in (200, 401) else ""
        return status

    def push_at_once(self, request: PushMessagesRequest, size: int) -> int:
        """Announce a reply, and push it as soon as all content of the answer is there."""
        pushed = Caller(object_of(size).SerializeToString())

        async def send(event: Any) -> None:
            if event.get("body") and not pushed.events:
                await self.gate(scope(api.PUSH_OBJECT, STRANGER), pushed.receive, pushed.send)

        announced = Caller(request.SerializeToString())
        asyncio.run(self.gate(scope(api.PUSH_MESSAGES, STRANGER), announced.receive, send))
        return int(pushed.events[0]["status"])

    def pull(self, *objects: str, node: int = NODE) -> None:
        assert self.ask(api.PULL_MESSAGES, PullMessagesRequest(node=Node(node_id=node))) == self.flower.status
        for name in objects:
            self.ask(api.PULL_OBJECT, PullObjectRequest(node=Node(node_id=node), run_id=RUN, object_id=name))

    def announce(self, **more: Any) -> int:
        return self.ask(api.PUSH_MESSAGES, announcement(**more))

    def push(self, size: int, **more: Any) -> int:
        return self.ask(api.PUSH_OBJECT, object_of(size, **more))


def announcement(
    *, node: int = NODE, sender: int | None = None, reply_to: str = "asked", times: int = 1
) -> PushMessagesRequest:
    metadata = Metadata(run_id=RUN, src_node_id=node if sender is None else sender, reply_to_message_id=reply_to)
    return PushMessagesRequest(
        node=Node(node_id=node),
        messages_list=[Message(metadata=metadata)] * times,
        message_object_trees=[ObjectTree(object_id="reply")] * times,
    )


def object_of(size: int, *, session: str = "session 1", node: int = NODE) -> PushObjectRequest:
    return PushObjectRequest(
        node=Node(node_id=node), run_id=RUN, object_id="x", object_content=bytes(size), session_id=session
    )


def test_an_honest_run_passes_with_each_reply_sent_twice() -> None:
    federation = Federation()

    for number in range(20):
        federation.pull("settings 500", f"model {MODEL}")
        for session in (f"session {2 * number + 1}", f"session {2 * number + 2}"):
            assert federation.announce() == 200
            assert [federation.push(size, session=session) for size in (500, MODEL)] == [200, 200]


def test_a_node_that_asks_early_keeps_the_quota_of_the_whole_message() -> None:
    federation = Federation()
    federation.flower.available = False
    federation.pull(f"model {10 * MEGABYTE}")
    federation.flower.available = True

    federation.ask(
        api.PULL_OBJECT, PullObjectRequest(node=Node(node_id=NODE), run_id=RUN, object_id=f"model {10 * MEGABYTE}")
    )

    assert federation.announce() == 200
    assert federation.push(10 * MEGABYTE) == 200


def test_one_reply_has_one_tree_of_objects() -> None:
    federation = Federation()
    federation.pull(f"model {MODEL}")
    request = announcement()
    request.message_object_trees.add(object_id="another")

    assert federation.ask(api.PUSH_MESSAGES, request) == 400


def test_names_of_objects_that_do_not_exist_take_no_memory() -> None:
    federation = Federation()
    federation.flower.available = False

    federation.pull(*(f"made-up {number} 1" for number in range(100)))

    tally = federation.quota._tallies[NODE][RUN]
    assert not tally.open


def test_many_announcements_at_once_are_counted_one_after_the_other() -> None:
    federation = Federation()
    federation.pull(f"model {MODEL}")
    callers = [Caller(announcement().SerializeToString()) for _ in range(20)]

    async def announce_all() -> None:
        gate = federation.gate
        await asyncio.gather(*(gate(scope(api.PUSH_MESSAGES, STRANGER), each.receive, each.send) for each in callers))

    asyncio.run(announce_all())

    assert sorted(int(each.events[0]["status"]) for each in callers) == [200] * 3 + [429] * 17


def test_a_node_may_push_before_the_answer_to_its_announcement_has_ended() -> None:
    federation = Federation()
    federation.pull(f"model {MODEL}")

    assert federation.push_at_once(announcement(), MODEL) == 200


@pytest.mark.parametrize(
    ("sender", "reply_to"),
    [(SUPERLINK, ""), (NODE, ""), (OTHER, "asked")],
    ids=["in the server's name", "no reply", "in another node's name"],
)
def test_a_node_sends_its_own_replies_only(sender: int, reply_to: str) -> None:
    federation = Federation()
    federation.pull()

    assert federation.announce(sender=sender, reply_to=reply_to) == 400
    assert "its own replies" in federation.reason
    assert api.PUSH_MESSAGES not in federation.flower.reached


@pytest.mark.parametrize("times", [0, 2])
def test_a_node_sends_one_reply_at_a_time(times: int) -> None:
    federation = Federation()
    federation.pull()

    assert federation.announce(times=times) == 400


def test_a_node_announces_no_more_replies_than_it_got_messages_three_times_over() -> None:
    federation = Federation()

    assert federation.announce() == 429
    for _ in range(2):
        federation.pull()
    assert [federation.announce() for _ in range(7)] == [200] * 6 + [429]
    assert "three times as many replies as it got messages" in federation.reason


def test_a_reply_is_bounded_by_the_largest_message() -> None:
    federation = Federation()
    federation.pull("settings 500")
    federation.pull(f"model {MODEL}")
    limit = 4 * MODEL + MEGABYTE
    assert federation.announce() == 200

    assert federation.push(limit // 2) == 200
    assert federation.push(limit // 2 + 1000) == 413
    assert "A reply of this run may have at most" in federation.reason
    assert federation.push(limit // 4) == 200  # what was refused is not counted


def test_all_replies_together_are_bounded_by_all_messages() -> None:
    federation = Federation()
    for _ in range(2):
        federation.pull(f"model {MODEL}")
    whole = MODEL * 4 + MEGABYTE - 10_000
    for _ in range(3):
        assert federation.announce() == 200

    answers = [federation.push(whole, session=f"session {number}") for number in (1, 2, 3)]

    assert answers == [200, 200, 413]
    assert "together" in federation.reason


def test_pulling_one_object_again_and_again_widens_nothing() -> None:
    federation = Federation()
    federation.pull(*[f"model {MODEL}"] * 100)
    whole = 4 * MODEL + MEGABYTE - 10_000
    assert [federation.announce() for _ in range(2)] == [200, 200]

    answers = [
        federation.push(size, session=f"session {n}") for n, size in ((1, whole + 20_000), (1, whole), (2, whole))
    ]

    # The first reply alone is too long, and two of the allowed length are too much for one message.
    assert answers == [413, 200, 413]


def test_an_object_of_no_announced_reply_is_refused() -> None:
    federation = Federation()
    federation.pull(f"model {MODEL}")
    assert federation.announce() == 200

    for more in ({"session": "session 2"}, {"session": ""}, {"node": OTHER}):
        assert federation.push(10, **more) == 400


def test_what_flower_refuses_counts_for_nobody() -> None:
    """A stranger without the key names the node, and is answered 401."""
    federation = Federation()
    federation.pull(f"model {MODEL}")
    federation.flower.status = 401
    for _ in range(50):
        federation.announce()
        federation.pull(f"large {MEGABYTE}")
    federation.flower.status = 200

    assert [federation.announce() for _ in range(4)] == [200] * 3 + [429]
    assert federation.push(4 * MODEL + MEGABYTE + 1000, session="session 51") == 413


def test_a_setting_widens_the_bound() -> None:
    federation = Federation(reply_megabytes=3)
    federation.pull()
    assert federation.announce() == 200

    assert [federation.push(size) for size in (2 * MEGABYTE, 2 * MEGABYTE)] == [200, 413]


@pytest.mark.parametrize("path", [api.PUSH_MESSAGES, api.PUSH_OBJECT])
def test_what_cannot_be_read_is_refused(path: str) -> None:
    federation = Federation()

    assert federation.ask(path, b"\xff\xff\xff") == 400
    assert federation.flower.reached == []


def test_old_runs_are_forgotten_and_the_newest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation()
    for run in range(100, 140):
        monkeypatch.setattr(f"{__name__}.RUN", run)
        federation.pull()
    assert federation.announce() == 200
    monkeypatch.setattr(f"{__name__}.RUN", 100)

    assert federation.announce() == 429


def test_a_run_that_still_gets_messages_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    federation = Federation()
    federation.pull()
    for others in (range(100, 115), range(200, 201)):
        for run in others:
            monkeypatch.setattr(f"{__name__}.RUN", run)
            federation.pull()
        monkeypatch.setattr(f"{__name__}.RUN", 41)
        if others.start == 100:
            federation.pull()

    # The run is the oldest one, and 16 younger ones have begun since.
    assert federation.announce() == 200
