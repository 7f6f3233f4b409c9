"""A client's local training settings of one round."""

import math
from dataclasses import dataclass

from common.config.schema import RunConfig, split_list


@dataclass(frozen=True)
class LocalSettings:
    """What a client does in one round, the same for all mechanisms.

    Attributes:
        learning_rate: Step length of this round, the schedule applied.
        momentum: Heavy-ball factor of sgd, in [0, 1).
        epochs: Passes over the client's images in one round.
        batch_size: Images a step; the expected number under DP.
        optimizer: `sgd` or `adamw`.
        weight_decay: Added to the gradient (sgd) or decoupled (adamw).
        proximal_mu: Weight of FedProx' pull to the incoming model; 0 is off.
        label_smoothing: Share of each label spread over all classes, in [0, 1).
        augmentation: Names out of `common.config.schema.AUGMENTATIONS`.
        rotation_weight: Weight of predicting how an image was turned; 0 is off.
        autocast: `none` or `bfloat16`.
        physical_batch_size: Images in memory at once; None for the default. Never enters the maths.
        stream: Names this round's public random choices, see `common.randomness`.
    """

    learning_rate: float
    momentum: float
    epochs: int
    batch_size: int
    optimizer: str = "sgd"
    weight_decay: float = 0.0
    proximal_mu: float = 0.0
    label_smoothing: float = 0.0
    augmentation: tuple[str, ...] = ()
    rotation_weight: float = 0.0
    autocast: str = "none"
    physical_batch_size: int | None = None
    stream: bytes = b""


def settings_of(config: RunConfig, *, server_round: int, stream: bytes = b"") -> LocalSettings:
    """The settings of one round of a run.

    Args:
        config: The run.
        server_round: From 1; the schedule depends on it.
        stream: Names the round's public random choices.
    """
    training = config.training
    return LocalSettings(
        learning_rate=(training.learning_rate or 0.0) * schedule_factor(config, server_round),
        momentum=training.momentum,
        epochs=training.local_epochs,
        batch_size=training.batch_size,
        optimizer=training.optimizer,
        weight_decay=training.weight_decay,
        proximal_mu=(config.strategy.proximal_mu or 0.0) if config.strategy.name == "FedProx" else 0.0,
        label_smoothing=training.label_smoothing,
        augmentation=split_list(training.augmentation),
        rotation_weight=training.rotation_weight,
        autocast=training.autocast,
        physical_batch_size=config.system.physical_batch_size,
        stream=stream,
    )


def schedule_factor(config: RunConfig, server_round: int) -> float:
    """What a round multiplies the learning rate by, in (0, 1].

    The warm-up climbs in equal steps; then `linear` and `cosine` fall so that the
    round after the last one would be at zero.
    """
    training, warmup = config.training, min(config.training.warmup_rounds, config.num_rounds)
    if server_round <= warmup:
        return server_round / warmup
    done = (server_round - 1 - warmup) / max(1, config.num_rounds - warmup)
    if training.schedule == "linear":
        return 1.0 - done
    return 0.5 * (1.0 + math.cos(math.pi * done)) if training.schedule == "cosine" else 1.0
