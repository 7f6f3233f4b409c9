"""Shamir's secret sharing over a prime field."""

import os
from collections.abc import Sequence

from common.secagg.refusals import Refusal, SecureSumError

# The largest prime below 2^256, so that secrets and shares are 32 bytes.
PRIME = 2**256 - 189
SIZE = 32


def random_element() -> int:
    """Return a uniform field element from the operating system."""
    while True:
        # A remainder would make small elements more likely. So a number past the prime is drawn again.
        if (number := int.from_bytes(os.urandom(SIZE), "little")) < PRIME:
            return number


def to_bytes(element: int) -> bytes:
    """Return an element as 32 little-endian bytes."""
    return element.to_bytes(SIZE, "little")


def is_element(raw: bytes) -> bool:
    """Return whether 32 bytes are those of an element."""
    return len(raw) == SIZE and int.from_bytes(raw, "little") < PRIME


def to_element(raw: bytes) -> int:
    """Return the element of 32 little-endian bytes.

    Raises:
        SecureSumError: The bytes are not those of an element.
    """
    if not is_element(raw):
        raise SecureSumError(Refusal.MALFORMED)
    return int.from_bytes(raw, "little")


def split(secret: int, *, threshold: int, points: Sequence[int]) -> list[int]:
    """Return a share of the secret for each point.

    Guarantee: any `threshold` shares determine the secret, and fewer say nothing about it. Points are distinct and
    not zero modulo the prime.

    Source: Shamir 1979, doi:10.1145/359168.359176.
    """
    coefficients = [random_element() for _ in range(threshold - 1)]
    shares = []
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value + coefficient) * point % PRIME
        shares.append((value + secret) % PRIME)
    return shares


def weight_at_zero(point: int, points: Sequence[int]) -> int:
    """Return the factor of one point's share in the secret.

    The secret is the sum of all shares times their factors. One factor serves every secret that was shared at the
    same points.

    Source: Lagrange interpolation at zero.
    """
    above, below = 1, 1
    for other in points:
        if other != point:
            above = above * other % PRIME
            below = below * (other - point) % PRIME
    return above * pow(below, -1, PRIME) % PRIME
