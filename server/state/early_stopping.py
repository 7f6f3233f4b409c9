"""When to stop early and which model to keep: decided on what the clients let leave, never on anything else."""

from dataclasses import dataclass, field

import numpy as np

from common.arrays import Arrays
from common.config.schema import StoppingConfig
from server.rounds.round_record import RoundRecord


@dataclass
class EarlyStopping:
    """The best evaluated model so far.

    A model is evaluated by the clients of the following round, exactly or with
    noise; a simulation's own evaluator has no say, because a real run has none.

    Attributes:
        config: `stopping`.
        noise_stddev: Of each client's noise in one count; 0 where counts are exact.
        best: Accuracy of the best model, as it was measured; -1 before there is one.
        best_round: The round after which it was the model; 0 is the start.
        arrays: The best model.
        rounds_without_improvement: Evaluated models since, none of them better.
    """

    config: StoppingConfig
    noise_stddev: float = 0.0
    best: float = -1.0
    best_round: int = 0
    arrays: Arrays = field(default_factory=dict)
    rounds_without_improvement: int = 0

    def update(self, record: RoundRecord, entered: Arrays) -> bool:
        """Take note of a round.

        Args:
            record: Of the round.
            entered: The model that entered it, which its clients evaluated.

        Returns:
            Whether to stop after this round.
        """
        found = self._accuracy(record)
        if found is None or record.server_round == 1:  # the start is no candidate
            return False
        if found > self.best:
            self.best, self.best_round, self.rounds_without_improvement = found, record.server_round - 1, 0
            self.arrays = dict(entered) if self.config.keep == "best" else {}
        else:
            self.rounds_without_improvement += 1
        return bool(self.config.patience) and self.rounds_without_improvement >= self.config.patience

    def _accuracy(self, record: RoundRecord) -> float | None:
        if record.noised is not None:
            return record.noised.accuracy(self.noise_stddev)[0]
        if record.simulation_only or record.counts is None or not record.counts.num_examples:
            return None
        return float(np.trace(record.counts.confusion)) / record.counts.num_examples

    def selected_model(self, last: Arrays) -> Arrays:
        """The model that the run ends with.

        Args:
            last: The model after the last round.
        """
        return self.arrays if self.config.keep == "best" and self.arrays else last
