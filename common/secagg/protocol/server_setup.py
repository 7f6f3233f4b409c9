"""The server's side of the set-up, once a run."""

from collections.abc import Mapping

import numpy as np

from common.secagg.primitives.keys import KEY_SIZE
from common.secagg.protocol.messages import Announcement, Delivery
from common.secagg.protocol.roster import Roster
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

_KIND = "secure sum server 2"
# Nonce and tag of a sealed box.
_OVERHEAD = 28


class ServerSetup:
    """The announcements and sealed shares of one set-up.

    Nothing in it is secret to the server. It collects announcements, delivers them, then collects boxes and delivers
    those.
    """

    def __init__(self, terms: Terms, roster: Roster) -> None:
        terms.check_roster(roster)
        self.terms, self._roster = terms, roster
        self._announced: dict[int, Announcement] = {}
        self._boxes: dict[int, Mapping[int, bytes]] = {}
        self.present: tuple[int, ...] = ()

    @property
    def topology(self) -> Topology:
        """The mask graph and the committee of those present."""
        return topology_of(self.terms, self.present)

    def announcement(self, index: int) -> Announcement:
        """Return the announcement of a client that is present."""
        return self._announced[index]

    def add_announcement(self, announcement: Announcement) -> None:
        """Take a client's announcement.

        Raises:
            SecureSumError: It is forged or changed, or comes twice or too late.
        """
        announcement.check(self.terms, self._roster)
        if self.present or announcement.advert.index in self._announced:
            raise SecureSumError(Refusal.SETUP)
        self._announced[announcement.advert.index] = announcement

    def close_announcements(self) -> tuple[int, ...]:
        """Stop announcements and return who is present, ascending.

        Raises:
            SecureSumError: They are too few.
        """
        if not self.terms.enough(len(self._announced)):
            raise SecureSumError(Refusal.TOO_FEW)
        self.present = tuple(sorted(self._announced))
        return self.present

    def delivery(self, index: int) -> Delivery:
        """Return what one client must know of the others."""
        keys = {other: self._announced[other].mask_keys for other in self.topology.neighbours(index)}
        return Delivery(tuple(self._announced[other].advert for other in self.present), keys)

    def add_boxes(self, dealer: int, boxes: Mapping[int, bytes]) -> None:
        """Take the sealed shares of one client.

        Raises:
            SecureSumError: The client is not present, or its boxes are not one for each other member.
        """
        size = 2 * KEY_SIZE * self.terms.num_rounds + _OVERHEAD
        if dealer not in self.present or dealer in self._boxes:
            raise SecureSumError(Refusal.SETUP)
        if set(boxes) != set(self.topology.committee) - {dealer} or any(len(box) != size for box in boxes.values()):
            raise SecureSumError(Refusal.MALFORMED)
        self._boxes[dealer] = dict(boxes)

    @property
    def missing(self) -> tuple[int, ...]:
        """The clients present that have not dealt yet."""
        return tuple(index for index in self.present if index not in self._boxes)

    def close_dealing(self) -> None:
        """Finish the set-up.

        Raises:
            SecureSumError: Somebody has not dealt. Its masks could not be removed, so another attempt is needed.
        """
        if not self.present or self.missing:
            raise SecureSumError(Refusal.SETUP)

    def boxes_for(self, member: int) -> dict[int, bytes]:
        """Return the boxes for one client by dealer."""
        return {dealer: boxes[member] for dealer, boxes in self._boxes.items() if member in boxes}

    def to_bytes(self) -> bytes:
        """Return everything as bytes for a server that is started again."""
        header = {
            "kind": _KIND,
            "terms": terms_to_json(self.terms),
            "adverts": [advert_to_json(each.advert) for each in self._announced.values()],
            "closed": bool(self.present),
            "boxes": {str(dealer): sorted(boxes) for dealer, boxes in self._boxes.items()},
        }
        arrays = {
            "keys": b"".join(each.mask_keys for each in self._announced.values()),
            "commitments": b"".join(each.seed_commitments for each in self._announced.values()),
            "boxes": b"".join(boxes[member] for boxes in self._boxes.values() for member in sorted(boxes)),
        }
        return pack(header, {name: np.frombuffer(content, dtype=np.uint8) for name, content in arrays.items()})

    @classmethod
    def from_bytes(cls, raw: bytes, roster: Roster) -> "ServerSetup":
        """Return the set-up that was stored as bytes.

        Raises:
            SecureSumError: The bytes are damaged, of another version or of another roster.
        """
        header, arrays = unpack(raw, _KIND)
        try:
            setup = cls(terms_from_json(header["terms"]), roster)
            adverts = [advert_from_json(stored) for stored in header["adverts"]]
            keys, commitments = (_pieces(arrays[name].tobytes(), len(adverts)) for name in ("keys", "commitments"))
            for parts in zip(adverts, keys, commitments, strict=True):
                setup.add_announcement(Announcement(*parts))
            if header["closed"]:
                setup.close_announcements()
            boxes = iter(_pieces(arrays["boxes"].tobytes(), sum(map(len, header["boxes"].values()))))
            for dealer, members in header["boxes"].items():
                setup.add_boxes(int(dealer), {member: next(boxes) for member in members})
        except (KeyError, TypeError, ValueError, StopIteration):
            raise SecureSumError(Refusal.STORED) from None
        return setup


def _pieces(content: bytes, number: int) -> list[bytes]:
    size = len(content) // max(number, 1)
    return [content[size * place : size * (place + 1)] for place in range(number)]
