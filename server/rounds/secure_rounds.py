"""Opening of a round's sum at the server, after the masked words have come."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from flwr.app import Message, RecordDict

from common.arrays import Arrays
from common.config.loading import Scalar
from common.errors import BractError, ClientFailure, FederationError
from common.messages.checks import check_release
from common.messages.codec import Evaluation
from common.messages.fields import ARRAYS, UNMASK, WORDS
from common.messages.held_array import array_records_in, content_bytes
from common.messages.secure_messages import answer_in, context_of, request_content, unmask_values
from common.secagg.protocol.messages import UnmaskRequest
from common.secagg.protocol.round_sum import RoundSum
from server.aggregation.summed_steps import SummedSteps
from server.rounds.enrollment import EnrolledClient
from server.rounds.messaging import LATE, deliver, failure_of
from server.rounds.replies import AcceptedReplies, Channel
from server.rounds.secure_setup import SecureSession

_log = logging.getLogger("bract.server")
# The first asks all survivors. The second asks those that answered, because a sum of answers needs all it was made for.
_QUESTIONS = 2


@dataclass(frozen=True)
class OpenedSum:
    """The opened sum of a round.

    Attributes:
        arrays: The model that follows from the sum, or the survivors' sums over features; empty for the closing
            evaluation.
        evaluation: Their summed counts; None where none leave.
        survivors: Names of the clients in the sum.
        failures: Failure codes of clients that did not help to open it.
        bytes_up: Mean bytes of an answer.
    """

    arrays: Arrays
    evaluation: Evaluation | None
    survivors: tuple[str, ...]
    failures: Mapping[str, str] = field(default_factory=dict)
    bytes_up: float = 0.0


@dataclass(frozen=True)
class SecureRounds:
    """The rounds of a run in which the server sees sums alone.

    `settings` are those of the run, flat and complete. `steps` are the server's, where clients send gradient sums with
    noise in shares; None where they send updates.
    """

    session: SecureSession
    num_rounds: int
    settings: Mapping[str, Scalar]
    steps: SummedSteps | None = None

    def reachable(self, clients: Mapping[str, EnrolledClient]) -> dict[str, EnrolledClient]:
        """Return clients, those without a part in the set-up as unreachable."""
        present = self.session.present
        return {name: client if name in present else replace(client, node_id=None) for name, client in clients.items()}

    def num_bytes(self, server_round: int | None) -> int:
        """Return the bytes of a packed vector, the closing one for None."""
        terms = self.session.setup.terms
        return terms.lengths[self._number(server_round) - 1] * terms.ring.num_bytes

    def _number(self, server_round: int | None) -> int:
        return self.num_rounds + 1 if server_round is None else server_round

    def open(
        self,
        channel: Channel,
        clients: Mapping[str, EnrolledClient],
        asked: RecordDict,
        accepted: AcceptedReplies,
        incoming: Arrays,
        *,
        server_round: int | None,
    ) -> OpenedSum | None:
        """Return the opened sum of masked words, None where it cannot be opened.

        Then nothing is learnt of any client, and the round is over. The closing evaluation has no round. `asked` is
        the content of the round's message, `incoming` the model in it.
        """
        words, index_of, ring = self.session.words, self.session.roster.index_of, self.session.setup.terms.ring
        opening = _Opening(self, channel, clients)
        try:
            summed = RoundSum(self.session.setup, self._number(server_round), context_of(asked, self.settings))
            for name, (reply, _) in accepted.items():
                packed = array_records_in(reply.content)[ARRAYS][WORDS].numpy()
                summed.add_words(index_of(name), ring.unpacked(packed))
            vector = opening.ask(summed)
            counts = words.summed_counts(vector, len(accepted), server_round=server_round)
        except BractError as error:
            _log.error("round %d was not opened: %s", self._number(server_round), error)
            return None
        survivors = tuple(accepted)
        arrays: Arrays = {}
        if server_round is not None and self.steps is not None:
            units = sum(words.sizes[name] for name in survivors)
            start = {name: incoming[name] for name in words.shapes}
            arrays = self.steps.step(start, words.part_of_sum(vector), words.gradient_scale, num_units=units)
        elif server_round is not None and words.releases.statistics is not None:
            arrays = words.summed_statistics(vector)
        elif server_round is not None:
            update = words.average_update(vector, survivors)
            arrays = {name: (before + update[name]).astype(np.float32) for name, before in incoming.items()}
        mean = float(np.mean(opening.received)) if opening.received else 0.0
        return OpenedSum(arrays, counts, survivors, opening.failures, mean)


class _Opening:
    """The exchange in which committee members help to open one sum."""

    def __init__(self, rounds: SecureRounds, channel: Channel, clients: Mapping[str, EnrolledClient]) -> None:
        self._rounds, self._channel, self._clients = rounds, channel, clients
        self.failures: dict[str, str] = {}
        self.received: list[int] = []

    def ask(self, summed: RoundSum) -> np.ndarray:
        """Return the sum after one question to survivors and one to responders.

        Raises:
            SecureSumError: Too few have answered, or their answers do not fit.
        """
        request = summed.ask()
        for question in range(_QUESTIONS):
            self._collect(summed, request)
            if not summed.missing:
                break
            if question + 1 < _QUESTIONS:
                request = summed.ask(alive=set(request.responders) - set(summed.missing))
        return summed.finish()

    def _collect(self, summed: RoundSum, request: UnmaskRequest) -> None:
        channel, names = self._channel, self._rounds.session.roster.names
        nodes = {names[index]: self._clients[names[index]].node_id for index in request.responders}
        content = request_content(channel.run_id, unmask_values(request))
        messages = [Message(content.copy(), node, UNMASK) for node in nodes.values() if node is not None]
        arrived = deliver(channel.grid, messages, seconds=channel.reply_seconds, one_by_one=channel.one_by_one)
        for name, node in nodes.items():
            reply = None if node is None else arrived.get(node)
            if reply is None or reply.has_error():
                self.failures[name] = failure_of(reply) if node in arrived else LATE
                continue
            try:
                check_release(reply.content, message_type=UNMASK, releases=channel.releases, travelling={})
                answer = answer_in(reply.content)
                # Another's index would spoil the sum at that client's cost.
                if answer.index != self._rounds.session.roster.index_of(name):
                    raise FederationError("its answer has the index of another client")
                summed.add_answer(answer)
                self.received.append(content_bytes(reply.content))
            except BractError as error:
                _log.error("client %s sent an answer that cannot be used: %s", name, error)
                self.failures[name] = ClientFailure.MESSAGE.name
