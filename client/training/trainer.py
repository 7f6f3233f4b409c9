"""One way to start, train and score a model, whichever part of it is trained.

Torch is imported only where a network is needed; a linear head on cached features
takes NumPy alone.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from client.training.dp_sgd import FRESH_STREAMS, FreshStreams, train_head_privately
from client.training.head_sgd import train_head
from client.training.round_settings import settings_of
from common.config.schema import RunConfig
from common.data.client_dataset import Shard
from common.errors import PrivacyError
from common.metrics import Counts, count
from common.models.initialization import initial_arrays
from common.models.linear_head import HEAD_WEIGHT, head_logits, head_logits_row_by_row
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream
from common.system.aligned_arrays import align_rows

if TYPE_CHECKING:
    from common.models.classifier import AnyNetwork

Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Trainer:
    """Training and scoring as one run's configuration asks for.

    Attributes:
        config: The run.
        input_shape: Of one row: (features,) or (side, side, channels).
        classes: Names of the classes, a public constant of the run.
    """

    config: RunConfig
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]

    @property
    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all trained tensors, personal ones included: the client's own list."""
        if self.config.needs_no_torch:
            return {HEAD_WEIGHT: (len(self.classes), self.input_shape[0])}
        network = self._network()
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        return {name: shapes[name] for name in network.trained}

    @property
    def personal(self) -> frozenset[str]:
        """Names of trained tensors that never leave the client.

        Raises:
            ConfigError: Nothing that is trained would be personal.
        """
        if not self.config.model.personal:
            return frozenset()
        from common.models.classifier import personal_names

        return personal_names(self.config, self.input_shape, len(self.classes))

    def initial_personal(self) -> Arrays:
        """The values that every client's personal tensors start from."""
        return self._initial_personal

    @cached_property
    def _initial_personal(self) -> Arrays:
        if not self.personal:
            return {}
        start = initial_arrays(self.config, self.input_shape, self.classes)
        return {name: start[name] for name in start if name in self.personal}

    def train(
        self,
        arrays: Arrays,
        shard: Shard,
        *,
        name: str,
        server_round: int,
        plan: PrivacyPlan | None,
        streams: FreshStreams = FRESH_STREAMS,
    ) -> Arrays:
        """Train on a client's rows for one round, privately if the run says so.

        Args:
            arrays: All trained tensors as they come in, personal ones included.
            shard: The client's rows.
            name: The client's name; with the round it orders the batches.
            server_round: From 1.
            plan: What the client agreed to; None without noise at the client.
            streams: Makes the streams of sampling and noise; only audits pass their own.

        Returns:
            New arrays, same names and shapes.

        Raises:
            PrivacyError: The run wants noise and there is no plan, or the other way round.
        """
        if (plan is not None) != self.config.is_local_dp:
            raise PrivacyError("training was asked for under another mechanism than the run's")
        stream = hashlib.sha256(f"views\x1f{self.config.seed}\x1f{name}\x1f{server_round}".encode()).digest()
        settings = settings_of(self.config, server_round=server_round, stream=stream)
        rng = public_stream(self.config.seed, "batches", name, server_round)
        if self.config.needs_no_torch:
            rows = (shard.train_inputs, shard.train_labels)
            if plan is not None:
                fresh = streams.for_training()
                return train_head_privately(arrays, *rows, plan, settings, fresh, units=shard.train_units)
            return train_head(arrays, *rows, settings, rng)
        from client.training.network_sgd import Rows, train_network, train_network_privately

        ordered = {key: arrays[key] for key in self.trainable}
        held = Rows(shard.train_inputs, shard.train_labels, shard.train_digests, shard.train_units)
        if plan is not None:
            return train_network_privately(self._network(), ordered, held, plan, settings, streams.for_training())
        return train_network(self._network(), ordered, held, settings, rng)

    def logits(self, arrays: Arrays, inputs: np.ndarray, *, apart: bool = False) -> np.ndarray:
        """Scores (n, classes) of (n, ...) features or pixels; n may be 0.

        Args:
            arrays: All trained tensors.
            inputs: Features or pixels.
            apart: Let no row depend on another one, not even by rounding: what noised counts need.
        """
        if self.config.needs_no_torch:
            weight = arrays[HEAD_WEIGHT]
            return (
                head_logits_row_by_row(align_rows(inputs), align_rows(weight)) if apart else head_logits(inputs, weight)
            )
        from client.training.network_sgd import network_logits

        settings = settings_of(self.config, server_round=1)
        return network_logits(self._network(), arrays, inputs, settings, apart=apart)

    def evaluate(self, arrays: Arrays, inputs: np.ndarray, labels: np.ndarray, *, apart: bool = False) -> Counts:
        """Count the model's predictions on rows.

        Args:
            arrays: All trained tensors.
            inputs: (n, ...) features or pixels; n may be 0.
            labels: (n,) int64.
            apart: See `logits`.
        """
        return count(self.logits(arrays, inputs, apart=apart), labels)

    def _network(self) -> "AnyNetwork":
        from common.data.feature_extraction import choose_device
        from common.models.classifier import network_for

        network = network_for(self.config, self.input_shape, len(self.classes))
        return network.to(choose_device(self.config.system.device))
