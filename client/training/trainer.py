"""Training and evaluation of a run's model at a client.

Torch is imported only where a network is needed. A linear head on cached features needs NumPy alone.
"""

import hashlib
import threading
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from client.training.class_weights import balanced_weights, check_class_weights, private_weights
from client.training.dp_sgd import FRESH_STREAMS, FreshStreams, head_gradient_sum, train_head_privately
from client.training.head_sgd import train_head
from client.training.round_settings import LocalSettings, settings_of
from client.training.statistics import clipped_contribution, private_statistics
from common.arrays import Arrays
from common.config.listed_values import BALANCED
from common.config.schema import RunConfig
from common.data.client_dataset import Shard
from common.errors import PrivacyError
from common.metrics import Counts, count
from common.models.initialization import initial_arrays
from common.models.linear_head import HEAD_WEIGHT, head_logits, head_logits_row_by_row
from common.privacy.batched_gradients import OPACUS
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream
from common.statistics.sums import statistics_of
from common.system.aligned_arrays import align_rows

if TYPE_CHECKING:
    from client.training.network_sgd import TrainingSet
    from common.models.classifier import AnyNetwork

_local = threading.local()


@dataclass(frozen=True)
class Trainer:
    """Training and evaluation by one run's configuration.

    `input_shape` is that of one example, (features,) or (side, side, channels). `classes` is a public constant of the
    run.

    Raises:
        ConfigError: `training.class-weights` lists more or fewer weights than there are classes.
    """

    config: RunConfig
    input_shape: tuple[int, ...]
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        check_class_weights(self.config.training.class_weights, len(self.classes))

    @cached_property
    def backbone_sha256(self) -> str:
        """Digest of the backbone's weights, empty for the small network."""
        if self.config.model.backbone == "cnn":
            return ""
        from common.models.backbone_info import backbone_info

        return backbone_info(self.config.backbone_spec).sha256

    @property
    def trainable(self) -> dict[str, tuple[int, ...]]:
        """Names and shapes of all trained tensors, personal ones included."""
        # From the client's own network, never from a message. A server cannot ask for other tensors.
        if self.config.needs_no_torch:
            return {HEAD_WEIGHT: (len(self.classes), self.input_shape[0])}
        network = self._network()
        shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
        return {name: shapes[name] for name in network.trained}

    @property
    def personal(self) -> frozenset[str]:
        """Names of trained tensors that never leave the client.

        Raises:
            ConfigError: None of the trained tensors would be personal.
        """
        if not self.config.model.personal:
            return frozenset()
        from common.models.classifier import personal_names

        return personal_names(self._network(), self.config.model)

    def check_gradients(self) -> None:
        """Refuse a run whose provider of gradients gets this network wrong.

        Raises:
            ConfigError: Opacus was named, and fails or differs from one image at a time.
        """
        if self.config.training.gradients == OPACUS:
            self._network()

    def initial_personal(self) -> Arrays:
        """Return the starting values of the personal tensors, equal at all clients."""
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
        label_counts: np.ndarray | None = None,
    ) -> Arrays:
        """Train on a client's images for one round, as the mechanism demands.

        `arrays` holds the values of all trained tensors, personal ones included. The new arrays have the same names and
        shapes, or they are the sums that `training.statistics` names. `plan` is the one that the client agreed to, None
        where no unit's gradients are clipped. Only audits pass their own `streams`. `label_counts` are the run's noised
        counts of labels, where its plan has them.

        Raises:
            PrivacyError: The run clips units' gradients and there is no plan, or there is a plan and it clips none. Or
                class weights are to follow from labels, and there are no noised counts of them.
        """
        # Without this check a missing plan would train on private images without noise.
        if (plan is not None) != self.config.mechanism.clips_units:
            raise PrivacyError("training was asked for under another mechanism than the run's")
        # A trained model would take the noise of all honest clients from one of them, and leave outside of a sum.
        if plan is not None and plan.noise_shares:
            raise PrivacyError("clients with noise in shares send gradient sums: use privacy.aggregation=plain here")
        if self.config.takes_statistics:
            return self._statistics(shard, plan, streams)
        settings = self._settings(shard, name, server_round, plan, label_counts)
        rng = public_stream(self.config.seed, "batches", name, server_round)
        features, labels = shard.train_inputs, shard.train_labels
        if self.config.needs_no_torch:
            if plan is not None:
                fresh = streams.for_training()
                return train_head_privately(
                    arrays,
                    features,
                    labels,
                    plan,
                    settings,
                    fresh,
                    units=shard.train_units,
                    feature_norms=shard.train_norms,
                )
            return train_head(arrays, features, labels, settings, rng)
        from client.training.network_sgd import train_network, train_network_privately

        ordered, training_set = self._ordered(arrays), _training_set(shard)
        if plan is not None:
            fresh = streams.for_training()
            return train_network_privately(self._network(), ordered, training_set, plan, settings, fresh)
        return train_network(self._network(), ordered, training_set, settings, rng)

    def _statistics(self, shard: Shard, plan: PrivacyPlan | None, streams: FreshStreams) -> Arrays:
        kind, num_classes = self.config.training.statistics, len(self.classes)
        features, labels = shard.train_inputs, shard.train_labels
        if plan is None:
            return statistics_of(kind, features, labels, num_classes)
        fresh = streams.for_training()
        return private_statistics(kind, features, labels, num_classes, plan, fresh, units=shard.train_units)

    def gradient_sum(
        self,
        arrays: Arrays,
        shard: Shard,
        *,
        name: str,
        server_round: int,
        plan: PrivacyPlan,
        label_counts: np.ndarray | None,
    ) -> np.ndarray:
        """Return the clipped sum of a client's gradients, without noise.

        Where the run takes statistics it is the clipped contribution of its features. It is (p,) float64, and may leave
        only with the client's share of the noise, in a secure sum. Arguments are as in `train`.

        Raises:
            PrivacyError: The plan is not for one sum a round with every unit in it.
        """
        features, labels = shard.train_inputs, shard.train_labels
        if self.config.takes_statistics:
            kind, num_classes = self.config.training.statistics, len(self.classes)
            return clipped_contribution(kind, features, labels, num_classes, plan, units=shard.train_units)
        settings = self._settings(shard, name, server_round, plan, label_counts)
        if self.config.needs_no_torch:
            return head_gradient_sum(
                arrays,
                features,
                labels,
                plan,
                settings,
                units=shard.train_units,
                feature_norms=shard.train_norms,
            )
        from client.training.network_sgd import network_gradient_sum

        return network_gradient_sum(self._network(), self._ordered(arrays), _training_set(shard), plan, settings)

    def _settings(
        self, shard: Shard, name: str, server_round: int, plan: PrivacyPlan | None, label_counts: np.ndarray | None
    ) -> LocalSettings:
        """Return the settings of one client's training in a round."""
        stream = hashlib.sha256(f"views\x1f{self.config.seed}\x1f{name}\x1f{server_round}".encode()).digest()
        settings = settings_of(self.config, server_round=server_round, stream=stream, plan=plan)
        return replace(settings, class_weights=self._class_weights(shard, settings, plan, label_counts))

    def _ordered(self, arrays: Arrays) -> Arrays:
        # In the network's order, because DP-SGD works on the flat weights of all tensors.
        return {key: arrays[key] for key in self.trainable}

    def _class_weights(
        self, shard: Shard, settings: LocalSettings, plan: PrivacyPlan | None, label_counts: np.ndarray | None
    ) -> tuple[float, ...]:
        """Return the factor of each class's losses in a round."""
        if self.config.training.class_weights != BALANCED:
            return settings.class_weights
        if plan is not None:
            return private_weights(label_counts, plan)
        return balanced_weights(np.bincount(shard.train_labels, minlength=len(self.classes)))

    def logits(self, arrays: Arrays, inputs: np.ndarray, *, apart: bool = False) -> np.ndarray:
        """Return the scores (n, classes) of images.

        Inputs are (n, d) features or (n, side, side, channels) uint8 images; n may be 0. With `apart` no row depends on
        another one, not even by rounding. Noised counts need it.
        """
        if self.config.needs_no_torch:
            weight = arrays[HEAD_WEIGHT]
            if apart:
                return head_logits_row_by_row(align_rows(inputs), align_rows(weight))
            return head_logits(inputs, weight)
        from client.training.network_sgd import network_logits

        settings = settings_of(self.config, server_round=1)
        return network_logits(self._network(), arrays, inputs, settings, apart=apart)

    def evaluate(self, arrays: Arrays, inputs: np.ndarray, labels: np.ndarray, *, apart: bool = False) -> Counts:
        """Count the model's right and wrong predictions on images.

        Inputs and `apart` are as in `logits`, labels are (n,) int64.
        """
        return count(self.logits(arrays, inputs, apart=apart), labels)

    def _network(self) -> "AnyNetwork":
        """Return this thread's network, with undefined values of trained parameters."""
        from common.data.feature_extraction import choose_device
        from common.models.classifier import build_network

        config, num_classes = self.config, len(self.classes)
        key = (
            config.backbone_spec,
            config.model,
            config.mechanism.clips_units,
            config.training,
            config.system.device,
            self.input_shape,
            num_classes,
        )
        # Built once, because that takes seconds. One for each thread, because training overwrites
        # the parameters in place.
        if getattr(_local, "key", None) != key:
            network = build_network(config, self.input_shape, num_classes).to(choose_device(config.system.device))
            if config.training.gradients == OPACUS:
                from client.training.gradients.opacus_gradients import check_opacus

                # At once, with weights that no message has set. A server could send some that hide what is wrong.
                trained = f"model.backbone={config.model.backbone!r} and model.tuning={config.tuning!r}"
                check_opacus(network, self.input_shape, settings_of(config, server_round=1), trained)
            _local.network = network
            _local.key = key
        ready: AnyNetwork = _local.network
        return ready


def _training_set(shard: Shard) -> "TrainingSet":
    from client.training.network_sgd import TrainingSet

    return TrainingSet(shard.train_inputs, shard.train_labels, shard.train_digests, shard.train_units)
