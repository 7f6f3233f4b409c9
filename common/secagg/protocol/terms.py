"""The public constants of one secure sum, known to everyone before it begins."""

from dataclasses import dataclass
from functools import cached_property

from common.secagg.primitives.domains import Domain, digest
from common.secagg.primitives.ring import Ring
from common.secagg.protocol.roster import Roster
from common.secagg.refusals import Refusal, SecureSumError


@dataclass(frozen=True)
class Terms:
    """The constants that every signature, key and sealed box is bound to.

    Attributes:
        run: The run's id.
        attempt: Which set-up of the run this is, from 0.
        roster: The roster's digest.
        num_clients: Clients on the roster.
        num_colluding: Clients that may work together with the server, at least 1.
        num_honest: Honest clients whose words must be in every opened sum, at least 2. A sum over one honest client
            would be that client's own words.
        lengths: Words of each round's vector. Rounds are numbered from 1.
        word_bits: Of the ring, 32 to 64.
        plan: Digest of whatever else the clients have agreed on.

    Raises:
        SecureSumError: The constants contradict each other.
    """

    run: str
    attempt: int
    roster: bytes
    num_clients: int
    num_colluding: int
    num_honest: int
    lengths: tuple[int, ...]
    word_bits: int
    plan: bytes

    def __post_init__(self) -> None:
        counts = (self.num_colluding, self.num_honest - 1, len(self.lengths), *self.lengths)
        if min(counts) < 1 or self.attempt < 0 or not self.enough(self.num_clients):
            raise SecureSumError(Refusal.TERMS)
        Ring(self.word_bits)

    @property
    def num_rounds(self) -> int:
        """The number of rounds for which keys are made."""
        return len(self.lengths)

    @property
    def ring(self) -> Ring:
        """The ring of the masked words."""
        return Ring(self.word_bits)

    @cached_property
    def session(self) -> bytes:
        """The digest of all constants that names this secure sum, 32 bytes."""
        counts = (self.attempt, self.num_clients, self.num_colluding, self.num_honest, self.word_bits)
        return digest(Domain.SESSION, self.run, self.roster, self.plan, *counts, *self.lengths)

    def enough(self, num_present: int) -> bool:
        """Return whether enough honest clients are left if all colluding ones are present."""
        # Fellow clients know their own noise. So the honest ones alone must reach the accounted number.
        return num_present - self.num_colluding >= self.num_honest

    def check_roster(self, roster: Roster) -> None:
        """Refuse a roster that the constants do not name.

        Raises:
            SecureSumError: Its digest or its size differs.
        """
        if roster.digest != self.roster or len(roster) != self.num_clients:
            raise SecureSumError(Refusal.ROSTER)

    def check_round(self, round_number: int) -> None:
        """Refuse a round for which there are no keys.

        Raises:
            SecureSumError: The number is not one of the rounds.
        """
        if not 1 <= round_number <= self.num_rounds:
            raise SecureSumError(Refusal.ROUND)
