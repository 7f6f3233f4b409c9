"""Tensors that stay at a client, stored on disk for each round.

A round that is repeated starts from the same values as the first time.
"""

from pathlib import Path

import numpy as np

from common.arrays import Arrays
from common.errors import ConfigError
from common.system.files import atomic_stream, make_folder


class PersonalState:
    """Store of a client's own tensors in one run.

    The folder is created when needed, readable by its owner only. If `durable`, the tensors survive a power failure.
    """

    _KEPT = 3

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._folder, self.durable = folder, durable

    def before(self, server_round: int) -> Arrays | None:
        """Return the tensors as the latest earlier round left them.

        Return None if no earlier round was stored.

        Raises:
            ConfigError: The round's file is damaged.
        """
        # Earlier rounds only. A repeated round must not start from its own first result.
        earlier = [number for number in self._rounds() if number < server_round]
        if not earlier:
            return None
        file = self._file(max(earlier))
        try:
            with np.load(file) as saved:
                return {name: saved[name] for name in saved.files}
        except (OSError, ValueError) as error:
            raise ConfigError(f"{file} is damaged ({type(error).__name__}): remove {self._folder}") from None

    def keep(self, server_round: int, arrays: Arrays) -> None:
        """Write the tensors after a round."""
        make_folder(self._folder, mode=0o700)
        # The values depend on private images, so the file is never readable by others, not even at first.
        with atomic_stream(self._file(server_round), durable=self.durable, mode=0o600) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        # A round may be repeated later, so a few rounds are kept and not only the newest.
        for number in sorted(self._rounds())[: -self._KEPT]:
            self._file(number).unlink(missing_ok=True)

    def _file(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:06d}.npz"

    def _rounds(self) -> list[int]:
        return [int(file.stem.removeprefix("round-")) for file in self._folder.glob("round-*.npz")]
