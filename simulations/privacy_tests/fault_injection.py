"""Privacy test T8, of ledgers under faults between a request and its answer."""

import os
import shutil
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from flwr.app import Message

from client.session import ClientSession
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.ledger.data_holder import Holder, close_below
from common.ledger.signed_heads import HeadKeeper
from common.messages.codec import decode_head, record_to_arrays
from common.messages.fields import ARRAYS
from simulations.harness.client_harness import ClientHarness, HarnessHome, Observation, log_lines
from simulations.privacy_tests.check import Check

_RUN, _NEXT_RUN = "f" * 32, "e" * 32
_WAIT_SECONDS = 5.0
_LESS_THAN_A_PAGE = 1_000  # bytes
_REFUSE_COMMITS = """CREATE TRIGGER injected BEFORE INSERT ON entry WHEN NEW.kind = 'commit'
BEGIN SELECT RAISE(ABORT, 'injected fault'); END"""


@dataclass(frozen=True)
class FailingTrainer(Trainer):
    """A trainer that fails instead of training.

    Attributes:
        error: Exception that it raises.
    """

    error: Exception

    def train(self, *_: Any, **__: Any) -> Arrays:
        """Raise the error."""
        raise self.error


@dataclass(frozen=True)
class PairedTrainer(Trainer):
    """A trainer that waits until the same round is being trained twice.

    Attributes:
        barriers: Round -> barrier for two threads.
    """

    barriers: dict[int, threading.Barrier] = field(compare=False)

    def train(self, *args: Any, server_round: int, **more: Any) -> Arrays:
        """Wait for a second thread and train."""
        # The second request may have got the first one's reply, and then no second thread comes.
        with suppress(threading.BrokenBarrierError):
            self.barriers[server_round].wait(_WAIT_SECONDS)
        return super().train(*args, server_round=server_round, **more)


@dataclass(frozen=True)
class RealisticHome(HarnessHome):
    """A home whose ledger is checked as thoroughly as a real client's.

    Its chain is checked, and its head is kept apart.
    """

    def holder(self, run: str) -> Holder | None:
        """Return the holder of the run's ledger."""
        holder = super().holder(run)
        if holder is None:
            return None
        head = holder.ledger_file.with_suffix(".head.json")
        return replace(holder, simulated=False, head_file=head, replies_kept=1_000)


def failing(client: ClientSession, error: Exception) -> ClientSession:
    """Return a client whose training fails.

    Args:
        client: The client without the fault.
        error: Exception that training raises.
    """
    trainer = client.trainer
    return replace(client, trainer=FailingTrainer(trainer.config, trainer.input_shape, trainer.classes, error))


def faults(harness: ClientHarness) -> Iterator[Check]:
    """Check that no ledger lacks a charge for what left (T8).

    The data holder is like a real client's, with a head that is kept apart and a chain that is checked.

    Guarantee of what passes: a request that comes twice is charged and computed once. A crash leaves its charge.
    Nothing leaves if the ledger cannot be written. A restored or edited ledger is refused. Requests at the same time
    spend no more than the plan has.
    """
    for name, check in (
        ("retry", _retry),
        ("crash", _crash),
        ("failed-commit", _failed_commit),
        ("restored", _restored),
        ("edited", _edited),
        ("full", _full),
        ("race", _race),
    ):
        scratch = replace(harness, folder=harness.folder / f"faults-{name}")
        yield from check(scratch)
        close_below(scratch.folder)


def _client(harness: ClientHarness) -> ClientSession:
    client = harness.session(harness.images, ledger="one")
    return replace(client, home=RealisticHome(**vars(client.home)))


def _ask(harness: ClientHarness, server_round: int = 1, *, client: ClientSession | None = None) -> Observation:
    # A plan of one round has no second one, and the ledger goes on with another run.
    run, number = (_RUN, server_round) if server_round <= harness.plan.num_rounds else (_NEXT_RUN, 1)
    content = harness.content("train", server_round=number, run=run)
    return harness.observe(client or _client(harness), "train", content)


def _query(harness: ClientHarness) -> Observation:
    return harness.observe(_client(harness), "query", harness.content("query", run=_NEXT_RUN))


def _file(harness: ClientHarness) -> Path:
    return harness.folder / "one" / "ledgers" / "bench.sqlite"


def _entries(harness: ClientHarness) -> list[str]:
    with sqlite3.connect(_file(harness)) as connection:
        return [kind for (kind,) in connection.execute("SELECT kind FROM entry ORDER BY seq")]


def _beside_rounds(harness: ClientHarness) -> int:
    """Return how many releases a run's first round charges beside itself."""
    return len(harness.plan.label_events())


