"""The weights that a run starts from: the same at every engine and in every baseline."""

from collections.abc import Sequence

import numpy as np

from common.arrays import Arrays
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.models.linear_head import initial_head
from common.randomness import public_stream


def initial_arrays(config: RunConfig, input_shape: tuple[int, ...], classes: Sequence[str]) -> Arrays:
    """Trained tensors before round 1, personal ones included.

    Args:
        config: The run.
        input_shape: (features,) or (side, side, channels).
        classes: Names of the classes, a public constant of the run.

    Returns:
        Name -> float32 array: zeros for a linear head, the class names' embeddings for a
        `text` head, scaled normals for dense layers and a network from scratch, the
        pretrained values for what is tuned in the backbone.

    Raises:
        ConfigError: `model.head='text'` without a CLIP backbone.
    """
    if config.needs_no_torch:
        return (
            {"head.weight": _text_head(config, classes)}
            if config.model.head == "text"
            else initial_head(input_shape[0], len(classes))
        )
    rng = public_stream(config.seed, "weights")
    if config.model.backbone == "cnn":
        from common.models.small_cnn import initial_cnn

        return initial_cnn(input_shape, len(classes), rng)
    from common.models.classifier import build_network, trained_arrays

    arrays = trained_arrays(build_network(config, input_shape, len(classes)))
    for name, array in arrays.items():
        if ".lora_A." in name or name in {"head.dense.weight", "head.output.weight"}:
            fan_in = int(np.prod(array.shape[1:]))
            arrays[name] = (np.sqrt(2.0 / fan_in) * rng.standard_normal(array.shape)).astype(np.float32)
        elif not name.startswith("body.") or ".lora_B." in name:
            arrays[name] = np.zeros_like(array)
    if config.model.head == "text":
        arrays["head.weight"] = _text_head(config, classes)
    return arrays


def _text_head(config: RunConfig, classes: Sequence[str]) -> np.ndarray:
    from common.models.names import resolve_name

    name = resolve_name(config.model.backbone)
    if name.provider != "clip":
        raise ConfigError(
            f"model.head='text' starts from class names and needs a CLIP backbone, got model.backbone={name.given!r}"
        )
    from common.models.providers.open_clip_models import clip_with_weights, text_head

    return text_head(clip_with_weights(name, config.model.weights), name, tuple(classes))
