"""Words of the power-of-two ring in which masked vectors add up."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.secagg.refusals import Refusal, SecureSumError

Words = NDArray[np.unsignedinteger[Any]]


@dataclass(frozen=True)
class Ring:
    """The integers modulo 2^word_bits, 32 or 64 bits.

    Raises:
        SecureSumError: The size is neither.
    """

    word_bits: int

    def __post_init__(self) -> None:
        if self.word_bits not in (32, 64):
            raise SecureSumError(Refusal.TERMS)

    @property
    def dtype(self) -> np.dtype[Any]:
        """The words' little-endian type on every machine."""
        return np.dtype(f"<u{self.word_bits // 8}")

    def zeros(self, length: int) -> Words:
        """Return the neutral vector."""
        return np.zeros(length, dtype=self.dtype)

    def words_of(self, integers: NDArray[np.int64]) -> Words:
        """Return signed integers modulo the ring's size, same shape."""
        return np.asarray(integers).astype(np.int64, copy=False).astype(self.dtype)

    def signed(self, words: Words) -> NDArray[np.int64]:
        """Return each word as the number nearest to zero that it stands for."""
        return words.view(self.dtype.str.replace("u", "i")).astype(np.int64)

    def checked(self, words: object, length: int) -> Words:
        """Return an array of exactly this ring's words, contiguous.

        Raises:
            SecureSumError: It has another type, shape or length.
        """
        if not isinstance(words, np.ndarray) or words.dtype != self.dtype or words.shape != (length,):
            raise SecureSumError(Refusal.MALFORMED)
        return np.ascontiguousarray(words)
