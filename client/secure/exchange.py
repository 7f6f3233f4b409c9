"""A client's answers in the exchanges of a secure sum."""

from collections.abc import Mapping

import numpy as np
from flwr.app import RecordDict

from client.session import ClientSession
from common.arrays import Arrays
from common.config.loading import resolved
from common.errors import FederationError, PolicyError
from common.ledger.signed_heads import SignedHead
from common.messages.codec import Evaluation, run_id_of, server_round_of
from common.messages.fields import WORDS, Releases
from common.messages.secure_messages import (
    announcement_values,
    answer_values,
    box_values,
    boxes_in,
    context_of,
    delivered,
    reply_content,
    setup_request,
    unmask_request,
    words_content,
)
from common.messages.secure_words import SecureWords
from common.secagg.protocol.client import ClientState
from common.secagg.protocol.terms import Terms

Answer = tuple[RecordDict, SignedHead | None]


def advertise(content: RecordDict, session: ClientSession) -> Answer:
    """Draw the secrets of a run's rounds and announce their public halves.

    Raises:
        PolicyError: Sums of the run have begun, or the same set-up was begun before.
        FederationError: The request does not fit what this client declared.
        SecureSumError: The constants do not fit the roster.
    """
    run, request = run_id_of(content), setup_request(content)
    config, party = session.trainer.config, session.party
    if config.secure is None or party is None:
        raise FederationError("a set-up for secure sums was asked for, and the run has none")
    # A size that the server made up would give this client another weight than the one it declared.
    if request.sizes.get(session.name) != session.rows.num_units or not set(request.sizes) <= set(party.roster.names):
        raise FederationError("a set-up names clients or sizes that are not those of the roster or the declaration")
    terms, file = _terms(session, run, request.attempt, request.sizes), session.secrets(run)
    state, announcement = ClientState.begin(terms, party.roster, session.name, party.identity)
    session.guard(run).begin_sums(run, terms.session)
    file.save(state, request.sizes)
    return reply_content(announcement_values(announcement, party.roster)), None


def deal(content: RecordDict, session: ClientSession) -> Answer:
    """Check who is present and deal shares of this client's secrets.

    Raises:
        FederationError: The run has no secure sums, or no set-up has begun.
        SecureSumError: An announcement is forged or missing, or too few are present.
    """
    if session.party is None:
        raise FederationError("shares were asked for, and the run has no secure sums")
    file = session.secrets(run_id_of(content))
    state, sizes = file.load()
    boxes = state.deal(session.party.roster, delivered(content))
    file.save(state, sizes)
    return reply_content(box_values(boxes)), None


def accept(content: RecordDict, session: ClientSession) -> Answer:
    """Open and keep the shares that the others have dealt.

    Raises:
        SecureSumError: A share is missing or does not open.
    """
    file = session.secrets(run_id_of(content))
    state, sizes = file.load()
    if state.awaits_boxes:
        state.accept(boxes_in(content))
        file.save(state, sizes)
    return RecordDict(), None


def unmask(content: RecordDict, session: ClientSession) -> Answer:
    """Give this member's part in opening the sum over one set of survivors.

    Raises:
        PolicyError: Another set was answered in this round.
        SecureSumError: The set is too small, or not of those present.
    """
    run, request = run_id_of(content), unmask_request(content)
    file = session.secrets(run)
    state, sizes = file.load()
    reply = state.unmask(request)
    # Before the file and before anything leaves: after a crash no other set may be answered in this round.
    survivors = request.survivor_digest(state.terms)
    session.guard(run).open_sum(run, request.round_number, survivors, num_survivors=len(request.survivors))
    file.save(state, sizes)
    return reply_content(answer_values(reply)), None


