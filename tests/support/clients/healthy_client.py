"""A client in good health with its server, for the tests that plant faults in either."""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from client.checks.check_result import Finding
from client.checks.run_checks import examine
from common.ledger.data_holder import close_below, own_holder
from common.system import app_bundle as bundle
from common.system.progress import no_progress
from tests.support.clients.server_stand_ins import Authority, Server, serving
from tests.support.ledger.builders import PLAN, holding, release

COUNT = 40
_BUNDLE_OF_NOW = bundle.installed_bundle


@dataclass
class Bed:
    """A client in good health, its server, and ways to harm both."""

    root: Path
    folder: Path
    images: Path
    home: Path
    authority: Authority
    server: Server
    stack: ExitStack
    patch: pytest.MonkeyPatch

    def edit(self, name: str, old: str, new: str) -> None:
        file = self.folder / name
        text = file.read_text()
        assert old in text
        file.write_text(text.replace(old, new))

    def serve(self, certificate: Path | None) -> None:
        """Let another server stand where the client looks for its own."""
        other = self.stack.enter_context(serving(certificate))
        self.edit("client.toml", self.server.address, other.address)
        self.server = other

    def check(self) -> dict[str, Finding]:
        return {finding.check: finding for finding in examine(self.folder, no_progress)}

    def let_go(self) -> Path:
        """The ledger as one whole file."""
        close_below(self.home)
        return self.home / "holder" / "ledger.sqlite"

    def spend(self) -> None:
        with own_holder().open_session() as session:
            parts = (holding(0, 6), holding(6, 8))
            release(session, "first", PLAN, parts, [(1, "train"), (2, "train"), (3, "train"), (3, "closing")])
            session.close("first", "a")


@cache
def _installed() -> bytes:
    """Made once: a file that is saved while the tests run is no fault."""
    return _BUNDLE_OF_NOW()
