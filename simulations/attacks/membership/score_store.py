"""Folder of a membership attack, from which a stopped attack continues."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from common.config.loading import Scalar
from common.errors import ConfigError
from common.system.files import atomic_stream, make_folder, write_atomic
from simulations.attacks.membership.training import Scored

FORMAT = 1  # raise it when the same settings would give other scores
_SETTINGS = "settings.json"


class ScoreStore:
    """Scores by curve and number of the model.

    Every file is whole or absent.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path, settings: Mapping[str, Scalar], targets: str) -> "ScoreStore":
        """Make a folder or open one with the same settings.

        Args:
            folder: Folder of the scores; made if it does not exist.
            settings: Settings that all scores of the folder share.
            targets: Digest of the attacked images.

        Raises:
            ConfigError: It holds something else, scores of other settings or images, or cannot be written.
        """
        wanted = {"format": FORMAT, "targets": targets, "settings": dict(settings)}
        file = folder / _SETTINGS
        if file.is_file():
            _check_same(folder, _read(file), wanted)
            return cls(folder)
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"--out {folder} is in use: name a folder that is empty or does not exist yet")
        store = cls(folder)
        try:
            make_folder(folder)
            store.write_json(_SETTINGS, wanted)
        except OSError as error:
            raise ConfigError(f"--out {folder}: cannot be written ({error.strerror})") from None
        return store

    def missing(self, curve: str, models: int) -> list[int]:
        """Return the numbers of the models without scores."""
        return [number for number in range(models) if not self._file(curve, number).is_file()]

    def put(self, curve: str, number: int, scored: Scored) -> None:
        """Keep one model's scores."""
        file = self._file(curve, number)
        make_folder(file.parent)
        with atomic_stream(file, durable=False, mode=0o666) as stream:
            np.savez(stream, **vars(scored))

    def get(self, curve: str, number: int) -> Scored:
        """Return one model's scores.

        Raises:
            ConfigError: The file is damaged.
        """
        file = self._file(curve, number)
        try:
            with file.open("rb") as stream, np.load(stream) as saved:
                return Scored(saved["scores"], float(saved["accuracy"]), float(saved["seconds"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            raise ConfigError(f"{file} is damaged: delete it and run the same command again") from None

    def write_json(self, name: str, value: Mapping[str, Any]) -> None:
        """Write a JSON file whole."""
        write_atomic(self.folder / name, json.dumps(value, indent=2) + "\n", durable=False, mode=0o666)

    def _file(self, curve: str, number: int) -> Path:
        return self.folder / "scores" / curve / f"{number:05d}.npz"


def _read(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {"format": found["format"], "targets": found["targets"], "settings": dict(found["settings"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ConfigError(f"{file} is not a membership attack's folder: name another one with --out") from None


def _check_same(folder: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    old, new = found["settings"], wanted["settings"]
    changed = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if changed:
        first = changed[0]
        raise ConfigError(
            f"--out {folder} holds scores of other settings: {first} was {old.get(first)!r} and is "
            f"{new.get(first)!r}{f', and {len(changed) - 1} more' if len(changed) > 1 else ''}; name another folder"
        )
    if found != wanted:
        raise ConfigError(f"--out {folder} holds scores of other images or of another version: name another folder")
