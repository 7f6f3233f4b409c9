"""The client's side of a secure sum, one step a message."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from common.secagg.primitives import shamir
from common.secagg.primitives.domains import Domain, digest
from common.secagg.primitives.keys import KEY_SIZE, AgreementKey, random_secret
from common.secagg.primitives.ring import Words
from common.secagg.protocol.blinding import blinding_of
from common.secagg.protocol.client_secrets import ClientSecrets
from common.secagg.protocol.dealing import Dealing, box_place, opened_box, share_columns
from common.secagg.protocol.messages import Advert, Announcement, Delivery, UnmaskReply, UnmaskRequest, view_digest
from common.secagg.protocol.pair_masks import add_pair_masks, seed_commitment, self_mask, sign_of
from common.secagg.protocol.roster import Identity, Roster
from common.secagg.protocol.storage import (
    advert_from_json,
    advert_to_json,
    pack,
    terms_from_json,
    terms_to_json,
    unpack,
)
from common.secagg.protocol.terms import Terms
from common.secagg.protocol.topology import Topology, topology_of
from common.secagg.refusals import Refusal, SecureSumError

_KIND = "secure sum client 2"


class ClientState:
    """The secrets and progress of one client in one secure sum.

    Every method checks its whole message before it changes anything. After a step the caller stores the state, and
    only then lets the step's result leave. `to_bytes` holds secrets, so the file must be readable by the holder alone.
    """

    def __init__(self, terms: Terms, advert: Advert, secrets: ClientSecrets) -> None:
        self.terms, self._advert, self._secrets = terms, advert, secrets
        self._present: tuple[int, ...] = ()
        self._view = b""
        self._answered: dict[int, bytes] = {}

    @classmethod
    def begin(cls, terms: Terms, roster: Roster, name: str, identity: Identity) -> tuple["ClientState", Announcement]:
        """Make fresh secrets for all rounds and the message that announces them.

        A holder does this once for one `terms.session`. The caller keeps a marker of it for ever, because a second
        announcement would let a server show different clients different keys.

        Raises:
            SecureSumError: The roster is not that of the terms, or the identity is not the name's.
        """
        terms.check_roster(roster)
        index = roster.index_of(name)
        if roster.keys[index] != identity.public_key:
            raise SecureSumError(Refusal.ROSTER)
        secrets = ClientSecrets.drawn(terms.num_rounds)
        channel = random_secret()
        secrets.channel = np.frombuffer(bytearray(channel), dtype=np.uint8)
        mask_keys = b"".join(AgreementKey(secret).public_key for secret in secrets.mask_secrets.in_order())
        commitments = b"".join(
            seed_commitment(terms, index, number, seed) for number, seed in enumerate(secrets.seeds.in_order(), 1)
        )
        unsigned = Advert(
            index,
            AgreementKey(channel).public_key,
            digest(Domain.MASK_KEYS, terms.session, mask_keys),
            digest(Domain.SEEDS, terms.session, commitments),
        )
        advert = unsigned.signed_by(identity, terms)
        return cls(terms, advert, secrets), Announcement(advert, mask_keys, commitments)

    @property
    def index(self) -> int:
        """The client's index on the roster."""
        return self._advert.index

    @property
    def has_dealt(self) -> bool:
        """An answer to whether the client has dealt its shares."""
        return bool(self._present)

    @property
    def is_member(self) -> bool:
        """An answer to whether the client is on the committee."""
        return self.has_dealt and self.index in self._topology.committee

    @property
    def awaits_boxes(self) -> bool:
        """An answer to whether sealed shares are needed before it can unmask."""
        return self.is_member and len(self._secrets.inbound) > 0

    @property
    def next_round(self) -> int:
        """The first round whose words the client can still mask."""
        return self._secrets.seeds.first

    @property
    def _topology(self) -> Topology:
        return topology_of(self.terms, self._present)

    def __repr__(self) -> str:
        return f"ClientState(index={self.index}, next_round={self.next_round})"

    def deal(self, roster: Roster, delivery: Delivery) -> dict[int, bytes]:
        """Return a box of sealed shares for each other committee member.

        The delivery is checked first. Afterwards only the secrets that the client's own masks need are kept.

        Raises:
            SecureSumError: An advert is forged, of another secure sum or not on the roster, this client's own is
                missing, too few are present, or a neighbour's keys are missing or wrong.
        """
        if self.has_dealt:
            raise SecureSumError(Refusal.SETUP)
        self.terms.check_roster(roster)
        present = self._checked_present(roster, delivery)
        dealing = Dealing(self.terms, self._advert, delivery, topology_of(self.terms, present))
        pairs = dealing.pair_secrets(self._secrets.mask_secrets)
        inbound, blinds, outbound = dealing.channel_keys(self._secrets.channel.tobytes())
        shares = dealing.shares(self._secrets.seeds, self._secrets.mask_secrets)
        own = shares.pop(self.index, None)
        boxes = dealing.boxes(outbound, shares)
        self._present, self._view = present, view_digest(self.terms, delivery.adverts)
        self._secrets.enter_rounds(pairs, inbound, blinds, len(present) if own else 0)
        if own is not None:
            self._secrets.store_shares(present.index(self.index), *share_columns(own, self.terms))
        return boxes

    def _checked_present(self, roster: Roster, delivery: Delivery) -> tuple[int, ...]:
        present = tuple(advert.index for advert in delivery.adverts)
        if not _ascending(present) or self._advert not in delivery.adverts:
            raise SecureSumError(Refusal.SETUP)
        if not self.terms.enough(len(present)):
            raise SecureSumError(Refusal.TOO_FEW)
        for advert in delivery.adverts:
            advert.check(self.terms, roster)
        # A copied key would be the server's way to reflect a client's own messages.
        if len({advert.channel_key for advert in delivery.adverts}) != len(present):
            raise SecureSumError(Refusal.SETUP)
        return present

    def accept(self, boxes: Mapping[int, bytes]) -> None:
        """Open and keep the shares that the others have dealt to this committee member.

        Raises:
            SecureSumError: The client awaits none, one is missing, or one does not open. A box opens only if its
                sender saw the same clients with the same keys.
        """
        if not self.awaits_boxes or set(boxes) != set(self._present) - {self.index}:
            raise SecureSumError(Refusal.SETUP)
        opened = {}
        for place, dealer in enumerate(self._present):
            if dealer != self.index:
                key = self._secrets.inbound[place].tobytes()
                where = box_place(self.terms, self._view, dealer, self.index)
                opened[place] = share_columns(opened_box(key, boxes[dealer], where, self.terms), self.terms)
        for place, columns in opened.items():
            self._secrets.store_shares(place, *columns)
        self._secrets.forget_inbound()

    def mask(self, round_number: int, context: bytes, words: Words) -> Words:
        """Return the words of one round under this client's masks.

        The round's own secrets are erased, so it can be masked only once. What is left of earlier rounds is erased,
        too, so an aborted round is never opened.

        Args:
            round_number: From 1.
            context: The 32-byte digest of everything that the client was asked, the model included.
            words: The encoded vector, noise included.

        Raises:
            SecureSumError: The round is over or unknown, the set-up is not complete, or a size is wrong.
        """
        self.terms.check_round(round_number)
        if not self.has_dealt or len(context) != KEY_SIZE:
            raise SecureSumError(Refusal.SETUP)
        seed = self._secrets.seeds.row(round_number)[0].tobytes()
        pairs = zip(self._topology.neighbours(self.index), self._secrets.pairs.row(round_number), strict=True)
        signed = [(sign_of(self.index, other), secret.tobytes()) for other, secret in pairs]
        total = self.terms.ring.checked(words, self.terms.lengths[round_number - 1]).copy()
        total += self_mask(self.terms, round_number, seed)
        add_pair_masks(total, self.terms, round_number, context, signed)
        # A second vector under the same masks would give away the difference of the two.
        self._secrets.erase_own(round_number)
        self._secrets.erase_shares_before(round_number)
        # Words beyond the ring would show how many of a sum's values were negative.
        return self.terms.ring.reduced(total)

    def forget_masks(self, round_number: int) -> bool:
        """Erase a masked round's own secrets and return whether there were any."""
        if self.next_round > round_number:
            return False
        self._secrets.erase_own(round_number)
        self._secrets.erase_shares_before(round_number)
        return True

    def unmask(self, request: UnmaskRequest) -> UnmaskReply:
        """Return this member's part in opening the sum over one survivor set.

        One set a round is answered. The same set may be asked again with other responders. The shares that this set
        does not need are erased, so never both secrets of one client are given.

        Raises:
            SecureSumError: The set is too small, not of those present, could show a part of the sum, or is another
                one than before, or there are too few responders, or the round is over.
        """
        self.terms.check_round(request.round_number)
        if not self.is_member or self.awaits_boxes:
            raise SecureSumError(Refusal.SETUP)
        self._check_survivors(request)
        survivors = set(request.survivors)
        shares = self._secrets.shares_for(request.round_number, [index in survivors for index in self._present])
        points = [member + 1 for member in request.responders]
        weight = shamir.weight_at_zero(self.index + 1, points)
        blinding = self._blinding(request)
        answers = [
            shamir.to_bytes((shamir.to_element(share.tobytes()) * weight + blind) % shamir.PRIME)
            for share, blind in zip(shares, blinding, strict=True)
        ]
        self._answered[request.round_number] = request.survivor_digest(self.terms)
        self._secrets.erase_own(request.round_number)
        self._secrets.erase_shares_before(request.round_number)
        self._secrets.keep_only(request.round_number, [index in survivors for index in self._present])
        return UnmaskReply(self.index, request.digest(self.terms), b"".join(answers))

    def _check_survivors(self, request: UnmaskRequest) -> None:
        topology = self._topology
        known = set(request.survivors) <= set(self._present) and set(request.responders) <= set(topology.committee)
        if not known or not _ascending(request.survivors) or not _ascending(request.responders):
            raise SecureSumError(Refusal.SURVIVORS)
        if self.index not in request.responders or len(request.responders) < topology.threshold:
            raise SecureSumError(Refusal.SURVIVORS)
        if not self.terms.enough(len(request.survivors)):
            raise SecureSumError(Refusal.TOO_FEW)
        if not topology.hides(set(request.survivors)):
            raise SecureSumError(Refusal.SURVIVORS)
        answered = self._answered.get(request.round_number)
        if answered is not None and answered != request.survivor_digest(self.terms):
            raise SecureSumError(Refusal.SECOND_SET)

    def _blinding(self, request: UnmaskRequest) -> list[int]:
        blinds = self._secrets.blinds_of(request.round_number)
        keys = [
            (sign_of(self.index, member), blinds[place].tobytes())
            for place, member in enumerate(self._topology.committee)
            if member in request.responders and member != self.index
        ]
        return blinding_of(request.digest(self.terms), len(self._present), keys)

    def close(self) -> None:
        """Erase all secrets at the end of the run."""
        self._secrets.erase_all()

    def to_bytes(self) -> bytes:
        """Return everything, secrets included, as bytes."""
        header = {
            "kind": _KIND,
            "terms": terms_to_json(self.terms),
            "advert": advert_to_json(self._advert),
            "present": list(self._present),
            "view": self._view.hex(),
            "answered": {str(number): answer.hex() for number, answer in self._answered.items()},
            "firsts": self._secrets.firsts(),
        }
        return pack(header, self._secrets.arrays())

    @classmethod
    def from_bytes(cls, raw: bytes) -> "ClientState":
        """Return the state that was stored as bytes.

        Raises:
            SecureSumError: The bytes are damaged, or of another version.
        """
        header, arrays = unpack(raw, _KIND)
        try:
            terms, advert = terms_from_json(header["terms"]), advert_from_json(header["advert"])
            state = cls(terms, advert, ClientSecrets.stored(header["firsts"], arrays))
            state._present, state._view = tuple(header["present"]), bytes.fromhex(header["view"])
            state._answered = {int(number): bytes.fromhex(answer) for number, answer in header["answered"].items()}
        except (KeyError, TypeError, ValueError):
            raise SecureSumError(Refusal.STORED) from None
        return state


def _ascending(indexes: tuple[int, ...]) -> bool:
    return all(first < second for first, second in pairwise(indexes))
