"""Facts of many clients in a file beside the checkpoint.

They change when a client joins or comes back only. Writing those of 100,000 clients after each round would take longer
than the round.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from common.errors import ConfigError
from common.system.files import write_atomic

# Up to so many clients stay inside the checkpoint.
MOST_INSIDE = 1000
_DIGEST = "clients-sha256"
_KEYS = ("clients", "bundles")
_NAME = re.compile(r"clients-[0-9a-f]{16}\.json")


@dataclass(frozen=True)
class ClientRoll:
    """Declared number of units and pinned bundle of each client by name."""

    clients: Mapping[str, int]
    bundles: Mapping[str, str]

    @cached_property
    def content(self) -> bytes:
        """Bytes of the file."""
        return json.dumps({"clients": dict(self.clients), "bundles": dict(self.bundles)}).encode()

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()


def move_out(folder: Path, facts: Mapping[str, Any], roll: ClientRoll) -> dict[str, Any]:
    """Write the roll beside the checkpoint and return facts that name it."""
    file = _file(folder, roll.digest)
    # Compared, since a file that was damaged meanwhile would make each further checkpoint useless.
    if not file.is_file() or file.read_bytes() != roll.content:
        # Under a name of its own: after a crash the checkpoint of before still finds the file of before.
        write_atomic(file, roll.content, durable=True, mode=0o666)
    return {key: value for key, value in facts.items() if key not in _KEYS} | {_DIGEST: roll.digest}


def read_back(folder: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return facts with those that were moved out.

    Raises:
        ConfigError: Their file is missing or damaged.
    """
    found = dict(facts)
    digest = found.pop(_DIGEST, None)
    if digest is None:
        return found
    file = _file(folder, digest)
    content = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(content).hexdigest() != digest:
        raise ConfigError(f"{file} is missing or damaged: restore it, or start a new run")
    moved: dict[str, Any] = json.loads(content)
    return found | moved


def remove_others(folder: Path, roll: ClientRoll) -> None:
    """Remove the files of earlier rolls, once the checkpoint names this one."""
    for file in folder.glob("clients-*.json"):
        # The folder may hold files of others with such a name.
        if file != _file(folder, roll.digest) and _NAME.fullmatch(file.name):
            file.unlink(missing_ok=True)


def _file(folder: Path, digest: str) -> Path:
    return folder / f"clients-{digest[:16]}.json"
