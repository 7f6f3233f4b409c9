"""What a run has come to so far."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from common.metrics import Counts, total
from common.sections import RunConfig
from server.rounds import Arrays, Client, Closing, RoundResult
from server.statement import Spending, account


@dataclass
class Outcome:
    """State of a run; `server.saving` writes it.

    Attributes:
        config: The run.
        clients: By name.
        cohorts: Names of each planned round.
        arrays: Global model after the last complete round, without what stays at clients.
        class_counts: (classes, clients) images held; simulations only.
        images_unused: Images given to nobody; simulations only.
        skipped_files: Files that could not be used; simulations only.
        rounds: Lines of `rounds.jsonl`.
        closing: Counts of the final model by client name.
        closing_personal: Counts of each client's own final model, where there are such.
        last: Counts of the latest round.
        last_personal: The same of clients' own models.
        status: `interrupted` until everything is done.
        spending: Privacy spent; the whole plan until the run is complete.
    """

    config: RunConfig
    clients: Mapping[str, Client]
    cohorts: Sequence[Sequence[str]]
    arrays: Arrays
    class_counts: np.ndarray | None
    images_unused: int = 0
    skipped_files: int = 0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    closing: dict[str, Counts] = field(default_factory=dict)
    closing_personal: dict[str, Counts] = field(default_factory=dict)
    last: Counts | None = None
    last_personal: Counts | None = None
    status: str = "interrupted"
    spending: Spending | None = None

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, a public constant of the run."""
        return next(iter(self.clients.values())).declaration.classes

    def add(self, result: RoundResult) -> None:
        """Take over the model and the record of a complete round."""
        self.arrays = result.arrays
        self.last, self.last_personal = result.record.counts, result.record.personal
        self.rounds.append(result.record.as_dict())

    def close(self, closing: Closing) -> None:
        """Take over what was found of the final model."""
        self.closing = {name: found.counts for name, found in closing.items()}
        self.closing_personal = {name: found.personal for name, found in closing.items() if found.personal is not None}

    def register(self) -> None:
        """Make every client's plan before anything is trained.

        Raises:
            ConfigError: A client admits no plan, for instance because delta is too large.
        """
        self.spending = self._account(complete=False)

    def finish(self) -> None:
        """The run went to its planned end: charge the rounds that were sent, not the whole plan."""
        self.spending = self._account(complete=True)
        self.status = "complete"

    def _account(self, *, complete: bool) -> Spending | None:
        if not self.config.private:
            return None
        units = {name: client.declaration.num_units for name, client in self.clients.items()}
        return account(self.config, units, self.cohorts, complete=complete)

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
            return self.config.num_rounds
        return self.rounds[-1].get("evaluated_model") if self.rounds else None
