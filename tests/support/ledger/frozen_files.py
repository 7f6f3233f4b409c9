"""Files that an earlier version of the code has left, and how tests copy, stop and read runs like them."""

import json
import shutil
import sqlite3
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from itertools import count
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from flwr.app import Message, RecordDict
from rich.console import Console
from safetensors import safe_open
from typer.testing import CliRunner, Result

from bract import app
from client.training.trainer import Trainer
from common.config.loading import defaults, override, parse
from simulations.engines.in_process import InProcessGrid
from simulations.simulate import run_job
from tests.support.paths import FROZEN

STOPPED_IN = 3
# Both runs name their images as `images.parquet`, so they must be started from the folder of the files.
_COMMON = {
    "seed": 3,
    "num-rounds": 4,
    "data.source": "images.parquet",
    "training.local-epochs": 1,
    "training.batch-size": 16,
    "system.device": "cpu",
}
RUNS: dict[str, dict[str, Any]] = {
    "open-run": _COMMON
    | {
        "num-clients": 3,
        "data.alpha": 5.0,
        "privacy.mechanism": "none",
        "strategy.name": "FedAvgM",
        "strategy.server-momentum": 0.5,
        "stopping.keep": "best",
        "training.learning-rate": 2.0,
    },
    # Every sample rate is a power of 2, and no noise is searched for: the plans are the same on every machine.
    "private-run": _COMMON
    | {
        "num-clients": 2,
        "data.partitioner": "iid",
        "strategy.name": "FedAdam",
        "privacy.noise-multiplier": 4.0,
        "system.ledger": "durable",
    },
}


def bract(*arguments: object, code: int = 0) -> Result:
    """Run a command of `bract` in this process."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == code, result.output
    return result


def copied(name: str, to: Path) -> Path:
    """Copy a frozen folder or file, so that a test may change it."""
    source, target = FROZEN / name, to / name
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy(source, target)
    return target


@contextmanager
def stopped_in_round(server_round: int = STOPPED_IN) -> Iterator[None]:
    """Stop a run as Ctrl-C does, while the second client of a round trains and the first has answered."""
    genuine: Callable[..., Any] = Trainer.train
    asked = count(1)

    def train(self: Trainer, *args: Any, **more: Any) -> Any:
        if more["server_round"] == server_round and next(asked) == 2:
            raise KeyboardInterrupt
        return genuine(self, *args, **more)

    with patch.object(Trainer, "train", train):
        yield


def start(name: str, folder: Path) -> None:
    """Run one of `RUNS` into a folder, to its end or until it is stopped."""
    config = parse(override(defaults(), RUNS[name] | {"output-dir": str(folder)}))
    run_job(config, engine="in-process", baselines=False, console=Console(quiet=True))


@contextmanager
def recorded() -> Iterator[list[tuple[Message, Message]]]:
    """Write down every message that goes to a simulated client, and its reply."""
    genuine: Callable[..., Any] = InProcessGrid._deliver
    found: list[tuple[Message, Message]] = []

    def deliver(self: InProcessGrid, message: Message) -> Message:
        reply: Message = genuine(self, message)
        seen = copy(reply)
        # The server drops what a reply holds as soon as it has used it.
        if reply.has_content():
            seen.content = RecordDict(dict(reply.content.items()))
        found.append((message, seen))
        return reply

    with patch.object(InProcessGrid, "_deliver", deliver):
        yield found


def checkpoint(folder: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a checkpoint without the product's code: tensors by name, and its metadata."""
    with safe_open(folder / "checkpoint.safetensors", framework="np") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}, opened.metadata()  # noqa: SIM118


def rows_of(ledger: Path, table: str) -> list[tuple[Any, ...]]:
    """Return all rows of a ledger's table, read without the product's code."""
    connection = sqlite3.connect(ledger)
    rows = connection.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608
    connection.close()
    return rows


def reserved(ledger: Path) -> list[tuple[str, int]]:
    """Return what a ledger has charged, as (release, round), in order."""
    events = [json.loads(row[7]) for row in rows_of(ledger, "entry") if row[2] == "reserve"]
    return [(event["release"], event["round"]) for event in events]


def shape_of(exchange: tuple[Message, Message]) -> tuple[str, tuple[dict[str, set[str]], dict[str, set[str]]]]:
    """Return the type of a message, and the fields of each record in it and in its reply."""
    message, reply = exchange
    asked, answered = (
        {record: set(fields) for record, fields in content.items()} for content in (message.content, reply.content)
    )
    return message.metadata.message_type, (asked, answered)


def lost(now: Any, then: Any, place: str = "") -> list[str]:
    """Return the names in earlier nested values that those of today lack; names that were added are allowed."""
    if isinstance(then, Mapping):
        if not isinstance(now, Mapping):
            return [place]
        gone = [f"{place}.{key}" for key in then if key not in now]
        return gone + [name for key in then if key in now for name in lost(now[key], then[key], f"{place}.{key}")]
    if isinstance(then, list):
        if not isinstance(now, list):
            return [place]
        # Each earlier item must have a counterpart that keeps its names.
        return [f"{place}[]" for item in then if not any(lost(other, item) == [] for other in now)]
    return [place] if isinstance(now, Mapping | list) else []
