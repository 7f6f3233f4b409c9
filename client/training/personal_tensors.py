"""Tensors that stay at a client, kept on disk by round, so that a round that is run again starts where it did."""

from pathlib import Path

import numpy as np

from common.arrays import Arrays
from common.errors import ConfigError
from common.system.files import atomic_stream


class PersonalState:
    """One client's own tensors in one run.

    Args:
        folder: Its own; made when first needed, for its owner only.
    """

    _KEPT = 3

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, server_round: int) -> Arrays | None:
        """The tensors as the latest round before this one left them; None if there was none.

        Raises:
            ConfigError: A file is damaged.
        """
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
        """Write the tensors that a round has left; the newest few rounds are kept."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with atomic_stream(self._file(server_round), durable=False, mode=0o600) as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        for number in sorted(self._rounds())[: -self._KEPT]:
            self._file(number).unlink(missing_ok=True)

    def _file(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:06d}.npz"

    def _rounds(self) -> list[int]:
        return [int(file.stem.removeprefix("round-")) for file in self._folder.glob("round-*.npz")]
