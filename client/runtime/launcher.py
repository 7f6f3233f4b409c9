"""Takes the tasks that a SuperNode offers, one at a time, and runs each in a process of its own.

The process is a fork of this one, which has loaded what every task needs and nothing of torch: so a message does not
wait for imports. Nothing of a server's bundle is ever loaded here.
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

from client.runtime.operator_log import Voice
from client.runtime.supernode_api import Offers
from client.runtime.task import run_task
from client.runtime.task_protocol import Order

_IDLE_SECONDS = 1.0
_ALERT_SECONDS = 5.0
_ENDING_SECONDS = 3.0


@dataclass
class _Running:
    """A task's process, and what it has reported so far."""

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
        """What it is, for the operator."""
        return f"round {self.server_round}, {self.kind}" if self.server_round else self.kind


class Launcher:
    """The tasks of one client.

    Args:
        folder: The client's.
        address: Where its SuperNode hands out tasks, `host:port`.
        secret: Shared with that SuperNode.
        voice: Tells the operator.
    """

    def __init__(self, folder: Path, address: str, secret: bytes, voice: Voice) -> None:
        self._folder, self._address, self._voice = folder, address, voice
        self._offers = Offers(address, secret)
        self._running: _Running | None = None
        self._asked_at = self._stirred_at = 0.0

    def turn(self, *, stirred: bool) -> None:
        """Hear what the running task says, and take the next one when it is over.

        Args:
            stirred: Whether the SuperNode has just logged something: a message may be there. Otherwise it is asked
                once a second only.
        """
        now = time.monotonic()
        if stirred:
            self._stirred_at = now
        if self._running is not None:
            self._hear(self._running)
        alert = now - self._stirred_at < _ALERT_SECONDS
        if self._running is None and (alert or now - self._asked_at >= _IDLE_SECONDS):
            self._asked_at = now
            token = self._offers.take()
            if token is not None:
                self._start(Order(self._address, token, str(self._folder), os.getpid()))

    @property
    def idle(self) -> bool:
        """Whether no task runs."""
        return self._running is None

    def wait(self, seconds: float) -> None:
        """Do nothing for so long, or until the running task says something."""
        if self._running is None:
            time.sleep(seconds)
        else:
            self._running.reader.poll(seconds)

    def close(self) -> None:
        """End the running task. What it has charged stays charged: nothing had left."""
        if self._running is not None:
            self._running.process.terminate()
            self._running.process.join(_ENDING_SECONDS)
            self._running.process.kill()
            self._running.process.join()
            self._running = None
        self._offers.close()

    def _start(self, order: Order) -> None:
        context = _process_context()
        reader, writer = context.Pipe(duplex=False)
        process = context.Process(target=run_task, args=(order, writer), name="bract-task", daemon=True)
        process.start()
        writer.close()
        self._running = _Running(order, process, reader)

    def _hear(self, task: _Running) -> None:
        alive = task.process.is_alive()  # before its last words are read
        try:
            while task.reader.poll():
                self._report(task, json.loads(task.reader.recv_bytes()))
        except (EOFError, OSError):
            alive = False
        if alive and not task.over:
            return
        self._finish(task)

    def _report(self, task: _Running, said: dict[str, Any]) -> None:
        if "log" in said:
            level, text = said["log"]
            self._voice.log(int(level), str(text))
        elif "asked" in said:
            task.kind, task.envelope = _plain_kind(said["asked"][0]), bytes.fromhex(said["asked"][1])
        elif "round" in said:
            task.server_round = int(said["round"])
        elif "done" in said:
            task.over = True
            seconds = time.monotonic() - task.begun
            remark = f"not answered ({said['done']})" if said["done"] else "answered"
            self._voice.say(f"{task.label}: {remark} in {seconds:.1f} s")

    def _finish(self, task: _Running) -> None:
        task.process.join(_ENDING_SECONDS)
        if task.process.exitcode is None:
            task.process.kill()
            task.process.join()
        task.reader.close()
        self._running = None
        if task.over:
            return
        self._voice.warn(f"{task.label}: its process ended without an answer (exit code {task.process.exitcode})")
        if task.envelope and not task.order.unanswered:
            order = task.order
            self._start(Order(order.address, order.token, order.folder, order.launcher, task.envelope))


def _process_context() -> ForkContext | SpawnContext:
    """Fork where that is safe: another thread could hold a lock that nobody in the child ever lets go of."""
    if "fork" in multiprocessing.get_all_start_methods() and threading.active_count() == 1:
        return multiprocessing.get_context("fork")
    return multiprocessing.get_context("spawn")


def _plain_kind(kind: str) -> str:
    """It comes from the server."""
    return "".join(letter for letter in kind[:40] if letter.isascii() and letter.isprintable())
