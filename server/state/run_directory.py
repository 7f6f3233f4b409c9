"""Folder of a run, in which every file is whole or absent."""

import hashlib
import json
import os
import re
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
from common.config.sections import DataConfig, ModelConfig, PrivacyConfig
from common.data.results_place import refuse_results_in_data
from common.errors import BractError, ConfigError
from common.inference.card import CARD_FILE, CLASSES_KEY, WEIGHTS_FILE
from common.system.files import make_folder, write_atomic

# File with the reason why a run stopped.
STOPPED = "stopped.txt"
# File with the run's id, by which clients know it.
RUN_ID = "run-id.txt"
_RUN_ID = re.compile("[0-9a-f]{32}")


class RunDirectory:
    """Files of one run, each written whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, config: RunConfig) -> "RunDirectory":
        """Make the folder of `output-dir` or, without it, one below `runs/`.

        Raises:
            ConfigError: The folder holds files already, or cannot be made.
        """
        path = Path(config.output_dir or fresh_path(config.data, config.model, config.privacy))
        check_free(path, config.data)
        try:
            make_folder(path)
            run = cls(path)
            write_atomic(path / "config.toml", tomli_w.dumps(nest(resolved(config))), durable=True, mode=0o666)
        except OSError as error:
            raise ConfigError(f"--out {path}: cannot be written ({error.strerror})") from None
        return run

    @classmethod
    def open(cls, path: Path) -> "RunDirectory":
        """Return the folder of a run that is resumed.

        Raises:
            ConfigError: The folder does not hold a run.
        """
        if not (path / "config.toml").is_file():
            raise ConfigError(f"--resume {path}: this folder does not hold a run (it has no config.toml)")
        (path / STOPPED).unlink(missing_ok=True)
        return cls(path)

    def run_id(self, earlier: str | None) -> str:
        """Return the run's id, new for a run without one.

        Guarantee: the id is on disk before this returns, so a run that dies before its first checkpoint keeps it.

        Args:
            earlier: Id in the run's checkpoint; None without a checkpoint.

        Raises:
            ConfigError: The file is damaged, or belongs to another run than the checkpoint.
        """
        file = self.path / RUN_ID
        if not file.is_file():
            write_atomic(file, f"{earlier or secrets.token_hex(16)}\n", durable=True, mode=0o666)
        stored = file.read_bytes().strip().decode("ascii", errors="replace")
        # A second id would be a second run for the clients, which would agree to its plan once more.
        if stored != earlier and (earlier is not None or not _RUN_ID.fullmatch(stored)):
            raise ConfigError(f"{file} is damaged or of another run: restore it, or start a new run")
        return stored

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the run against other processes, until the block or the process ends.

        Raises:
            ConfigError: Another process has locked it.
        """
        # Windows cannot lock a folder so that the lock ends with its process.
        if sys.platform == "win32":
            yield
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
        """Write a text file whole, by a second file that replaces it."""
        target = self.path / name
        make_folder(target.parent)
        write_atomic(target, text, durable=False, mode=0o666)

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Write a JSON file whole, without sorting its keys."""
        self.write_text(name, json.dumps(value, indent=2) + "\n")

    def write_model(self, arrays: Arrays, card: dict[str, Any]) -> None:
        """Write weights as safetensors and the model card, equal bytes for equal models.

        The weights name their classes, and the card the digest of the weights' file. A reader can then tell that the
        two belong together.
        """
        from safetensors.numpy import save

        folder = self.path / "model"
        folder.mkdir(exist_ok=True)
        tensors = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        content = save(tensors, metadata={CLASSES_KEY: json.dumps(card["classes"])})
        write_atomic(folder / WEIGHTS_FILE, content, durable=False, mode=0o666)
        self.write_json(f"model/{CARD_FILE}", card | {"model_sha256": hashlib.sha256(content).hexdigest()})


def write_stop_reason(folder: Path, error: BractError) -> None:
    """Write the error that stopped a run for processes that follow it.

    Without a run in the folder nothing is written.
    """
    if (folder / "config.toml").is_file():
        RunDirectory(folder).write_text(STOPPED, f"{type(error).__name__}: {error}\n")


def check_free(path: Path, data: DataConfig) -> None:
    """Refuse a folder that is in use or inside the images.

    Raises:
        ConfigError: The path holds files, is a file, cannot be made, or lies in a folder of images.
    """
    refuse_results_in_data(path, data)
    if path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise ConfigError(f"--out (output-dir) {path} is in use: name a folder that is empty or does not exist yet")
    parent = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    if not (parent.is_dir() and os.access(parent, os.W_OK)):
        raise ConfigError(f"--out {path} cannot be made: {parent} is not a folder you may write to")


def fresh_path(data: DataConfig, model: ModelConfig, privacy: PrivacyConfig) -> Path:
    """Return a new folder's path below `runs/`, named after time, source, backbone and mechanism."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    name = f"{stamp}-{Path(data.source).name}-{model.backbone}-{privacy.mechanism}"
    # Random digits keep two runs of one second apart.
    return Path("runs") / f"{name}-{secrets.token_hex(2)}"
