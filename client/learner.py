"""One way to start, train and score a model, whichever part of it is trained.

Torch is imported only for a network that is trained as a whole; a head on
cached features needs NumPy alone.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from client.private_training import PrivateStreams, train_head_privately
from client.training import LocalSettings, train_head
from common.data.deal import Shard
from common.metrics import Counts, count
from common.models.head import HEAD_WEIGHT, head_logits
from common.privacy.plan import plan_for
from common.sections import RunConfig
from common.streams import public_stream

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Learner:
    """Training and scoring as one run's configuration asks for."""

    config: RunConfig

    @property
    def settings(self) -> LocalSettings:
        """The local optimiser."""
        training = self.config.training
        return LocalSettings(
            training.learning_rate or 0.0, training.momentum, training.local_epochs, training.batch_size
        )

    def trainable(self, input_shape: tuple[int, ...], num_classes: int) -> dict[str, tuple[int, ...]]:
        """Names and shapes of the tensors that travel: the client's own list, whatever the server sent."""
        if self.config.model.tuning == "head":
            return {HEAD_WEIGHT: (num_classes, input_shape[0])}
        from common.models.cnn import SmallCnn

        network = SmallCnn(input_shape[0], input_shape[2], num_classes)
        return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}

    def train(self, arrays: Arrays, shard: Shard, *, name: str, server_round: int) -> Arrays:
        """Train on a client's rows for one round, privately if the run says so.

        Args:
            arrays: The incoming model's trainable tensors.
            shard: The client's rows.
            name: The client's name; with the round it orders the batches.
            server_round: From 1.

        Returns:
            New arrays, same names and shapes.

        Raises:
            ConfigError: No privacy plan is possible with these settings.
        """
        rows = (shard.train_inputs, shard.train_labels)
        plain, private = self._trainers()
        if self.config.private:
            plan = plan_for(self.config, shard.num_units)
            return private(arrays, *rows, plan, self.settings, PrivateStreams.fresh())
        rng = public_stream(self.config.seed, "batches", name, server_round)
        return plain(arrays, *rows, self.settings, rng)

    def _trainers(self) -> tuple[Callable[..., Arrays], Callable[..., Arrays]]:
        if self.config.model.tuning == "head":
            return train_head, train_head_privately
        from client.network_training import train_network, train_network_privately

        return train_network, train_network_privately

    def logits(self, arrays: Arrays, inputs: np.ndarray) -> np.ndarray:
        """Scores (n, classes) of (n, ...) features or pixels; n may be 0."""
        if self.config.model.tuning == "head":
            return head_logits(inputs, arrays[HEAD_WEIGHT])
        from client.network_training import network_logits

        return network_logits(arrays, inputs)

    def evaluate(self, arrays: Arrays, inputs: np.ndarray, labels: np.ndarray) -> Counts:
        """Count the model's predictions on rows.

        Args:
            arrays: Trainable tensors.
            inputs: (n, ...) features or pixels; n may be 0.
            labels: (n,) int64.
        """
        return count(self.logits(arrays, inputs), labels)
