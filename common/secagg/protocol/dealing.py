"""The computations of a client's set-up before the first round."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from common.secagg.primitives import shamir
from common.secagg.primitives.domains import Domain, frame
from common.secagg.primitives.keys import KEY_SIZE, AgreementKey, derive_key
from common.secagg.primitives.sealing import seal, unseal
from common.secagg.protocol.messages import Advert, Delivery, check_mask_keys, key_of_round, view_digest
from common.secagg.protocol.pair_masks import pair_secret
from common.secagg.protocol.round_table import RoundTable, secrets_to_rows
from common.secagg.protocol.terms import Terms
from common.secagg.protocol.topology import Topology
from common.secagg.refusals import Refusal, SecureSumError

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class Dealing:
    """The set-up of one client after its delivery was checked."""

    terms: Terms
    own: Advert
    delivery: Delivery
    topology: Topology

    @cached_property
    def view(self) -> bytes:
        """The digest of who is present with which keys."""
        return view_digest(self.terms, self.delivery.adverts)

    def pair_secrets(self, mask_secrets: RoundTable) -> RoundTable:
        """Return what the client shares with each neighbour in each round.

        Raises:
            SecureSumError: A neighbour's keys are missing, too many, not those it signed, or unusable.
        """
        neighbours = self.topology.neighbours(self.own.index)
        if set(self.delivery.mask_keys) != set(neighbours):
            raise SecureSumError(Refusal.SETUP)
        by_index = {advert.index: advert for advert in self.delivery.adverts}
        for other in neighbours:
            check_mask_keys(self.terms, by_index[other], self.delivery.mask_keys[other])
        pairs = RoundTable.empty(self.terms.num_rounds, len(neighbours))
        for number, secret in enumerate(mask_secrets.in_order(), 1):
            own_key = AgreementKey(secret)
            keys = [key_of_round(self.delivery.mask_keys[other], number) for other in neighbours]
            secrets = [
                pair_secret(self.terms, number, self.own.index, own_key, other, key)
                for other, key in zip(neighbours, keys, strict=True)
            ]
            pairs.row(number)[:] = secrets_to_rows(secrets)
        return pairs

    def channel_keys(self, secret: bytes) -> tuple[Bytes, Bytes, dict[int, bytes]]:
        """Return the keys of inbound boxes, of blinding and of outbound boxes.

        The two directions of a pair have different keys, so no box can be sent back to its maker. A client that is not
        on the committee has neither inbound boxes nor blinding.
        """
        me, members = self.own.index, set(self.topology.committee)
        inbound = np.zeros((len(self.delivery.adverts) if me in members else 0, KEY_SIZE), dtype=np.uint8)
        blinds = np.zeros((len(members) if me in members else 0, KEY_SIZE), dtype=np.uint8)
        outbound, channel = {}, AgreementKey(secret)
        for place, advert in enumerate(self.delivery.adverts):
            other = advert.index
            if other == me or (me not in members and other not in members):
                continue
            shared = channel.agree(advert.channel_key)
            if me in members:
                inbound[place] = _row(derive_key(shared, Domain.BOX, self.terms.session, self.view, other, me))
            if other in members:
                outbound[other] = derive_key(shared, Domain.BOX, self.terms.session, self.view, me, other)
            if me in members and other in members:
                pair = (min(me, other), max(me, other))
                key = derive_key(shared, Domain.BLIND, self.terms.session, self.view, *pair)
                blinds[self.topology.committee.index(other)] = _row(key)
        return inbound, blinds, outbound

    def shares(self, seeds: RoundTable, mask_secrets: RoundTable) -> dict[int, bytes]:
        """Return each committee member's shares, 64 bytes a round."""
        points = [member + 1 for member in self.topology.committee]
        pieces: dict[int, list[bytes]] = {member: [] for member in self.topology.committee}
        for secrets in zip(seeds.in_order(), mask_secrets.in_order(), strict=True):
            for secret in secrets:
                element = shamir.to_element(secret)
                shares = shamir.split(element, threshold=self.topology.threshold, points=points)
                for member, share in zip(self.topology.committee, shares, strict=True):
                    pieces[member].append(shamir.to_bytes(share))
        return {member: b"".join(parts) for member, parts in pieces.items()}

    def boxes(self, keys: Mapping[int, bytes], shares: Mapping[int, bytes]) -> dict[int, bytes]:
        """Return the sealed shares of each other committee member."""
        places = {member: box_place(self.terms, self.view, self.own.index, member) for member in shares}
        return {member: seal(keys[member], content, places[member]) for member, content in shares.items()}


def box_place(terms: Terms, view: bytes, dealer: int, member: int) -> bytes:
    """Return what authenticates a box besides its key."""
    return frame(Domain.BOX, terms.session, view, dealer, member)


def opened_box(key: bytes, box: bytes, place: bytes, terms: Terms) -> bytes:
    """Return the field elements in a box, 64 bytes a round.

    Raises:
        SecureSumError: It does not open, or holds something else.
    """
    content = unseal(key, box, place)
    shares = [content[start : start + KEY_SIZE] for start in range(0, len(content), KEY_SIZE)]
    if len(content) != 2 * KEY_SIZE * terms.num_rounds or not all(map(shamir.is_element, shares)):
        raise SecureSumError(Refusal.SHARES)
    return content


def share_columns(content: bytes, terms: Terms) -> tuple[Bytes, Bytes]:
    """Return shares of seeds and of mask secrets, shape (rounds, 32) each."""
    both = np.frombuffer(content, dtype=np.uint8).reshape(terms.num_rounds, 2, KEY_SIZE)
    return both[:, 0], both[:, 1]


def _row(key: bytes) -> Bytes:
    return np.frombuffer(key, dtype=np.uint8)
