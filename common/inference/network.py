"""Network of a stored model, built by its card and filled with its weights."""

from pathlib import Path

import numpy as np
import torch

from common.arrays import Arrays
from common.config.loading import defaults, override, parse
from common.config.schema import RunConfig
from common.config.sections import ModelConfig
from common.errors import BractError, ConfigError, ModelError
from common.inference.card import ModelCard
from common.models.backbone_info import describe
from common.models.classifier import (
    AnyNetwork,
    build_network,
    feature_network,
    load_arrays,
    personal_names,
    trained_arrays,
)
from common.models.names import BackboneSpec
from common.models.torch_heads import build_head
from common.models.weight_files import RANDOM


def build_from_card(card: ModelCard, arrays: Arrays, folder: Path, weights: Path | None) -> AnyNetwork:
    """Build a model's network with its weights, on the CPU.

    Args:
        card: The card.
        arrays: Tensor name -> values, as `read_weights` returns them.
        folder: Where a weights file of the backbone is looked for.
        weights: File with the backbone's weights, if the run had one.

    Raises:
        ModelError: The backbone here is not the card's, or the tensors do not fit it.
    """
    if card.personal == "head":
        raise ModelError(f"{folder}: the head of this model stays at each client (model.personal='head')")
    try:
        config = _settings(card, _backbone_weights(card, folder, weights))
        network = (
            _frozen_network(config.model, config.backbone_spec, card)
            if card.caches_features
            else build_network(config, card.input_shape, len(card.classes))
        )
        _check_names(network, config.model, card)
        load_arrays(network, trained_arrays(network) | arrays)
        _check_preprocessing(config.model, config.backbone_spec, card)
        _try_out(network, card)
    except ModelError as error:
        raise ModelError(f"{folder}: {error}") from None
    except BractError as error:
        # What follows the first line is advice on the settings of a run.
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{folder}: the backbone of its card cannot be used here: {reason}") from None
    return network.eval().requires_grad_(False)


def _backbone_weights(card: ModelCard, folder: Path, given: Path | None) -> str:
    if card.weights in ("", RANDOM):
        return card.weights
    file = given or folder / card.weights
    if not file.is_file():
        raise ModelError(f"the backbone's weights were in a file {card.weights}: put it there, or give --weights FILE")
    return str(file)


def _settings(card: ModelCard, weights: str) -> RunConfig:
    """Return settings under which a run would train such a network."""
    augmented = card.tuning == "head" and not card.caches_features
    ranks = [shape[0] for name, shape in card.tensors.items() if ".lora_A." in name and shape]
    given: dict[str, str | int | float | bool] = {
        "seed": card.seed,
        "data.image-size": card.side,
        "model.backbone": card.backbone,
        "model.weights": weights,
        "model.weights-sha256": card.backbone_sha256,
        "model.head": card.head,
        "model.tuning": card.tuning,
        "training.augmentation": "flip" if augmented else "",
        "training.rotation-weight": float("rotation.weight" in card.tensors),
        "privacy.mechanism": "none",
    }
    if ranks:
        given["model.lora-rank"] = ranks[0]
    config = parse(override(defaults(), given))
    if config.caches_features != card.caches_features:
        raise ModelError("its card has an input_shape that does not go with its tuning")
    return config


def _frozen_network(model: ModelConfig, spec: BackboneSpec, card: ModelCard) -> AnyNetwork:
    """Build a frozen backbone below a head with undefined values."""
    network = feature_network(model, spec)
    network.head = build_head(card.head, card.input_shape[0], len(card.classes)).eval()
    network.trained = tuple(f"head.{name}" for name, _ in network.head.named_parameters())
    return network


def _check_names(network: AnyNetwork, settings: ModelConfig, card: ModelCard) -> None:
    """Refuse a card whose tensors are not those of the network."""
    model = settings.model_copy(update={"personal": card.personal})
    # Personal tensors never came to the server. They keep their pretrained values.
    wanted = set(network.trained) - personal_names(network, model)
    if set(card.tensors) != wanted:
        odd = sorted(wanted ^ set(card.tensors))[0]
        raise ModelError(f"its tensors are not those of its backbone, head and tuning: {odd!r} is in one of them only")
    shapes = {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}
    for name, shape in card.tensors.items():
        if shapes[name] != shape:
            raise ModelError(f"{name!r} has shape {shape}, and its backbone, head and classes need {shapes[name]}")


def _check_preprocessing(model: ModelConfig, spec: BackboneSpec, card: ModelCard) -> None:
    """Refuse a card that asks for other images than training gave the network."""
    here = describe(model, spec, card.input_shape)
    # An unknown key is refused too. It would be a step that this version leaves out.
    for key in sorted({*here, *card.preprocessing}):
        if here.get(key) != card.preprocessing.get(key):
            raise ModelError(
                f"its card asks for preprocessing.{key}={card.preprocessing.get(key)!r}, and this version of Bract and "
                f"of the backbone's library does {here.get(key)!r}"
            )


def _try_out(network: AnyNetwork, card: ModelCard) -> None:
    """Pass one empty image through the network."""
    pixels = np.zeros((1, card.side, card.side, card.channels), dtype=np.uint8)
    try:
        with torch.inference_mode():
            scores = network(network.prepare(pixels))
    except (RuntimeError, AssertionError, ValueError):
        raise ConfigError("the network cannot take images of the size that its card says") from None
    if tuple(scores.shape) != (1, len(card.classes)):
        raise ModelError(f"it gives {scores.shape[-1]} scores an image, and its card names {len(card.classes)} classes")
