"""Masks of one round as clients add them and servers remove them."""

from collections.abc import Iterable

import numpy as np

from common.secagg.primitives.domains import Domain, digest
from common.secagg.primitives.keys import AgreementKey, derive_key
from common.secagg.primitives.masks import mask_words
from common.secagg.primitives.ring import Ring, Words
from common.secagg.protocol.terms import Terms


def seed_commitment(terms: Terms, index: int, round_number: int, seed: bytes) -> bytes:
    """Return the digest that shows later whether a seed was recovered rightly, 32 bytes."""
    return digest(Domain.SEED, terms.session, index, round_number, seed)


def pair_secret(terms: Terms, round_number: int, index: int, key: AgreementKey, other: int, other_key: bytes) -> bytes:
    """Return what two clients share in one round, 32 bytes.

    It is the same from both sides. `key` is the mask key of the client at `index`.

    Raises:
        SecureSumError: The other's key forces a known result.
    """
    low, high = min(index, other), max(index, other)
    return derive_key(key.agree(other_key), Domain.PAIR, terms.session, round_number, low, high)


def self_mask(terms: Terms, round_number: int, seed: bytes) -> Words:
    """Return the mask that one client alone knows until it has survived."""
    return mask_words(derive_key(seed, Domain.SELF_MASK, terms.session, round_number), *_size(terms, round_number))


def add_pair_masks(
    total: Words, terms: Terms, round_number: int, context: bytes, pairs: Iterable[tuple[int, bytes]]
) -> None:
    """Add signed pairwise masks to a vector in place.

    `pairs` holds a sign and a pair secret each. The mask of a pair also depends on `context`, the digest of what was
    asked. Clients that were asked different things have masks that do not cancel. So a server learns nothing by
    sending a model of its own to one client (arXiv:2111.07380).
    """
    for sign, secret in pairs:
        mask = mask_words(derive_key(secret, Domain.PAIR_MASK, context), *_size(terms, round_number))
        (np.add if sign > 0 else np.subtract)(total, mask, out=total)


def sign_of(index: int, other: int) -> int:
    """Return 1 for the lower of two clients and -1 for the other one."""
    return 1 if index < other else -1


def _size(terms: Terms, round_number: int) -> tuple[Ring, int]:
    return terms.ring, terms.lengths[round_number - 1]
