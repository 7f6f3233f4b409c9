"""The file of a client's mask secrets in one run.

Each message may be answered by a fresh process, so the secrets must be on the disk between two messages. Noise is
never in it. What a round has used is erased from it by rewriting it.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from common.errors import FederationError, LedgerError
from common.secagg.protocol.client import ClientState
from common.system.files import make_folder, write_atomic

FOLDER = "secure-sums"


@dataclass(frozen=True)
class SecretsFile:
    """The secrets of one client in one run.

    Attributes:
        file: Its place.
        durable: Whether it survives a power failure.
    """

    file: Path
    durable: bool

    @classmethod
    def of(cls, home: Path, run: str, client: str, *, durable: bool) -> "SecretsFile":
        """Return the file of a client in a run, below its home folder."""
        return cls(home / FOLDER / run / file_name(client), durable)

    def load(self) -> tuple[ClientState, dict[str, int]]:
        """Return the secrets with the declared sizes of their set-up.

        Raises:
            FederationError: There are none, so that nothing can be answered.
            SecureSumError: The file is damaged.
        """
        with self._open() as stream:
            sizes = json.loads(stream.readline())
            return ClientState.from_bytes(stream.read()), sizes

    def sizes(self) -> dict[str, int]:
        """Return the declared sizes alone.

        Raises:
            FederationError: There are no secrets.
        """
        with self._open() as stream:
            return dict(json.loads(stream.readline()))

    def _open(self) -> BinaryIO:
        try:
            return self.file.open("rb")
        except OSError:
            raise FederationError("the secrets of this secure sum are not here: no set-up, or it is over") from None

    def save(self, state: ClientState, sizes: Mapping[str, int]) -> None:
        """Write the secrets over the earlier ones.

        Raises:
            LedgerError: The file cannot be written, and nothing that depends on it may leave.
        """
        content = json.dumps(dict(sizes)).encode() + b"\n" + state.to_bytes()
        try:
            make_folder(self.file.parent, mode=0o700)
            self._erase_parts()
            if not self.durable:
                # A file system may write out at once what replaces a file. A simulation need not wait for that.
                # Not `erase`, which also removes the folder that the new file goes into.
                self.file.unlink(missing_ok=True)
            write_atomic(self.file, content, durable=self.durable, mode=0o600)
        except OSError as error:
            raise LedgerError(f"{self.file} cannot be written ({error.strerror})") from None

    def erase(self) -> None:
        """Remove the secrets at the end of the run."""
        self.file.unlink(missing_ok=True)
        self._erase_parts()
        # Another client of this user may have its secrets of the run there.
        with contextlib.suppress(OSError):
            self.file.parent.rmdir()

    def _erase_parts(self) -> None:
        """Remove files that a killed process had begun to write."""
        # They hold secrets of rounds that the file itself has erased since. A client's messages come one by one, so
        # nobody else is writing now.
        for part in self.file.parent.glob(f".{self.file.name}.*"):
            part.unlink(missing_ok=True)


def file_name(client: str) -> str:
    """Return a file name for any client's name."""
    return hashlib.sha256(client.encode()).hexdigest()[:32]
