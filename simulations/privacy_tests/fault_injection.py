"""T8: whatever breaks between question and answer, no ledger is short of what left."""

import os
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from flwr.app import Message

import client.home as client_home
from client.training.trainer import Trainer
from common.errors import LedgerError
from common.ledger.connection_pool import close_below
from common.ledger.data_holder import Holder, simulated_holder
from common.ledger.signed_heads import HeadKeeper
from common.ledger.transactions import LedgerSession
from common.messages.codec import decode_head, record_to_arrays
from common.messages.fields import ARRAYS
from simulations.harness.client_harness import ClientHarness, Observation, installed, log_lines
from simulations.privacy_tests.check import Check

_RUN = "f" * 32
_WAIT_SECONDS = 5.0
_LESS_THAN_A_PAGE = 1_000  # bytes


def faults(harness: ClientHarness) -> Iterator[Check]:
    """T8 for one configuration, with a holder as a real client has: a head kept apart, a chain that is checked.

    Guarantee of what passes: a question that comes twice is charged and computed once; a crash leaves a charge; nothing
    leaves if the ledger cannot be written; a restored or edited ledger is refused; a race spends no more than
    the plan has.
    """
    for name, check in (
        ("retry", _retry),
        ("crash", _crash),
        ("failed commit", _failed_commit),
        ("restored", _restored),
        ("edited", _edited),
        ("full", _full),
        ("race", _race),
    ):
        scratch = replace(harness, folder=harness.folder / f"faults-{name.replace(' ', '-')}")
        with patch.object(client_home, "simulated_holder", _real_holder):
            yield from check(scratch)
        close_below(scratch.folder)


def _real_holder(folder: Path, name: str, *, seed: int, durable: bool) -> Holder:
    found = simulated_holder(folder, name, seed=seed, durable=durable)
    return replace(found, simulated=False, head_file=folder / f"{name}.head.json", replies_kept=1_000)


def _ask(harness: ClientHarness, server_round: int = 1, **more: Any) -> Observation:
    return harness.ask("train", harness.images, run=_RUN, ledger="one", server_round=server_round, **more)


def _file(harness: ClientHarness) -> Path:
    return harness.folder / "one" / "ledgers" / "bench.sqlite"


def _entries(harness: ClientHarness) -> list[str]:
    with sqlite3.connect(_file(harness)) as connection:
        return [kind for (kind,) in connection.execute("SELECT kind FROM entry ORDER BY seq")]


def _retry(harness: ClientHarness) -> Iterator[Check]:
    first = _ask(harness)
    with patch.object(Trainer, "train", side_effect=AssertionError("trained again")):
        second = _ask(harness)
    same = not second.failure and _released(first) == _released(second)
    yield Check("a question that comes twice gets the same bytes, and no training", same, second.failure)
    yield Check("and is charged once", _entries(harness).count("reserve") == 1, str(_entries(harness)))
    other = _ask(harness, arrays={name: array + 1 for name, array in harness.start.items()})
    yield Check("with another model it is refused", other.failure == "POLICY", other.failure or "answered")


def _released(seen: Observation) -> list[bytes]:
    return [array.tobytes() for array in seen.arrays.values()]


def _crash(harness: ClientHarness) -> Iterator[Check]:
    with patch.object(Trainer, "train", side_effect=MemoryError("killed")):
        lost = _ask(harness)
    yield Check("a crash leaves its charge", "reserve" in _entries(harness), f"{lost.failure} {_entries(harness)}")
    again = _ask(harness)
    fine = not again.failure and _entries(harness).count("reserve") == _entries(harness).count("commit") == 1
    yield Check("the question is answered under the same charge", fine, f"{again.failure} {_entries(harness)}")


def _failed_commit(harness: ClientHarness) -> Iterator[Check]:
    with patch.object(LedgerSession, "commit", side_effect=LedgerError("no")):
        seen = _ask(harness)
    yield Check("what is not committed does not leave", seen.failure == "LEDGER" and not seen.reply, seen.failure)


