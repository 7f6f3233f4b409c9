"""Early stopping and choice of the best model, by released counts only."""

from dataclasses import dataclass, field

import numpy as np

from common.arrays import Arrays
from common.config.evaluation import StoppingConfig
from server.rounds.round_record import RoundRecord


@dataclass
class EarlyStopping:
    """Best evaluated model so far, with the decision to stop.

    A model is evaluated by the clients of the following round, with exact or noised counts. A simulation's own
    evaluator is ignored, because a real run has none. `noise_stddev` is that of each client's noise in one count, 0 for
    exact counts. `best` is the measured accuracy, -1 before there is a best model. `best_round` made it. `arrays` is
    empty where it need not be kept.
    """

    config: StoppingConfig
    noise_stddev: float = 0.0
    best: float = -1.0
    best_round: int = 0
    arrays: Arrays = field(default_factory=dict)
    rounds_without_improvement: int = 0

    def update(self, record: RoundRecord, entered: Arrays) -> bool:
        """Note the evaluation in a round's record.

        `entered` is the model that entered the round, which its clients evaluated. Return whether to stop after this
        round.
        """
        accuracy = self._accuracy(record)
        # Round 1 evaluates the initial model, which is not a candidate.
        if accuracy is None or record.server_round == 1:
            return False
        if accuracy > self.best:
            self.best, self.best_round, self.rounds_without_improvement = accuracy, record.server_round - 1, 0
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
        """Return the model that the run ends with."""
        return self.arrays if self.config.keep == "best" and self.arrays else last
