"""A whole secure sum in one process, each step of which a test can leave out or falsify."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from common.secagg.primitives.ring import Words
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.messages import Announcement, UnmaskRequest
from common.secagg.protocol.roster import Identity, Roster
from common.secagg.protocol.round_sum import RoundSum
from common.secagg.protocol.server_setup import ServerSetup
from common.secagg.protocol.terms import Terms

CONTEXT = b"c" * 32


@cache
def identity_of(index: int) -> Identity:
    return Identity(index.to_bytes(32, "big"))


@cache
def roster_of(num_clients: int) -> Roster:
    return Roster.of({f"client-{index:04}": identity_of(index).public_key for index in range(num_clients)})


def terms_of(num_clients: int, *, honest: int | None = None, **changes: object) -> Terms:
    values = {
        "run": "run-1",
        "attempt": 0,
        "roster": roster_of(num_clients).digest,
        "num_clients": num_clients,
        "num_colluding": 1,
        "num_honest": max(2, num_clients // 2 - 1) if honest is None else honest,
        "lengths": (7, 7),
        "word_bits": 32,
        "plan": b"plan",
    }
    return Terms(**(values | changes))  # type: ignore[arg-type]


@cache
def _stored(terms: Terms) -> tuple[bytes, tuple[bytes, ...]]:
    made = Federation.ready(terms)
    return made.setup.to_bytes(), tuple(state.to_bytes() for state in made.clients.values())


@dataclass
class Federation:
    """The states of all clients after the set-up, and the server's."""

    terms: Terms
    roster: Roster
    setup: ServerSetup
    clients: dict[int, ClientState] = field(default_factory=dict)
    announced: dict[int, Announcement] = field(default_factory=dict)

    @classmethod
    def announced_of(cls, terms: Terms, present: Iterable[int] | None = None) -> "Federation":
        """After the first exchange."""
        roster = roster_of(terms.num_clients)
        made = cls(terms, roster, ServerSetup(terms, roster))
        for index in range(terms.num_clients) if present is None else present:
            state, announcement = ClientState.begin(terms, roster, roster.names[index], identity_of(index))
            made.clients[index], made.announced[index] = state, announcement
            made.setup.add_announcement(announcement)
        made.setup.close_announcements()
        return made

    @classmethod
    def ready(cls, terms: Terms, present: Iterable[int] | None = None) -> "Federation":
        """After the whole set-up."""
        made = cls.announced_of(terms, present)
        for index, state in made.clients.items():
            made.setup.add_boxes(index, state.deal(made.roster, made.setup.delivery(index)))
        for index, state in made.clients.items():
            if state.is_member:
                state.accept(made.setup.boxes_for(index))
        return made

    @classmethod
    def copied(cls, terms: Terms) -> "Federation":
        """After the whole set-up, which is made once for equal terms. Each copy goes its own way.

        A planted fault of the set-up must not be checked by a test that takes a copy.
        """
        setup, states = _stored(terms)
        roster = roster_of(terms.num_clients)
        read = ServerSetup.from_bytes(setup, roster)
        clients = dict(enumerate(map(ClientState.from_bytes, states)))
        return cls(terms, roster, read, clients, {index: read.announcement(index) for index in clients})

    def masked(
        self, round_number: int, words: Mapping[int, Words], *, lost: Collection[int] = (), context: bytes = CONTEXT
    ) -> RoundSum:
        """After the first exchange of a round. Words of lost clients were made but do not arrive."""
        open_round = RoundSum(self.setup, round_number, context)
        for index, own in words.items():
            masked = self.clients[index].mask(round_number, context, own)
            if index not in lost:
                open_round.add_words(index, masked)
        return open_round

    def opened(self, open_round: RoundSum, *, silent: Collection[int] = ()) -> Words:
        """Return the sum after the second exchange, asked again if some responders are silent."""
        request = open_round.ask()
        self.answer(open_round, request, silent)
        if open_round.missing:
            request = open_round.ask(set(request.responders) - set(open_round.missing))
            self.answer(open_round, request, silent)
        return open_round.finish()

    def answer(self, open_round: RoundSum, request: UnmaskRequest, silent: Collection[int] = ()) -> None:
        for member in request.responders:
            if member not in silent:
                open_round.add_answer(self.clients[member].unmask(request))

    def words(self, round_number: int, seed: int = 0) -> dict[int, Words]:
        stream = np.random.default_rng([seed, round_number])
        size, dtype = self.terms.lengths[round_number - 1], self.terms.ring.dtype
        return {
            index: stream.integers(0, 2**self.terms.word_bits - 1, size, dtype=dtype.type, endpoint=True)
            for index in self.clients
        }


def plain_sum(words: Mapping[int, Words], indexes: Iterable[int]) -> Words:
    """Return the sum that a secure sum must equal bit for bit."""
    return np.sum([words[index] for index in indexes], axis=0, dtype=next(iter(words.values())).dtype)