class MaskedReply:
    """The reply of a round under this client's masks.

    Raises:
        PolicyError: The set-up was for another plan or other constants than the run has now.
        FederationError: There is no set-up.
    """

    def __init__(self, session: ClientSession, run: str, asked: RecordDict) -> None:
        self._session, self._file = session, session.secrets(run)
        self._context = context_of(asked, resolved(session.trainer.config))
        self._state, self._sizes = self._file.load()
        # The settings come with each message. With a set-up for fewer honest clients than the registered plan counts
        # on, sums with too little noise would be opened.
        terms = _terms(session, run, self._state.terms.attempt, self._sizes)
        if terms != self._state.terms:
            raise PolicyError("the set-up of secure sums was for another plan or other constants than the run's")
        self._masked = False

    def update(
        self, trained: Arrays, incoming: Arrays, evaluation: Evaluation | None, *, server_round: int
    ) -> RecordDict:
        """Return the masked words of a round's update and counts.

        Where the run takes statistics, `trained` are the sums over features and no model. Where whole clients are
        protected, the update is clipped and has this client's share of the noise.

        Raises:
            NotFiniteError: The update or the sums are not finite, or too long.
            SecureSumError: The round's secrets are used or erased.
        """
        words = words_of(self._session, self._sizes)
        if self._session.trainer.config.takes_statistics:
            encoded = words.encode_statistics(trained, self._session.name)
        else:
            update = {name: trained[name].astype(np.float64) - before for name, before in incoming.items()}
            encoded = self._encoded(words, update)
        counted = self._counted(words, evaluation, server_round)
        return self._under_masks(server_round, np.concatenate([encoded, counted]))

    def _encoded(self, words: SecureWords, update: Arrays) -> np.ndarray:
        if self._session.trainer.config.mechanism.clips_clients:
            return words.encode_clipped(update, self._session.streams.for_training().noise)
        return words.encode_update(update, self._session.name)

    def gradient(self, total: np.ndarray, evaluation: Evaluation | None, *, server_round: int) -> RecordDict:
        """Return the masked words of a clipped sum and counts.

        This client's share of the noise is in each of them.

        Raises:
            PrivacyError: The plan has no noise in shares.
            SecureSumError: The round's secrets are used or erased.
        """
        words, streams = words_of(self._session, self._sizes), self._session.streams
        encoded = words.encode_sum(total, self._session.name, streams.for_training().noise)
        counted = self._counted(words, evaluation, server_round)
        return self._under_masks(server_round, np.concatenate([encoded, counted]))

    def _counted(self, words: SecureWords, evaluation: Evaluation | None, server_round: int | None) -> np.ndarray:
        stream = self._session.streams.for_counts() if words.counts_in_shares else None
        return words.encode_counts(evaluation, server_round=server_round, name=self._session.name, stream=stream)

    def closing(self, evaluation: Evaluation | None) -> RecordDict:
        """Return the masked words of the closing counts."""
        words = words_of(self._session, self._sizes)
        counted = self._counted(words, evaluation, None)
        return self._under_masks(self._session.trainer.config.num_rounds + 1, counted)

    def _under_masks(self, number: int, encoded: np.ndarray) -> RecordDict:
        masked = self._state.mask(number, self._context, encoded)
        self._masked = True
        return words_content(self._state.terms.ring.packed(masked), self._session.rows.num_units)

    def keep(self, number: int) -> None:
        """Erase a round's secrets after its reply is in the ledger.

        The closing counts are of the round after the last one.
        """
        # A process that was killed after the ledger's commit left the secrets behind. The stored words leave now, so
        # their masks must not stay on the disk, although nothing was masked here.
        if not self._masked and not self._state.forget_masks(number):
            return
        self._file.save(self._state, self._sizes)


def leaving_shapes(session: ClientSession, kind: str, asked: RecordDict) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the tensors in a reply."""
    config = session.trainer.config
    if config.secure is None or kind not in ("train", "evaluate"):
        return session.travelling
    words = words_of(session, session.secrets(run_id_of(asked)).sizes())
    length = words.lengths(config.num_rounds)[server_round_of(asked) - 1 if kind == "train" else -1]
    return {WORDS: (length * words.ring.num_bytes,)}


def _terms(session: ClientSession, run: str, attempt: int, sizes: Mapping[str, int]) -> Terms:
    """Return the constants of a set-up that fit this client's run.

    Raises:
        FederationError: The run has no secure sums.
        SecureSumError: The constants do not fit the roster.
    """
    config, party = session.trainer.config, session.party
    if config.secure is None or party is None:
        raise FederationError("a set-up for secure sums was asked for, and the run has none")
    words = words_of(session, sizes)
    return words.terms(config.secure, party.roster, run=run, attempt=attempt, num_rounds=config.num_rounds)


def words_of(session: ClientSession, sizes: Mapping[str, int]) -> SecureWords:
    """Return the layout of this run's vectors."""
    config, classes = session.trainer.config, session.trainer.classes
    releases = Releases.of(config)
    return SecureWords(session.travelling, len(classes), releases, sizes, config.num_clients, session.plan)