def _restored(harness: ClientHarness) -> Iterator[Check]:
    keeper = HeadKeeper([])
    _ask(harness)
    close_below(harness.folder)
    head = harness.folder / "one" / "ledgers" / "bench.head.json"
    older = [shutil.copy(file, f"{file}.old") for file in (_file(harness), head)]
    keeper.accept([("bench", decode_head(_ask(harness, 2).reply))])
    close_below(harness.folder)
    shutil.copy(older[0], _file(harness))
    alone = harness.ask("query", harness.images, run="e" * 32, ledger="one")
    yield Check("an older ledger is refused by its holder", alone.failure == "LEDGER", alone.failure or "answered")
    shutil.copy(older[1], head)  # both were restored: only the server's heads can tell
    shutil.copy(older[0], _file(harness))
    seen = harness.ask("query", harness.images, run="e" * 32, ledger="one")
    refused = {} if seen.failure else keeper.accept([("bench", decode_head(seen.reply))])
    yield Check("and with its head restored, by the server", bool(refused or seen.failure), str(refused))


def _edited(harness: ClientHarness) -> Iterator[Check]:
    _ask(harness)
    _ask(harness, 2)
    close_below(harness.folder)
    with sqlite3.connect(_file(harness)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for (name,) in names:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute("DELETE FROM entry WHERE kind = 'commit' AND seq < (SELECT max(seq) FROM entry)")
    seen = harness.ask("query", harness.images, run="e" * 32, ledger="one")
    yield Check("a ledger with a hole is refused", seen.failure == "LEDGER", seen.failure or "answered")


def _full(harness: ClientHarness) -> Iterator[Check]:
    """A disk that takes no more, before the ledger is opened and while it is open."""
    if sys.platform != "linux":
        return
    _ask(harness)
    for when in ("before the ledger is opened", "while the ledger is open"):
        close_below(harness.folder)
        said = _said_on_full_disk(harness, opened=when.startswith("while"))
        yield Check(f"on a full disk nothing leaves, {when}", said in ("LEDGER", "INTERNAL"), said or "died")
    after = _ask(harness, 2)
    yield Check("with room again the round is answered", not after.failure, after.failure)


def _said_on_full_disk(harness: ClientHarness, *, opened: bool) -> str:
    """What a copy of this process says to a new round, whose files may not grow to a page of a ledger."""
    import resource

    outward = os.pipe()
    child = os.fork()
    if not child:
        try:
            if opened:
                _ask(harness)  # from what is kept: nothing is written
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (_LESS_THAN_A_PAGE, _LESS_THAN_A_PAGE))
            os.write(outward[1], (_ask(harness, 2).failure or "answered").encode())
        finally:
            os._exit(0)
    os.close(outward[1])  # or reading would wait for ever after a child that died
    said = os.read(outward[0], 64).decode()
    os.close(outward[0])
    os.waitpid(child, 0)
    return said


def _race(harness: ClientHarness) -> Iterator[Check]:
    """More rounds at once than the plan has, each question twice: whoever computes waits for who asked the same."""
    planned = harness.plan.num_rounds
    real, both = Trainer.train, {number: threading.Barrier(2) for number in range(1, planned + 3)}

    def train(self: Trainer, *args: Any, server_round: int, **more: Any) -> Any:
        with suppress(threading.BrokenBarrierError):  # nobody else came
            both[server_round].wait(_WAIT_SECONDS)
        return real(self, *args, server_round=server_round, **more)

    def send(number: int) -> Message:
        return harness.send("train", harness.content("train", server_round=1 + number // 2, run=_RUN))

    client = installed(harness.session(harness.images), harness.folder, "one")
    with client, log_lines(), patch.object(Trainer, "train", train), ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(send, range(2 * planned + 4)))
    charged = _entries(harness).count("reserve")
    records = [reply.content.array_records[ARRAYS] for reply in replies if not reply.has_error()]
    answered = {next(iter(record_to_arrays(record).values())).tobytes() for record in records}
    fine = charged == planned == len(answered)
    yield Check("a race spends what the plan has", fine, f"{charged} charges, {len(answered)} answers of {planned}")
