"""Words of the power-of-two ring in which masked vectors add up."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.secagg.refusals import Refusal, SecureSumError

Words = NDArray[np.unsignedinteger[Any]]


# Whole bytes, so that a word on the wire has no more bits than the ring.
_SIZES = (32, 40, 48, 56, 64)


@dataclass(frozen=True)
class Ring:
    """The integers modulo 2^word_bits, 32 to 64 bits in whole bytes.

    Words of 40, 48 and 56 bits are held in 64. What is added to them may leave the ring until `reduced`.

    Raises:
        SecureSumError: The size is another one.
    """

    word_bits: int

    def __post_init__(self) -> None:
        if self.word_bits not in _SIZES:
            raise SecureSumError(Refusal.TERMS)

    @classmethod
    def holding(cls, bits: int) -> "Ring":
        """Return the smallest ring whose words have at least so many bits.

        >>> Ring.holding(33)
        Ring(word_bits=40)

        Raises:
            SecureSumError: No ring is large enough.
        """
        return cls(next((size for size in _SIZES if size >= bits), 0))

    @property
    def num_bytes(self) -> int:
        """The bytes of one word on the wire."""
        return self.word_bits // 8

    @property
    def dtype(self) -> np.dtype[Any]:
        """The words' little-endian type in memory, on every machine."""
        return np.dtype("<u4" if self.word_bits == 32 else "<u8")

    def zeros(self, length: int) -> Words:
        """Return the neutral vector."""
        return np.zeros(length, dtype=self.dtype)

    def reduced(self, words: Words) -> Words:
        """Return words modulo the ring's size.

        Sums and masks are made modulo the size of their type, of which the ring's size is a factor.
        """
        return np.asarray(words & self.dtype.type((1 << self.word_bits) - 1))

    def words_of(self, integers: NDArray[np.int64]) -> Words:
        """Return signed integers modulo the ring's size, same shape."""
        return self.reduced(np.asarray(integers).astype(np.int64, copy=False).astype(self.dtype))

    def signed(self, words: Words) -> NDArray[np.int64]:
        """Return each word as the number nearest to zero that it stands for."""
        spare = 8 * self.dtype.itemsize - self.word_bits
        # The sign is the word's first bit.
        return ((words << spare).view(self.dtype.str.replace("u", "i")) >> spare).astype(np.int64)

    def checked(self, words: object, length: int) -> Words:
        """Return an array of exactly this ring's words, contiguous.

        Raises:
            SecureSumError: It has another type, shape or length, or a word is outside the ring.
        """
        if not isinstance(words, np.ndarray) or words.dtype != self.dtype or words.shape != (length,):
            raise SecureSumError(Refusal.MALFORMED)
        if int(words.max(initial=0)) >> self.word_bits:
            raise SecureSumError(Refusal.RANGE)
        return np.ascontiguousarray(words)

    def packed(self, words: Words) -> NDArray[np.uint8]:
        """Return words as the bytes that travel, shape (words x num_bytes,)."""
        wide = words.view(np.uint8).reshape(len(words), self.dtype.itemsize)
        return np.ascontiguousarray(wide[:, : self.num_bytes]).ravel()

    def unpacked(self, packed: NDArray[np.uint8]) -> Words:
        """Return the words of packed bytes.

        Raises:
            SecureSumError: They are not bytes of whole words.
        """
        if packed.dtype != np.uint8 or packed.ndim != 1 or len(packed) % self.num_bytes:
            raise SecureSumError(Refusal.MALFORMED)
        words = self.zeros(len(packed) // self.num_bytes)
        wide = words.view(np.uint8).reshape(len(words), self.dtype.itemsize)
        wide[:, : self.num_bytes] = packed.reshape(len(words), self.num_bytes)
        return words
