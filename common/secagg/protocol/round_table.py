"""Secrets by round that are overwritten once a round is over."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.secagg.primitives.keys import KEY_SIZE
from common.secagg.refusals import Refusal, SecureSumError


@dataclass(repr=False)
class RoundTable:
    """A row of 32-byte secrets for each round that is left.

    Attributes:
        first: The number of the first round that is left.
        rows: Shape (rounds left, columns, 32), uint8.
    """

    first: int
    rows: NDArray[np.uint8]

    @classmethod
    def empty(cls, num_rounds: int, columns: int) -> "RoundTable":
        """Return a table of zeros that begins with round 1."""
        return cls(1, np.zeros((num_rounds, columns, KEY_SIZE), dtype=np.uint8))

    def __repr__(self) -> str:
        return f"RoundTable(first={self.first}, rounds={len(self.rows)})"

    def row(self, round_number: int) -> NDArray[np.uint8]:
        """Return the secrets of a round, shape (columns, 32), writable.

        Raises:
            SecureSumError: They have been erased, or there never were any.
        """
        place = round_number - self.first
        if not 0 <= place < len(self.rows):
            raise SecureSumError(Refusal.ROUND)
        row: NDArray[np.uint8] = self.rows[place]
        return row

    def in_order(self) -> list[bytes]:
        """Return the first column's secrets, round by round."""
        return [row[0].tobytes() for row in self.rows]

    def erase_before(self, round_number: int) -> None:
        """Erase the secrets of all rounds before this one."""
        place = min(max(round_number - self.first, 0), len(self.rows))
        if place:
            # A copy, because a slice would keep the whole memory alive. The old one is overwritten as a whole.
            left = self.rows[place:].copy()
            self.rows[:] = 0
            self.first, self.rows = self.first + place, left


def secrets_to_rows(secrets: list[bytes]) -> NDArray[np.uint8]:
    """Return 32-byte secrets as rows, shape (secrets, 32), writable."""
    return np.frombuffer(b"".join(secrets), dtype=np.uint8).reshape(-1, KEY_SIZE).copy()
