"""The launcher of a client's tasks.

Tasks run one at a time, each in a process of its own. The process is a fork of this one, which has loaded
what every task needs except torch, so a message does not wait for imports. No code of a server's bundle is ever loaded
here.
"""

import json
import multiprocessing
import os
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from client.runtime.operator_log import OperatorLog
from client.runtime.supernode_api import Offers
from client.runtime.task import run_task
from client.runtime.task_protocol import Order
from client.status.activity import ActivityRecord

_IDLE_SECONDS = 1.0
_ALERT_SECONDS = 5.0
_ENDING_SECONDS = 3.0


@dataclass
class _Running:
    """A task's process with its reports so far."""

    order: Order
    process: BaseProcess
    reader: Connection
    begun: float = field(default_factory=time.monotonic)
    kind: str = "a message"
    server_round: int = 0
    envelope: bytes = b""
    over: bool = False

    @property
    def label(self) -> str:
        """Round and kind of the task as the operator reads them."""
        return f"round {self.server_round}, {self.kind}" if self.server_round else self.kind


class Launcher:
    """The runner of one client's tasks.

    Args:
        folder: The client's folder.
        address: The SuperNode's address for tasks, `host:port`.
        secret: Secret that this process shares with the SuperNode.
        operator: Log for the operator.
        activity: Record of the tasks.
    """

    def __init__(
        self, folder: Path, address: str, secret: bytes, operator: OperatorLog, activity: ActivityRecord
    ) -> None:
        self._folder, self._address, self._operator, self._activity = folder, address, operator, activity
        self._offers = Offers(address, secret)
        self._running: _Running | None = None
        self._asked_at = self._stirred_at = 0.0

    def turn(self, *, stirred: bool) -> None:
        """Read the running task's reports and take the next task after it.

        Args:
            stirred: Whether the SuperNode has just logged a line, so that a message may have come. Otherwise the
                SuperNode is asked once a second.
        """
        now = time.monotonic()
        if stirred:
            self._stirred_at = now
        if self._running is not None:
            self._read_reports(self._running)
        alert = now - self._stirred_at < _ALERT_SECONDS
        if self._running is None and (alert or now - self._asked_at >= _IDLE_SECONDS):
            self._asked_at = now
            token = self._offers.take()
            if token is not None:
                self._start(Order(self._address, token, str(self._folder), os.getpid()))

    @property
    def idle(self) -> bool:
        """True while no task runs."""
        return self._running is None

    def wait(self, seconds: float) -> None:
        """Wait until the running task reports, at most so many seconds."""
        if self._running is None:
            time.sleep(seconds)
        else:
            self._running.reader.poll(seconds)

    def close(self) -> None:
        """End the running task, whose charges stay in the ledger."""
        if self._running is not None:
            self._running.process.terminate()
            self._running.process.join(_ENDING_SECONDS)
            self._running.process.kill()
            self._running.process.join()
            self._running = None
            self._activity.task("")
        self._offers.close()

    def _start(self, order: Order) -> None:
        context = _process_context()
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=run_task, args=(order, writer), name="bract-task", daemon=True)
        process.start()
        writer.close()
        self._running = _Running(order, process, reader)
        self._activity.task(self._running.label)

    def _read_reports(self, task: _Running) -> None:
        # Asked before reading: a process that ends in between has its last reports read in the next turn.
        alive = task.process.is_alive()
        try:
            while task.reader.poll():
                self._report(task, json.loads(task.reader.recv_bytes()))
        except (EOFError, OSError):
            alive = False
        if alive and not task.over:
            return
        self._finish(task)

    def _report(self, task: _Running, report: dict[str, Any]) -> None:
        if "log" in report:
            level, text = report["log"]
            self._operator.log(int(level), str(text))
        elif "asked" in report:
            task.kind, task.envelope = _plain_kind(report["asked"][0]), bytes.fromhex(report["asked"][1])
            self._activity.task(task.label)
        elif "round" in report:
            task.server_round = int(report["round"])
            self._activity.task(task.label)
        elif "done" in report:
            task.over = True
            seconds = time.monotonic() - task.begun
            remark = f"not answered ({report['done']})" if report["done"] else "answered"
            self._operator.say(f"{task.label}: {remark} in {seconds:.1f} s")
            self._activity.done(task.label, seconds, str(report["done"]))

    def _finish(self, task: _Running) -> None:
        task.process.join(_ENDING_SECONDS)
        if task.process.exitcode is None:
            task.process.kill()
            task.process.join()
        task.reader.close()
        self._running = None
        if task.over:
            return
        ended = f"its process ended without an answer (exit code {task.process.exitcode})"
        self._operator.warn(f"{task.label}: {ended}")
        self._activity.done(task.label, time.monotonic() - task.begun, ended)
        # Another process answers with a failure code, or the server would wait for this client until its deadline.
        if task.envelope and not task.order.unanswered:
            order = task.order
            self._start(Order(order.address, order.token, order.folder, order.launcher, task.envelope))


def _process_context() -> ForkContext | SpawnContext:
    """Return the way to start a task's process, by fork where that is safe."""
    # Another thread could hold a lock at the time of the fork, and no thread of the child would ever release it.
    if "fork" in multiprocessing.get_all_start_methods() and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


def _plain_kind(kind: str) -> str:
    """Return a kind of message as short plain text, safe to print."""
    return "".join(letter for letter in kind[:40] if letter.isascii() and letter.isprintable())
