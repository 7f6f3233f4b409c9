"""The evaluator of a simulation, with the held-out images of all clients.

A real federation has none. Its results are marked `simulation_only`.
"""

from functools import cached_property
from itertools import pairwise

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
        self._trainer = trainer
        self._start = trainer.initial_personal()
        self._prepared, self._partition = prepared, partition

    # Copied at the first evaluation only. A run without privacy makes none, and its images can fill the memory.
    @cached_property
    def _held_out(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Held-out inputs and labels by client, with the bounds of each client's."""
        owner = self._partition.owner
        rows = np.flatnonzero(self._partition.held_out)
        order = rows[np.argsort(owner[rows], kind="stable")]
        bounds = np.searchsorted(owner[order], np.arange(len(self._partition.num_units) + 1))
        return np.ascontiguousarray(self._prepared.inputs[order]), self._prepared.scan.labels[order], bounds

    def by_client(self, arrays: Arrays) -> dict[str, Counts]:
        """Count a model's predictions on the held-out images of each client."""
        inputs, labels, bounds = self._held_out
        logits = self._trainer.logits(self._start | arrays, inputs)
        return {
            client_name(client): count(logits[start:stop], labels[start:stop])
            for client, (start, stop) in enumerate(pairwise(bounds))
        }

    def pooled(self, arrays: Arrays) -> Counts:
        """Count a model's predictions on all held-out images together."""
        inputs, labels, _ = self._held_out
        return self._trainer.evaluate(self._start | arrays, inputs, labels)
