"""Settings of a client's local training in one round."""

import math
from dataclasses import dataclass

from common.config.listed_values import listed_weights, split_list
from common.config.schema import RunConfig
from common.config.sections import TrainingConfig
from common.privacy.batched_gradients import AUTO
from common.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class LocalSettings:
    """Settings of local training in one round, the same for all mechanisms.

    Attributes:
        learning_rate: Learning rate of this round, after the schedule.
        momentum: Heavy-ball factor of sgd, in [0, 1).
        epochs: Passes over the client's images in one round.
        batch_size: Images in one step, the expected number under DP; None for all images.
        optimizer: `sgd` or `adamw`.
        weight_decay: Added to the gradient (sgd) or decoupled (adamw).
        proximal_mu: Weight of FedProx's pull to the incoming model; 0 turns it off.
        label_smoothing: Share of each label spread over all classes, in [0, 1).
        class_weights: Factor of an example's loss by its class; empty for 1.
        augmentation: Names from `common.config.schema.AUGMENTATIONS`.
        rotation_weight: Weight of the rotation prediction's loss; 0 turns it off.
        autocast: `none` or `bfloat16`.
        gradients: Value of `training.gradients`.
        physical_batch_size: Images in memory at once; None for the default. It bounds memory only and never changes a
            result beyond rounding.
        stream: Key of this round's random views, see `common.randomness`.
    """

    learning_rate: float
    momentum: float
    epochs: int
    batch_size: int | None
    optimizer: str = "sgd"
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    label_smoothing: float = 0.0
    class_weights: tuple[float, ...] = ()
    augmentation: tuple[str, ...] = ()
    rotation_weight: float = 0.0
    autocast: str = "none"
    gradients: str = AUTO
    physical_batch_size: int | None = None
    stream: bytes = b""


def settings_of(
    config: RunConfig, *, server_round: int, stream: bytes = b"", plan: PrivacyPlan | None = None
) -> LocalSettings:
    """Return the settings of local training in one round of a run.

    The schedule depends on the number of the round, from 1. `stream` is the key of the round's random views. A plan may
    hold the learning rate that its client follows.
    """
    training = config.training
    by_rule = None if plan is None else plan.learning_rate
    factor = schedule_factor(training, num_rounds=config.num_rounds, server_round=server_round)
    return LocalSettings(
        learning_rate=(by_rule or training.learning_rate or 0.0) * factor,
        momentum=training.momentum,
        epochs=config.local_epochs,
        batch_size=config.batch_size,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        proximal_mu=(config.strategy.proximal_mu or 0.0) if config.strategy.name == "FedProx" else 0.0,
        label_smoothing=training.label_smoothing,
        class_weights=listed_weights(training.class_weights),
        augmentation=split_list(training.augmentation),
        rotation_weight=training.rotation_weight,
        autocast=training.autocast,
        gradients=training.gradients,
        physical_batch_size=config.system.physical_batch_size,
        stream=stream,
    )


def schedule_factor(training: TrainingConfig, *, num_rounds: int, server_round: int) -> float:
    """Return the factor of a round's learning rate, in (0, 1].

    The warm-up climbs in equal steps. After it `linear` and `cosine` fall, and would reach zero in the round after the
    last one.
    """
    warmup = min(training.warmup_rounds, num_rounds)
    if server_round <= warmup:
        return server_round / warmup
    done = (server_round - 1 - warmup) / max(1, num_rounds - warmup)
    if training.schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if training.schedule == "cosine" else 1.0