def _retry(harness: ClientHarness) -> Iterator[Check]:
    first = _ask(harness)
    second = _ask(harness, client=failing(_client(harness), AssertionError("trained again")))
    same = not second.failure and _released(first) == _released(second)
    yield Check("a question that comes twice gets the same bytes, and no training", same, second.failure)
    entries, once = _entries(harness), _beside_rounds(harness) + 1
    yield Check("and is charged once", entries.count("reserve") == once, str(entries))
    moved = harness.content("train", run=_RUN, arrays={name: array + 1 for name, array in harness.start.items()})
    other = harness.observe(_client(harness), "train", moved)
    yield Check("with another model it is refused", other.failure == "POLICY", other.failure or "answered")


def _released(seen: Observation) -> list[bytes]:
    return [array.tobytes() for array in seen.arrays.values()]


def _crash(harness: ClientHarness) -> Iterator[Check]:
    lost = _ask(harness, client=failing(_client(harness), MemoryError("killed")))
    yield Check("a crash leaves its charge", "reserve" in _entries(harness), f"{lost.failure} {_entries(harness)}")
    again = _ask(harness)
    entries, once = _entries(harness), _beside_rounds(harness) + 1
    fine = not again.failure and entries.count("reserve") == entries.count("commit") == once
    yield Check("the question is answered under the same charge", fine, f"{again.failure} {entries}")


def _failed_commit(harness: ClientHarness) -> Iterator[Check]:
    _query(harness)
    with sqlite3.connect(_file(harness)) as connection:
        connection.execute(_REFUSE_COMMITS)
    seen = _ask(harness)
    yield Check("what is not committed does not leave", seen.failure == "LEDGER" and not seen.reply, seen.failure)


def _restored(harness: ClientHarness) -> Iterator[Check]:
    keeper = HeadKeeper([])
    _ask(harness)
    close_below(harness.folder)
    head = _file(harness).with_suffix(".head.json")
    older = [shutil.copy(file, f"{file}.old") for file in (_file(harness), head)]
    keeper.accept([("bench", decode_head(_ask(harness, 2).reply))])
    close_below(harness.folder)
    shutil.copy(older[0], _file(harness))
    alone = _query(harness)
    yield Check("an older ledger is refused by its holder", alone.failure == "LEDGER", alone.failure or "answered")
    # With the head restored too, only the heads that the server keeps show it.
    shutil.copy(older[1], head)
    shutil.copy(older[0], _file(harness))
    seen = _query(harness)
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
    seen = _query(harness)
    yield Check("a ledger with a hole is refused", seen.failure == "LEDGER", seen.failure or "answered")


def _full(harness: ClientHarness) -> Iterator[Check]:
    """Check a full disk, before the ledger is opened and while it is open."""
    if sys.platform != "linux":
        return
    _ask(harness)
    for when in ("before the ledger is opened", "while the ledger is open"):
        close_below(harness.folder)
        failure = _failure_on_full_disk(harness, opened=when.startswith("while"))
        yield Check(f"on a full disk nothing leaves, {when}", failure in ("LEDGER", "INTERNAL"), failure or "died")
    after = _ask(harness, 2)
    yield Check("with room again the round is answered", not after.failure, after.failure)


def _failure_on_full_disk(harness: ClientHarness, *, opened: bool) -> str:
    """Return a client's failure in a copy of this process whose files cannot grow."""
    import resource

    outward = os.pipe()
    child = os.fork()
    if not child:
        try:
            if opened:
                # Answered from the kept reply, so that nothing is written.
                _ask(harness)
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (_LESS_THAN_A_PAGE, _LESS_THAN_A_PAGE))
            os.write(outward[1], (_ask(harness, 2).failure or "answered").encode())
        finally:
            os._exit(0)
    # With this end open, reading would wait for ever for a child that died.
    os.close(outward[1])
    failure = os.read(outward[0], 64).decode()
    os.close(outward[0])
    os.waitpid(child, 0)
    return failure


def _race(harness: ClientHarness) -> Iterator[Check]:
    """Send more concurrent requests than the plan allows, each twice.

    A duplicate must wait and get the first reply.
    """
    planned = harness.plan.num_rounds
    client, trainer = _client(harness), harness.trainer
    barriers = {number: threading.Barrier(2) for number in range(1, planned + 3)}
    paired = PairedTrainer(trainer.config, trainer.input_shape, trainer.classes, barriers)
    app = harness.app(replace(client, trainer=paired))

    def send(number: int) -> Message:
        return harness.send(app, "train", harness.content("train", server_round=1 + number // 2, run=_RUN))

    with log_lines(), ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(send, range(2 * planned + 4)))
    charged = _entries(harness).count("reserve") - _beside_rounds(harness)
    records = [reply.content.array_records[ARRAYS] for reply in replies if not reply.has_error()]
    answered = {next(iter(record_to_arrays(record).values())).tobytes() for record in records}
    fine = charged == planned == len(answered)
    yield Check("a race spends what the plan has", fine, f"{charged} charges, {len(answered)} answers of {planned}")
