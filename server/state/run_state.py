"""State of a run in memory."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.arrays import Arrays
from common.config.schema import RunConfig
from common.messages.codec import Evaluation
from common.metrics import Counts, total
from common.privacy.noise_error import CURRENT_SAMPLER
from server.rounds.closing_evaluation import ClosingEvaluation
from server.rounds.cohorts import join_cohorts
from server.rounds.enrollment import EnrolledClient
from server.rounds.loop import RoundResult
from server.rounds.secure_setup import SecureSession
from server.run_context import RunContext
from server.state.client_roll import ClientRoll
from server.state.early_stopping import EarlyStopping
from server.state.privacy_spent import RunPrivacyCost, account, epsilon_so_far


@dataclass
class RunState:
    """State of a run in memory, written to files by `server.reporting.artifacts`.

    `join` changes `clients`, `cohorts` and `joined` (the first round of each client that came late). `take_back`
    changes `clients`. `add` changes `arrays` (the global model after the last complete round, without tensors that stay
    with clients), `rounds`, `latest` (sums over the latest round that was not skipped) and `early` (the run stopped
    before its last round, by choice). `refusals` says why others do not take part, by "node N" or "client NAME", and
    `LateJoinHandler` extends it. `earlier_bundles` are pinned bundles that clients declared before the run was resumed,
    or before they came back. `privacy_cost` is that of the whole plan until `finish`. `sampler` is the noise sampler
    that the run began with, `initial` what is stated of an earlier model that it started from. `secure_session` is the
    finished set-up of secure sums, `momentum` that of the server's steps after the last complete round, empty without
    any. `closing_public_test` are figures of the final model on the server's public images, None where a round has
    them.
    """

    config: RunConfig
    run_id: str
    clients: dict[str, EnrolledClient]
    refusals: dict[str, str]
    cohorts: list[list[str]]
    arrays: Arrays
    context: RunContext = field(default_factory=RunContext)
    joined: dict[str, int] = field(default_factory=dict)
    earlier_bundles: dict[str, str] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    latest: Evaluation = field(default_factory=Evaluation)
    early: bool = False
    closing: ClosingEvaluation = field(default_factory=ClosingEvaluation)
    closing_public_test: Mapping[str, Any] | None = None
    privacy_cost: RunPrivacyCost | None = None
    status: str = "interrupted"
    sampler: int = CURRENT_SAMPLER
    initial: Mapping[str, Any] | None = None
    secure_session: SecureSession | None = None
    momentum: np.ndarray = field(default_factory=lambda: np.zeros(0))
    early_stopping: EarlyStopping = field(init=False)
    _roll: ClientRoll | None = None

    def __post_init__(self) -> None:
        self.early_stopping = EarlyStopping(self.config.stopping)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, a public constant of the run."""
        return next(iter(self.clients.values())).declaration.classes

    def join(self, client: EnrolledClient, server_round: int) -> None:
        """Add a late client, with a plan like every other client's.

        Raises:
            ConfigError: The client admits no plan.
        """
        config, name = self.config, client.declaration.name
        self.clients[name] = client
        self.forget_roll()
        self.joined[name] = server_round
        self.cohorts[:] = join_cohorts(
            self.cohorts, name, server_round, cohort_size=config.cohort_size, participations=config.participations
        )
        self.register()

    def take_back(self, client: EnrolledClient) -> None:
        """Replace a client that was away by the same client at its new node."""
        name = client.declaration.name
        # A bundle that is pinned only now does not count for the rounds before.
        self.earlier_bundles.setdefault(name, self.clients[name].declaration.bundle)
        self.clients[name] = client
        self.forget_roll()

    @property
    def roll(self) -> ClientRoll:
        """Facts by client, made anew after a client has joined or come back."""
        if self._roll is None:
            units = {name: client.declaration.num_units for name, client in self.clients.items()}
            self._roll = ClientRoll(units, self.bundles)
        return self._roll

    def forget_roll(self) -> None:
        """Forget the facts by client after a change."""
        self._roll = None

    def add(self, result: RoundResult) -> None:
        """Take the model and the record of a complete round."""
        record = result.record
        self.early = self.early_stopping.update(record, self.arrays) and record.server_round < len(self.cohorts)
        self.arrays = result.arrays
        # A skipped round, or one that is not counted, has nothing newer than the rounds before it.
        if record.counts is not None or record.noised is not None:
            self.latest = Evaluation(record.counts, record.personal, noised=record.noised)
        self.rounds.append(record.as_dict(self.counts_noise) | self._epsilons(record.server_round))

    def _epsilons(self, server_round: int) -> dict[str, float]:
        """Return what the rounds so far have cost, beside the whole plan's cost."""
        if self.privacy_cost is None:
            return {}
        so_far = epsilon_so_far(self.privacy_cost, self.cohorts[:server_round])
        return {"epsilon_so_far": so_far, "epsilon_of_plan": self.privacy_cost.epsilon_max}

    def evaluate_publicly(self) -> None:
        """Evaluate the final model on the server's public images, unless a round did."""
        evaluate, latest = self.context.public_test, self.latest_public_test
        if evaluate is not None and (latest is None or latest["evaluated_model"] != self.final_round):
            self.closing_public_test = {"evaluated_model": self.final_round, **evaluate(self.final)}

    @property
    def latest_public_test(self) -> Mapping[str, Any] | None:
        """Latest figures on the server's public images, None without any."""
        lines = [line["public_test"] for line in self.rounds if "public_test" in line]
        return self.closing_public_test or (lines[-1] if lines else None)

    @property
    def bundles(self) -> dict[str, str]:
        """Digest of each client's pinned bundle, by name.

        Empty for a client without a pin, or with different pins during the run. A pin counts only if it is of the
        bundle that the run sends, where that is known.
        """
        pinned: dict[str, str] = {}
        for name, client in self.clients.items():
            now = client.declaration.bundle if client.node_id is not None else self.earlier_bundles.get(name, "")
            sent = self.config.system.bundle or now
            pinned[name] = now if self.earlier_bundles.get(name, now) == now == sent else ""
        return pinned

    @property
    def final(self) -> Arrays:
        """Model that the run ends with, either the last or the best."""
        return self.early_stopping.selected_model(self.arrays)

    @property
    def final_round(self) -> int:
        """Number of the round that made the final model."""
        keeps_best = self.config.stopping.keep == "best" and self.early_stopping.arrays
        return self.early_stopping.best_round if keeps_best else len(self.rounds)

    def register(self) -> None:
        """Make every client's plan, before anything is trained.

        Raises:
            ConfigError: A client admits no plan, for instance because delta is too large.
        """
        self.privacy_cost = self._account(complete=False)
        self.early_stopping.noise_stddev = self.counts_noise

    def finish(self) -> None:
        """Set the run's final privacy cost and mark it as complete.

        A run that stopped early by choice is charged its whole plan.
        """
        self.privacy_cost = self._account(complete=not self.early)
        self.status = "complete"

    def _account(self, *, complete: bool) -> RunPrivacyCost | None:
        if not self.config.private:
            return None
        units = {name: client.declaration.num_units for name, client in self.clients.items()}
        return account(self.config, units, self.cohorts, complete=complete, sampler=self.sampler)

    @property
    def counts_noise(self) -> float:
        """Standard deviation of each client's noise in one count, 0 for exact counts."""
        counts = None if self.privacy_cost is None else self.privacy_cost.example_plan.counts
        return 0.0 if counts is None else counts.of_one_client(counts.noise_stddev)

    def counts(self) -> Counts | None:
        """Return exact counts of the final model or else of the latest round."""
        return self.closing.counts or self.latest.counts

    def personal_counts(self) -> Counts | None:
        """Return exact counts of the clients' own models, None without any."""
        return total(self.closing.personal.values()) if self.closing.exact else self.latest.personal

    @property
    def evaluated_model(self) -> int | None:
        """Number of the round that made the evaluated model, None before any evaluation."""
        if self.closing.counts:
            return self.final_round
        evaluated = [line["evaluated_model"] for line in self.rounds if "evaluated_model" in line]
        return evaluated[-1] if evaluated else None
