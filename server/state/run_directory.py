"""The folder a run leaves behind; every file in it is whole or absent."""

import json
import os
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from common.arrays import Arrays
from common.config.loading import nest, resolved
from common.config.schema import RunConfig
from common.errors import BractError, ConfigError
from common.system.files import write_atomic

# Why a run stopped, where it did.
STOPPED = "stopped.txt"


class RunDirectory:
    """Paths of one run's files, and writing them without halves."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: RunConfig) -> "RunDirectory":
        """Make the folder `output-dir` names, or a new one below `runs/`.

        Raises:
            ConfigError: The folder holds files already, or cannot be made.
        """
        path = Path(config.output_dir) if config.output_dir else fresh_path(config)
        check_free(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            run = cls(path)
            run.write_text("config.toml", tomli_w.dumps(nest(resolved(config))))
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written ({error.strerror})") from None
        return run

    @classmethod
    def open(cls, config: RunConfig) -> "RunDirectory":
        """The folder of a run that goes on.

        Raises:
            ConfigError: It is no run's folder.
        """
        path = Path(config.output_dir)
        if not config.output_dir or not (path / "config.toml").is_file():
            raise ConfigError(f"--resume {path or '(no folder)'}: no run lies there (it has no config.toml)")
        (path / STOPPED).unlink(missing_ok=True)
        return cls(path)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes out of this run until the end, however this one ends.

        Raises:
            ConfigError: One is at it already.
        """
        if sys.platform == "win32":
            yield  # has no lock that goes with its process on a folder
            return
        import fcntl

        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise ConfigError(f"{self.path} is being run by another process: wait for it, or stop it first") from None
        try:
            yield
        finally:
            os.close(handle)

    def write_text(self, name: str, text: str) -> None:
        """Write a file whole: beside it first, then moved into place."""
        target = self.path / name
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text, durable=False, mode=0o666)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file whole, keys in the order given."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_model(self, arrays: Arrays, card: dict[str, Any]) -> None:
        """Write `model/`: weights as safetensors and the card. Equal models give equal bytes."""
        from safetensors.numpy import save

        folder = self.path / "model"
        folder.mkdir(exist_ok=True)
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        write_atomic(folder / "model.safetensors", content, durable=False, mode=0o666)
        self.write_json("model/card.json", card)


def leave_word(folder: Path, why: BractError) -> None:
    """Write down why a run stopped, for whoever follows it from outside; a folder that is not there is no matter.

    Args:
        folder: The run's.
        why: What its process died of.
    """
    if (folder / "config.toml").is_file():
        RunDirectory(folder).write_text(STOPPED, f"{type(why).__name__}: {why}\n")


def check_free(path: Path) -> None:
    """Refuse a folder that is in use.

    Raises:
        ConfigError: It holds files, is a file, or cannot be made.
    """
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"--out (output-dir) {path} is in use: name a folder that is empty or does not exist yet")
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ConfigError(f"--out {path} cannot be made: {parent} is not a folder you may write to")


def fresh_path(config: RunConfig) -> Path:
    """A folder below `runs/` that does not exist yet, named after time, source and mechanism."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    source = Path(config.data.source).name
    name = f"{stamp}-{source}-{config.model.backbone}-{config.privacy.mechanism}"
    return Path("runs") / f"{name}-{secrets.token_hex(2)}"
