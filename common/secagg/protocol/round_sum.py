"""The server's side of one round, from masked words to their sum."""

from collections.abc import Collection, Mapping

from common.secagg.primitives import shamir
from common.secagg.primitives.keys import KEY_SIZE, AgreementKey
from common.secagg.primitives.ring import Words
from common.secagg.protocol.messages import UnmaskReply, UnmaskRequest, key_of_round
from common.secagg.protocol.pair_masks import add_pair_masks, pair_secret, seed_commitment, self_mask, sign_of
from common.secagg.protocol.server_setup import ServerSetup
from common.secagg.refusals import Refusal, SecureSumError


class RoundSum:
    """The sum of one round on its way from masked to open.

    It takes masked words, closes the survivor set, asks committee members, and returns the sum of the survivors' words.
    """

    def __init__(self, setup: ServerSetup, round_number: int, context: bytes) -> None:
        setup.close_dealing()
        setup.terms.check_round(round_number)
        self._setup, self._round, self._context = setup, round_number, context
        self._words: dict[int, Words] = {}
        self._request: UnmaskRequest | None = None
        self._answers: dict[int, list[int]] = {}

    def add_words(self, index: int, words: Words) -> None:
        """Take the masked words of one client.

        Raises:
            SecureSumError: The client is not present, comes twice or too late, or its words have a wrong size or type.
        """
        if index not in self._setup.present or index in self._words or self._request is not None:
            raise SecureSumError(Refusal.ROUND)
        terms = self._setup.terms
        self._words[index] = terms.ring.checked(words, terms.lengths[self._round - 1])

    def ask(self, alive: Collection[int] | None = None) -> UnmaskRequest:
        """Return the request that goes to all its responders.

        The first call closes the survivor set. Each further one names fewer responders for the same set.

        Args:
            alive: Clients that can be expected to answer. None takes the survivors.

        Raises:
            SecureSumError: Too few survivors or too few responders are left. Nothing can be opened, and the round is
                over.
        """
        terms, topology = self._setup.terms, self._setup.topology
        survivors = tuple(sorted(self._words)) if self._request is None else self._request.survivors
        responders = tuple(member for member in topology.committee if member in (survivors if alive is None else alive))
        if not terms.enough(len(survivors)) or len(responders) < topology.threshold:
            raise SecureSumError(Refusal.TOO_FEW)
        if not topology.hides(set(survivors)):
            raise SecureSumError(Refusal.SURVIVORS)
        self._request, self._answers = UnmaskRequest(self._round, survivors, responders), {}
        return self._request

    def add_answer(self, reply: UnmaskReply) -> None:
        """Take a member's answer to the latest request.

        Raises:
            SecureSumError: It answers another request, comes twice, or has the wrong size.
        """
        request = self._request
        if request is None or reply.request != request.digest(self._setup.terms):
            raise SecureSumError(Refusal.SURVIVORS)
        if reply.index not in request.responders or reply.index in self._answers:
            raise SecureSumError(Refusal.SURVIVORS)
        if len(reply.shares) != KEY_SIZE * len(self._setup.present):
            raise SecureSumError(Refusal.MALFORMED)
        starts = range(0, len(reply.shares), KEY_SIZE)
        self._answers[reply.index] = [shamir.to_element(reply.shares[start : start + KEY_SIZE]) for start in starts]

    @property
    def missing(self) -> tuple[int, ...]:
        """The responders that have not answered the latest request."""
        responders = () if self._request is None else self._request.responders
        return tuple(member for member in responders if member not in self._answers)

    def finish(self) -> Words:
        """Return the exact sum of the survivors' words.

        Raises:
            SecureSumError: A responder has not answered, or the opened secrets are wrong.
        """
        if self._request is None or self.missing:
            raise SecureSumError(Refusal.TOO_FEW)
        columns = zip(*self._answers.values(), strict=True)
        opened = [shamir.to_bytes(sum(column) % shamir.PRIME) for column in columns]
        secrets = dict(zip(self._setup.present, opened, strict=True))
        self._check_opened(secrets)
        total = self._setup.terms.ring.zeros(self._setup.terms.lengths[self._round - 1])
        for index in self._request.survivors:
            total += self._words[index]
            total -= self_mask(self._setup.terms, self._round, secrets[index])
        for index in sorted(set(secrets) - set(self._request.survivors)):
            self._remove_pair_masks(total, index, secrets[index])
        return self._setup.terms.ring.reduced(total)

    def _check_opened(self, secrets: Mapping[int, bytes]) -> None:
        """Refuse secrets that differ from what their owners announced."""
        terms, survivors = self._setup.terms, set(self._request.survivors if self._request else ())
        for index, secret in secrets.items():
            announced = self._setup.announcement(index)
            if index in survivors:
                expected = key_of_round(announced.seed_commitments, self._round)
                found = seed_commitment(terms, index, self._round, secret)
            else:
                expected, found = key_of_round(announced.mask_keys, self._round), AgreementKey(secret).public_key
            if found != expected:
                raise SecureSumError(Refusal.RECOVERY)

    def _remove_pair_masks(self, total: Words, gone: int, secret: bytes) -> None:
        """Subtract what the survivors have added for a client whose words did not come."""
        survivors = set(self._request.survivors if self._request else ())
        pairs, gone_key = [], AgreementKey(secret)
        for other in self._setup.topology.neighbours(gone):
            if other in survivors:
                key = key_of_round(self._setup.announcement(other).mask_keys, self._round)
                shared = pair_secret(self._setup.terms, self._round, gone, gone_key, other, key)
                pairs.append((-sign_of(other, gone), shared))
        add_pair_masks(total, self._setup.terms, self._round, self._context, pairs)
