"""The simulation's own evaluator: it sees all held-out images, outside every client and message.

No real federation has one. Whatever it measures is marked `simulation_only`.
"""

import numpy as np

from client.session import client_name
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.schema import RunConfig
from common.data.partitioning.partition import Partition
from common.data.preprocessing import Prepared
from common.metrics import Counts, count


class PooledEvaluator:
    """Scores models on the held-out images of all clients.

    Tensors that stay with clients take the values that all of them start from, unless a
    model brings its own.

    Args:
        config: The run.
        prepared: The whole source.
        partition: Who holds what.
    """

    def __init__(self, config: RunConfig, prepared: Prepared, partition: Partition) -> None:
        rows = np.flatnonzero(partition.held_out)
        order = rows[np.argsort(partition.owner[rows], kind="stable")]
        self._learner = Trainer(config, prepared.inputs.shape[1:], prepared.classes)
        self._start = self._learner.initial_personal()
        self._inputs = np.ascontiguousarray(prepared.inputs[order])
        self._labels = prepared.labels[order]
        owners = partition.owner[order]
        self._bounds = np.searchsorted(owners, np.arange(len(partition.num_units) + 1))

    def by_client(self, arrays: Arrays) -> dict[str, Counts]:
        """Counts of a model on each client's held-out images, by client name."""
        logits = self._learner.logits(self._start | arrays, self._inputs)
        return {
            client_name(partition): count(logits[start:stop], self._labels[start:stop])
            for partition, (start, stop) in enumerate(zip(self._bounds[:-1], self._bounds[1:], strict=True))
        }

    def pooled(self, arrays: Arrays) -> Counts:
        """Counts of a model on all held-out images."""
        return self._learner.evaluate(self._start | arrays, self._inputs, self._labels)
