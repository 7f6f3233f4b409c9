"""Starting weights of a run, equal in every engine and baseline."""

from collections.abc import Sequence

import numpy as np

from common.arrays import Arrays
from common.config.schema import RunConfig
from common.config.sections import ModelConfig
from common.errors import ConfigError
from common.models.linear_head import HEAD_WEIGHT, initial_head
from common.randomness import public_stream


def initial_arrays(config: RunConfig, input_shape: tuple[int, ...], classes: Sequence[str]) -> Arrays:
    """Return the trained tensors before round 1, personal ones included.

    A linear head is zeros, and a `text` head the class names' embeddings. Dense layers and a network from scratch are
    scaled normals. What is tuned in the backbone keeps its pretrained values.

    Raises:
        ConfigError: `model.head='text'` without a CLIP backbone.
    """
    if config.needs_no_torch:
        if config.model.head == "text":
            return {HEAD_WEIGHT: _text_head(config.model, classes)}
        return initial_head(input_shape[0], len(classes))
    rng = public_stream(config.seed, "weights")
    if config.model.backbone == "cnn":
        from common.models.small_cnn import initial_cnn

        return initial_cnn(input_shape, len(classes), rng, config.cnn_depth)
    from common.models.classifier import build_network, trained_arrays

    arrays = trained_arrays(build_network(config, input_shape, len(classes)))
    # Drawn here in a fixed order, not by torch's constructors: no draw may depend on torch's version.
    for name, array in arrays.items():
        if ".lora_A." in name or name in {"head.dense.weight", "head.output.weight"}:
            fan_in = int(np.prod(array.shape[1:]))
            arrays[name] = (np.sqrt(2.0 / fan_in) * rng.standard_normal(array.shape)).astype(np.float32)
        elif not name.startswith("body.") or ".lora_B." in name:
            arrays[name] = np.zeros_like(array)
    if config.model.head == "text":
        arrays[HEAD_WEIGHT] = _text_head(config.model, classes)
    return arrays


def _text_head(model: ModelConfig, classes: Sequence[str]) -> np.ndarray:
    from common.models.names import resolve_name
    from common.models.providers.registry import PROVIDERS

    name = resolve_name(model.backbone)
    zero_shot_head = getattr(PROVIDERS[name.provider].load(), "zero_shot_head", None)
    if zero_shot_head is None:
        raise ConfigError(
            f"model.head='text' starts from class names and needs a CLIP backbone, got model.backbone={name.given!r}"
        )
    weights: np.ndarray = zero_shot_head(name, model.weights, tuple(classes))
    return weights
