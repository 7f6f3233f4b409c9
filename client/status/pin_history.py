"""History of the code that a client was started with."""

import contextlib
import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from common.ledger.signed_heads import append_lines

PINS_FILE = "pins.jsonl"


@dataclass(frozen=True)
class Pin:
    """Code that a client was started with.

    Attributes:
        time: Time of the first start with it, ISO 8601, UTC.
        bundle: Digest that the policy pinned; empty for any code.
        version: Version of the Bract that was installed then.
    """

    time: str
    bundle: str
    version: str


def read_pins(folder: Path) -> tuple[Pin, ...]:
    """Return a client's pins, the newest last.

    A line that cannot be read is left out.
    """
    try:
        lines = (folder / PINS_FILE).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ()
    pins = []
    for line in lines:
        with contextlib.suppress(ValueError, TypeError):
            pins.append(Pin(**json.loads(line)))
    return tuple(pins)


def note_pin(folder: Path, bundle: str) -> None:
    """Add a line if a client starts with another pin than the last time."""
    pins = read_pins(folder)
    if pins and pins[-1].bundle == bundle:
        return
    pin = Pin(datetime.now(UTC).isoformat(timespec="seconds"), bundle, version("bract"))
    # What may run is decided by the policy alone, so a history that cannot be written stops no client.
    with contextlib.suppress(OSError):
        append_lines(folder / PINS_FILE, (json.dumps(asdict(pin)) + "\n").encode(), durable=False)
