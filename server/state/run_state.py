"""What a run has come to so far."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.arrays import Arrays
from common.config.schema import RunConfig
from common.metrics import Counts, NoisedCounts, total
from server.rounds.enrollment import Client
from server.rounds.loop import Closing, RoundResult
from server.state.early_stopping import EarlyStopping
from server.state.privacy_spent import RunPrivacyCost, account


@dataclass
class RunState:
    """State of a run; `server.reporting.artifacts` writes it.

    Attributes:
        config: The run.
        run_id: Its name, the same when it is resumed.
        clients: By name; extended when one comes late.
        refusals: Why others do not take part, by node.
        cohorts: Names of each planned round; likewise.
        arrays: Global model after the last complete round, without what stays at clients.
        class_counts: (classes, clients) images held; simulations only.
        images_unused: Images given to nobody; simulations only.
        skipped_files: Files that could not be used; simulations only.
        simulated: Whether the clients are a simulation's.
        rounds: Lines of `rounds.jsonl`.
        closing: Exact counts of the final model by client name.
        closing_personal: Counts of each client's own final model, where there are such.
        closing_noised: Noised counts of the final model, summed over clients.
        last: Counts of the latest round.
        last_personal: The same of clients' own models.
        last_noised: The same with noise, where counts leave so.
        status: `interrupted` until everything is done.
        early: Whether the run stopped before its last round, by choice.
        privacy_cost: Privacy spent; the whole plan until the run is complete.
        early_stopping: The best model so far, and when to stop.
        turned_away: Nodes that do not take part by their own decision or the server's.
        joined: First round of each client that came late.
        earlier_bundles: What clients said of their pins before the run was resumed, or they came back.
        closing_failures: Why clients are missing in the closing counts.
    """

    config: RunConfig
    run_id: str
    clients: dict[str, Client]
    refusals: Mapping[str, str]
    cohorts: list[list[str]]
    arrays: Arrays
    class_counts: np.ndarray | None
    images_unused: int = 0
    skipped_files: int = 0
    simulated: bool = False
    rounds: list[dict[str, Any]] = field(default_factory=list)
    closing: dict[str, Counts] = field(default_factory=dict)
    closing_personal: dict[str, Counts] = field(default_factory=dict)
    closing_noised: NoisedCounts | None = None
    last: Counts | None = None
    last_personal: Counts | None = None
    last_noised: NoisedCounts | None = None
    status: str = "interrupted"
    early: bool = False
    privacy_cost: RunPrivacyCost | None = None
    turned_away: frozenset[int] = frozenset()
    joined: dict[str, int] = field(default_factory=dict)
    earlier_bundles: dict[str, str] = field(default_factory=dict)
    closing_failures: dict[str, str] = field(default_factory=dict)
    early_stopping: EarlyStopping = field(init=False)

    def __post_init__(self) -> None:
        self.early_stopping = EarlyStopping(self.config.stopping)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, a public constant of the run."""
        return next(iter(self.clients.values())).declaration.classes

    def add(self, result: RoundResult) -> None:
        """Take over the model and the record of a complete round."""
        record = result.record
        self.early = self.early_stopping.update(record, self.arrays) and record.server_round < len(self.cohorts)
        self.arrays = result.arrays
        if not record.skipped:
            self.last, self.last_personal, self.last_noised = record.counts, record.personal, record.noised
        self.rounds.append(record.as_dict(self.counts_noise))

    @property
    def bundles(self) -> dict[str, str]:
        """The code that each client has pinned during the whole run; empty for one that has not, or has changed it.

        A pin counts only if it is of the bundle that the run sends, where that is known.
        """
        found: dict[str, str] = {}
        for name, client in self.clients.items():
            said = client.declaration.bundle if client.node_id is not None else self.earlier_bundles.get(name, "")
            sent = self.config.system.bundle or said
            same = self.earlier_bundles.get(name, said) == said and said == sent
            found[name] = said if same else ""
        return found

    @property
    def final(self) -> Arrays:
        """The model that the run ends with: the last, or the best that was seen."""
        return self.early_stopping.selected_model(self.arrays)

    @property
    def final_round(self) -> int:
        """The round after which it was the model."""
        keeps_best = self.config.stopping.keep == "best" and self.early_stopping.arrays
        return self.early_stopping.best_round if keeps_best else len(self.rounds)

    def close(self, closing: Closing) -> None:
        """Take over what was found of the final model."""
        exact = {name: found.counts for name, found in closing.items() if found.counts is not None}
        self.closing = exact
        self.closing_personal = {name: found.personal for name, found in closing.items() if found.personal is not None}
        noised = total([found.noised for found in closing.values() if found.noised is not None])
        self.closing_noised = noised or self.closing_noised

    def register(self) -> None:
        """Make every client's plan before anything is trained.

        Raises:
            ConfigError: A client admits no plan, for instance because delta is too large.
        """
        self.privacy_cost = self._account(complete=False)
        self.early_stopping.noise_stddev = self.counts_noise

    def finish(self) -> None:
        """The run is over: charge the rounds that were sent, or the whole plan if it stopped early by choice."""
        self.privacy_cost = self._account(complete=not self.early)
        self.status = "complete"

    def _account(self, *, complete: bool) -> RunPrivacyCost | None:
        if not self.config.private:
            return None
        units = {name: client.declaration.num_units for name, client in self.clients.items()}
        return account(self.config, units, self.cohorts, complete=complete)

    @property
    def counts_noise(self) -> float:
        """Standard deviation of each client's noise in one count of a round; 0 where counts are exact."""
        counts = None if self.privacy_cost is None else self.privacy_cost.example_plan.counts
        return 0.0 if counts is None else counts.noise_stddev

    def counts(self) -> Counts | None:
        """Counts of the final model, or the latest there are if the run stopped early."""
        return total(self.closing.values()) or self.last

    def personal_counts(self) -> Counts | None:
        """The same of clients' own models; None where there are none, or where nothing of them may leave."""
        return total(self.closing_personal.values()) if self.closing else self.last_personal

    @property
    def evaluated_model(self) -> int | None:
        """The round after which the model was that `counts` belong to; 0 is the start."""
        if self.closing:
            return self.final_round
        counted = [line for line in self.rounds if not line.get("skipped")]
        return counted[-1].get("evaluated_model") if counted else None
