"""The messages of a secure sum as plain values."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from common.secagg.primitives.domains import Domain, digest, frame
from common.secagg.primitives.keys import KEY_SIZE
from common.secagg.protocol.roster import Identity, Roster
from common.secagg.protocol.terms import Terms
from common.secagg.refusals import Refusal, SecureSumError


@dataclass(frozen=True)
class Advert:
    """The signed part of a client's first message.

    Everybody gets it.

    Attributes:
        index: The client's index on the roster.
        channel_key: X25519 key under which others seal shares for it.
        mask_keys_digest: Digest of its mask keys of all rounds.
        seeds_digest: Digest of the commitments to its self-mask seeds.
        signature: By its identity key, over `signed_bytes`.
    """

    index: int
    channel_key: bytes
    mask_keys_digest: bytes
    seeds_digest: bytes
    signature: bytes = b""

    def signed_bytes(self, terms: Terms) -> bytes:
        """Return what the signature is over, bound to all public constants."""
        keys = (self.channel_key, self.mask_keys_digest, self.seeds_digest)
        return frame(Domain.ADVERT, terms.session, self.index, *keys)

    def signed_by(self, identity: Identity, terms: Terms) -> "Advert":
        """Return the advert with its signature."""
        return replace(self, signature=identity.sign(self.signed_bytes(terms)))

    def check(self, terms: Terms, roster: Roster) -> None:
        """Refuse an advert that its client did not sign for this secure sum.

        Raises:
            SecureSumError: The index is not on the roster, or the signature is wrong.
        """
        roster.check_index(self.index)
        roster.check_signature(self.index, self.signed_bytes(terms), self.signature)


@dataclass(frozen=True)
class Announcement:
    """A client's whole first message.

    `mask_keys` and `seed_commitments` are 32 bytes a round, one behind the other.
    """

    advert: Advert
    mask_keys: bytes
    seed_commitments: bytes

    def check(self, terms: Terms, roster: Roster) -> None:
        """Refuse an announcement whose keys are not the signed ones.

        Raises:
            SecureSumError: A size, a digest or the signature is wrong.
        """
        self.advert.check(terms, roster)
        check_mask_keys(terms, self.advert, self.mask_keys)
        if len(self.seed_commitments) != KEY_SIZE * terms.num_rounds:
            raise SecureSumError(Refusal.MALFORMED)
        if digest(Domain.SEEDS, terms.session, self.seed_commitments) != self.advert.seeds_digest:
            raise SecureSumError(Refusal.SETUP)


@dataclass(frozen=True)
class Delivery:
    """The server's answer to all announcements that one client gets.

    `adverts` are those of everybody present, ascending by index. `mask_keys` holds those of the client's neighbours.
    """

    adverts: tuple[Advert, ...]
    mask_keys: Mapping[int, bytes]


@dataclass(frozen=True)
class UnmaskRequest:
    """The server's question to committee members at the end of a round.

    Attributes:
        round_number: The round.
        survivors: Clients whose words are in the sum, ascending.
        responders: Members that must all answer this very request, ascending.
    """

    round_number: int
    survivors: tuple[int, ...]
    responders: tuple[int, ...]

    def survivor_digest(self, terms: Terms) -> bytes:
        """Return the digest that names the survivor set, 32 bytes."""
        return digest(Domain.SURVIVORS, terms.session, self.round_number, *self.survivors)

    def digest(self, terms: Terms) -> bytes:
        """Return the digest of the whole request, 32 bytes."""
        return digest(Domain.UNMASK_REQUEST, self.survivor_digest(terms), *self.responders)


@dataclass(frozen=True)
class UnmaskReply:
    """A member's answer, 32 bytes for each client present.

    Attributes:
        index: The member.
        request: Digest of the request that it answers.
        shares: Weighted shares, blinded so that only the sum over all responders says something.
    """

    index: int
    request: bytes
    shares: bytes


def check_mask_keys(terms: Terms, advert: Advert, mask_keys: bytes) -> None:
    """Refuse mask keys that an advert does not vouch for.

    Raises:
        SecureSumError: Their number or their digest is wrong.
    """
    if len(mask_keys) != KEY_SIZE * terms.num_rounds:
        raise SecureSumError(Refusal.MALFORMED)
    if digest(Domain.MASK_KEYS, terms.session, mask_keys) != advert.mask_keys_digest:
        raise SecureSumError(Refusal.SETUP)


def key_of_round(keys: bytes, round_number: int) -> bytes:
    """Return the 32 bytes of a round, counted from 1."""
    return keys[KEY_SIZE * (round_number - 1) : KEY_SIZE * round_number]


def view_digest(terms: Terms, adverts: tuple[Advert, ...]) -> bytes:
    """Return the digest of who is present with which keys, 32 bytes.

    Sealed shares open only between clients that were told the same.
    """
    return digest(Domain.VIEW, terms.session, *(advert.signed_bytes(terms) for advert in adverts))
