"""Tensors that stay at a client, kept on disk by round, so that a round that is run again starts where it did."""

import os
from pathlib import Path

import numpy as np

from common.errors import ConfigError


class PersonalState:
    """One client's own tensors in one run.

    Args:
        folder: Its own; made when first needed, for its owner only.
    """

    _KEPT = 3

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def before(self, server_round: int) -> dict[str, np.ndarray] | None:
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

    def keep(self, server_round: int, arrays: dict[str, np.ndarray]) -> None:
        """Write the tensors that a round has left; the newest few rounds are kept."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file = self._file(server_round)
        scratch = file.with_suffix(f".{os.getpid()}.part")
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(scratch, file)
        for number in sorted(self._rounds())[: -self._KEPT]:
            self._file(number).unlink(missing_ok=True)

    def _file(self, server_round: int) -> Path:
        return self._folder / f"round-{server_round:06d}.npz"

    def _rounds(self) -> list[int]:
        return [int(file.stem.removeprefix("round-")) for file in self._folder.glob("round-*.npz")]
