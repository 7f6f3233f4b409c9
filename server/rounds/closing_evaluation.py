"""Closing messages of a run and the evaluation that they bring."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from flwr.app import Message, RecordDict
from flwr.serverapp.strategy import Strategy

from common.arrays import Arrays
from common.messages.codec import CONFIG, Evaluation, arrays_to_record, run_config
from common.metrics import Counts, NoisedCounts, total
from common.score_histograms import ScoreHistograms
from common.subgroup_counts import SubgroupCounts
from server.rounds.enrollment import EnrolledClient
from server.rounds.replies import Channel, ReplyCollector
from server.rounds.secure_rounds import SecureRounds

# Failure code of clients whose words came, but could not be opened.
NOT_OPENED = "NOT-OPENED"
# Simulated clients that are asked at once. Fewer would keep worker threads waiting for each other.
_PART = 1000


@dataclass(frozen=True)
class ClosingEvaluation:
    """Evaluation of the final model.

    `failures` holds the failure code of each client whose evaluation is missing. `summed` is the sum over clients where
    a secure sum hides each client's own.
    """

    by_client: Mapping[str, Evaluation] = field(default_factory=dict)
    failures: Mapping[str, str] = field(default_factory=dict)
    summed: Evaluation | None = None

    @property
    def exact(self) -> dict[str, Counts]:
        """Exact counts of the final model by client name."""
        return {name: part.counts for name, part in self.by_client.items() if part.counts is not None}

    @property
    def counts(self) -> Counts | None:
        """Exact counts of the final model, summed over clients."""
        return total(part.counts for part in self._parts if part.counts is not None)

    @property
    def _parts(self) -> list[Evaluation]:
        return [*self.by_client.values(), *([] if self.summed is None else [self.summed])]

    @property
    def personal(self) -> dict[str, Counts]:
        """Exact counts of each client's own final model by client name."""
        return {name: part.personal for name, part in self.by_client.items() if part.personal is not None}

    @property
    def noised(self) -> NoisedCounts | None:
        """Noised counts of the final model, summed over clients."""
        return total(part.noised for part in self._parts if part.noised is not None)

    @property
    def histograms(self) -> ScoreHistograms | None:
        """Histograms of the final model's scores, summed over clients."""
        return total(part.histograms for part in self._parts if part.histograms is not None)

    @property
    def subgroups(self) -> SubgroupCounts | None:
        """Right and wrong predictions of the final model by subgroup, summed over clients."""
        return total(part.subgroups for part in self._parts if part.subgroups is not None)

    def with_exact(self, counts: Mapping[str, Counts]) -> "ClosingEvaluation":
        """Return this evaluation with exact counts that a simulation made outside the clients."""
        ours = self.by_client
        by_client = {
            name: replace(ours.get(name, Evaluation()), counts=counts.get(name)) for name in sorted({*counts, *ours})
        }
        return replace(self, by_client=by_client)


def evaluate_at_clients(
    channel: Channel,
    strategy: Strategy,
    arrays: Arrays,
    clients: Mapping[str, EnrolledClient],
    server_round: int,
    secure: SecureRounds | None = None,
) -> ClosingEvaluation:
    """Ask every client to evaluate a model."""
    if secure is None:
        return _evaluate_in_parts(channel, strategy, arrays, clients, server_round)
    clients = secure.reachable(clients)
    collector = ReplyCollector(channel, clients, arrays, secure.num_bytes(None))
    messages = _messages(collector, channel, strategy, arrays, server_round)
    replies, failures = collector.replies(messages)
    if not messages:
        return ClosingEvaluation(failures=failures)
    opened = secure.open(channel, clients, messages[0].content, replies, {}, server_round=None)
    if opened is None:
        # Nobody's counts were learnt, so all are missing.
        return ClosingEvaluation(failures=failures | dict.fromkeys(replies, NOT_OPENED))
    return ClosingEvaluation(failures=failures, summed=opened.evaluation)


def _evaluate_in_parts(
    channel: Channel, strategy: Strategy, arrays: Arrays, clients: Mapping[str, EnrolledClient], server_round: int
) -> ClosingEvaluation:
    """Ask simulated clients in parts.

    Then the messages of one part alone are in memory.
    """
    # Real clients are asked together. Each part would wait for its slowest client.
    size = max(1, len(clients)) if channel.one_by_one else _PART
    evaluations: dict[str, Evaluation] = {}
    failures: dict[str, str] = {}
    names = sorted(clients)
    for start in range(0, len(names), size):
        part = {name: clients[name] for name in names[start : start + size]}
        collector = ReplyCollector(channel, part, arrays)
        replies, failed = collector.replies(_messages(collector, channel, strategy, arrays, server_round))
        evaluations |= {name: evaluation for name, (_, evaluation) in replies.items() if evaluation is not None}
        failures |= failed
    return ClosingEvaluation(evaluations, failures)


def _messages(
    collector: ReplyCollector, channel: Channel, strategy: Strategy, arrays: Arrays, server_round: int
) -> list[Message]:
    if not collector.nodes:
        return []
    config = run_config(channel.run_id)
    return list(strategy.configure_evaluate(server_round, arrays_to_record(arrays), config, collector.cohort_grid))


def close_at_clients(channel: Channel, clients: Mapping[str, EnrolledClient]) -> None:
    """Tell every client that the run has ended.

    A client that does not hear it loses nothing.
    """
    collector = ReplyCollector(channel, clients, {})
    content = RecordDict({CONFIG: run_config(channel.run_id)})
    collector.replies([Message(content.copy(), node, "query.close") for node in collector.nodes.values()])
