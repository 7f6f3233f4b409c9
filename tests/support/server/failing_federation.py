"""A federation of clients with images of their own in one process, whose network fails as a test says."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Context, Message, RecordDict

import client.app as client_app
from common.config.loading import Scalar, defaults, override, parse, resolved
from common.config.schema import RunConfig
from common.ledger.audit.audit import audit_ledger, kept_heads
from server.audit.audit import audit_run
from server.federation import run_federation
from server.run_context import RunContext
from server.state.run_state import RunState
from simulations.engines.in_process import InProcessGrid
from tests.support.clients.own_clients import SMALL, OwnClient, write_images

Fails = Callable[[int, Message], bool]
FIRST_NODE = 2


def never(_: int, __: Message) -> bool:
    return False


def round_of(message: Message) -> int:
    """The round a message belongs to; 0 for those that belong to none."""
    return int(message.content.config_records["config"].get("server-round", 0))


class FailingGrid(InProcessGrid):
    """Real clients behind a network of the test's making.

    Args:
        folders: One client a node.
        config: The run.
        lost: Which messages never reach a client.
        unheard: Which replies never come back, though the client has done its work.
        there: Whether a node is listed; it is asked before each look.
        homes: Home of each client's holder; one for all if left out.
        pinned: The bundle that the launchers say they have checked, of all or of each.
    """

    def __init__(
        self,
        folders: list[Path],
        config: RunConfig,
        *,
        lost: Fails = never,
        unheard: Fails = never,
        there: Callable[[int], bool] = lambda _: True,
        pinned: str | dict[int, str] = "",
        homes: list[Path] | None = None,
    ) -> None:
        super().__init__(client_app.app, len(folders), resolved(config))
        self._folders = folders
        self._lost, self._unheard, self._there = lost, unheard, there
        self._pinned = pinned if isinstance(pinned, dict) else dict.fromkeys(range(len(folders)), pinned)
        self._homes = homes
        self.asked: list[tuple[int, str, int]] = []
        self._heard: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return [node for node in super().get_node_ids() if self._there(node - FIRST_NODE)]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        ids = []
        for message in messages:
            number, kind = message.metadata.dst_node_id - FIRST_NODE, message.metadata.message_type
            self.asked.append((number, kind, round_of(message)))
            if self._lost(number, message):
                ids.append(f"lost-{len(self.asked)}")
                continue
            if self._homes is not None:
                os.environ["BRACT_HOME"] = str(self._homes[number])
            # It works as soon as it is asked, whether or not its reply is heard.
            (reply,) = self.send_and_receive([message])
            key = reply.metadata.reply_to_message_id
            if not self._unheard(number, message):
                self._heard[key] = reply
            ids.append(key)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        return [self._heard.pop(key) for key in list(message_ids) if key in self._heard]

    def _new_context(self, node_id: int) -> Context:
        client_app.SESSIONS.clear()
        number = node_id - FIRST_NODE
        settings: dict[str, Scalar] = {"bract-client": str(self._folders[number])}
        if self._pinned[number]:
            settings["bract-bundle"] = self._pinned[number]
        return Context(1, node_id, settings, RecordDict(), dict(self._run_config))


def clients_of(root: Path, count: int = 3) -> list[Path]:
    """So many clients, each with 60 images of its own."""
    images = [write_images(root / f"images-{n}", range(60 * n, 60 * n + 60)) for n in range(count)]
    return [OwnClient(root, folder, name=f"ward-{n}").folder for n, folder in enumerate(images)]


def clients_at(root: Path, homes: list[Path]) -> list[Path]:
    """One client a home, so that each has a ledger of its own."""
    folders = []
    for number, home in enumerate(homes):
        os.environ["BRACT_HOME"] = str(home)
        images = write_images(root / f"images-{number}", range(60 * number, 60 * number + 60))
        folders.append(OwnClient(root, images, name=f"ward-{number}").folder)
    return folders


def survival_config(output: Path, **more: Scalar) -> RunConfig:
    """Three clients, four rounds, a network that is waited for a tenth of a second."""
    own: dict[str, Scalar] = {"num-clients": 3, "num-rounds": 4, "output-dir": str(output)}
    own |= {"round-deadline": 0.1, "join-deadline": 0.1, "min-clients": 2}
    given = {name.replace("__", ".").replace("_", "-"): value for name, value in more.items()}
    return parse(override(defaults(), SMALL | own | given))


def federate(folders: list[Path], config: RunConfig, **network: Any) -> tuple[RunState, FailingGrid]:
    grid = FailingGrid(folders, config, **network)
    return run_federation(grid, config, lambda _: RunContext()), grid


def lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "rounds.jsonl").read_text().splitlines()]


def summary(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return found


def charged(home: Path, output: Path) -> dict[str, tuple[int, int]]:
    """Client -> rounds reserved and releases committed, the closing one among them, by a ledger that verifies."""
    report = audit_ledger(home / "holder" / "ledger.sqlite", kept_heads(output / "heads.jsonl"))
    assert (report.verdict, report.remarks.doubts) == ("verified", [])
    return {run.client: (run.rounds, run.sent) for run in report.runs}


def checked(output: Path) -> None:
    report = audit_run(output)
    assert report.remarks.doubts == []
