"""The evaluator of a simulation, with the held-out images of all clients.

A real federation has none. Its results are marked `simulation_only`.
"""

import numpy as np

from client.session import client_name
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.data.partitioning.partition import Partition
from common.data.preprocessing import Prepared
from common.metrics import Counts, count


class PooledEvaluator:
    """Counts of predictions on the held-out images of all clients.

    Personal tensors never reach the server. If a model comes without them, they take
    their initial values.

    Args:
        trainer: Computes a model's scores.
        prepared: The whole source.
        partition: Owner of each image, and which images are held out.
    """

    def __init__(self, trainer: Trainer, prepared: Prepared, partition: Partition) -> None:
        rows = np.flatnonzero(partition.held_out)
        order = rows[np.argsort(partition.owner[rows], kind="stable")]
        self._trainer = trainer
        self._start = trainer.initial_personal()
        self._inputs = np.ascontiguousarray(prepared.inputs[order])
        self._labels = prepared.scan.labels[order]
        owners = partition.owner[order]
        self._bounds = np.searchsorted(owners, np.arange(len(partition.num_units) + 1))

    def by_client(self, arrays: Arrays) -> dict[str, Counts]:
        """Count a model's predictions on the held-out images of each client."""
        logits = self._trainer.logits(self._start | arrays, self._inputs)
        return {
            client_name(client): count(logits[start:stop], self._labels[start:stop])
            for client, (start, stop) in enumerate(zip(self._bounds[:-1], self._bounds[1:], strict=True))
        }

    def pooled(self, arrays: Arrays) -> Counts:
        """Count a model's predictions on all held-out images together."""
        return self._trainer.evaluate(self._start | arrays, self._inputs, self._labels)
