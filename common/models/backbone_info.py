"""What is known of a run's backbone, remembered so that a client with cached features needs no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.schema import RunConfig
from common.errors import ConfigError, WeightsError
from common.models.loading import load_pretrained
from common.models.names import resolve_name
from common.models.weight_files import RANDOM, check_weights_file, hash_tensors
from common.system.files import write_atomic
from common.system.paths import cache_folder

if TYPE_CHECKING:
    from common.models.backbone import Backbone

_FORMAT = 2


@dataclass(frozen=True)
class BackboneInfo:
    """What a run needs to know of its backbone without loading it.

    Attributes:
        sha256: Hash of all its tensors: what clients must agree on.
        origin: Where the weights came from.
        num_features: Length of one image's pooled features.
        num_flattened: Length of its flattened maps, what an `mlp` head takes.
        image_size: Side in pixels that images are brought to.
        mean: Of each channel, in 0..255.
        std: Of each channel.
        interpolation: `bicubic` or `bilinear`.
    """

    sha256: str
    origin: str
    num_features: int
    num_flattened: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


def load_backbone(config: RunConfig) -> "Backbone":
    """The run's backbone: pretrained, statistics frozen by type, no parameter requires a gradient.

    Raises:
        ConfigError: The backbone is unknown or cannot take such images.
        WeightsError: The weights are missing, do not fit, or are not the agreed ones.
    """
    from common.models.frozen_batch_norm import freeze_batch_norm

    model = config.model
    body, _ = load_pretrained(
        resolve_name(model.backbone), model.weights, side=config.data.image_size, seed=config.seed
    )
    _check_pin(config, hash_tensors(body.state_dict()))
    freeze_batch_norm(body)
    return body.eval().requires_grad_(False)


def backbone_info(config: RunConfig) -> BackboneInfo:
    """Facts about the run's backbone, from an earlier load where there was one.

    Raises:
        ConfigError: The backbone is unknown or cannot take such images.
        WeightsError: The weights are missing, do not fit, or are not the agreed ones.
    """
    check_weights_file(config.model.weights)
    facts = _remembered(_request(config), config)
    _check_pin(config, facts.sha256)
    return facts


def _check_pin(config: RunConfig, actual: str) -> None:
    wanted = config.model.weights_sha256
    if wanted and actual != wanted:
        raise WeightsError(
            f"model.weights-sha256 asks for {wanted[:16]}..., the weights of {config.model.backbone} here have "
            f"{actual[:16]}...: use the same file as everybody else"
        )


def _request(config: RunConfig) -> str:
    """Names the weights by what they are loaded from: a changed file is another request."""
    model = config.model
    parts = [_FORMAT, model.backbone, model.weights, config.data.image_size, version("timm"), version("torchvision")]
    if model.weights == RANDOM:
        parts += [config.seed]
    elif model.weights:
        state = Path(model.weights).stat()
        parts += [str(Path(model.weights).resolve()), state.st_size, state.st_mtime_ns]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


@lru_cache(maxsize=64)
def _remembered(request: str, config: RunConfig) -> BackboneInfo:
    file = cache_folder("backbones") / f"{request}.json"
    if file.is_file():
        known = json.loads(file.read_text())
        return BackboneInfo(**known | {"mean": tuple(known["mean"]), "std": tuple(known["std"])})
    facts = _measure(config)
    write_atomic(file, json.dumps(asdict(facts)), durable=False, mode=0o600)
    return facts


def _measure(config: RunConfig) -> BackboneInfo:
    import torch

    model = config.model
    body, origin = load_pretrained(
        resolve_name(model.backbone), model.weights, side=config.data.image_size, seed=config.seed
    )
    facts = body.preprocessing
    try:
        with torch.inference_mode():
            maps = body.feature_maps(torch.zeros(1, 3, facts.image_size, facts.image_size))
            pooled = body.pooled(maps)
    except (AssertionError, RuntimeError, ValueError):
        raise ConfigError(
            f"data.image-size={facts.image_size}: {model.backbone} cannot take images of this size; leave it empty for "
            "the backbone's own, or try a larger multiple of 32"
        ) from None
    mapped = maps if maps.ndim == 4 else pooled
    return BackboneInfo(
        sha256=hash_tensors(body.state_dict()),
        origin=origin,
        num_features=pooled.shape[1],
        num_flattened=mapped[0].numel(),
        image_size=facts.image_size,
        mean=facts.mean,
        std=facts.std,
        interpolation=facts.interpolation,
    )


def scaling_of(config: RunConfig) -> str:
    """How features are scaled before the run's head, see `scale_features`."""
    if config.model.head == "text":
        return "unit"
    return "power" if config.tuning == "head" and config.model.head == "linear" else "standard"


def describe(config: RunConfig, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """How an image becomes the network's input and features: facts for the model card."""
    if config.model.backbone == "cnn":
        return {"image_size": input_shape[0], "channels": input_shape[2], "mean": 127.5, "std": 127.5}
    facts = backbone_info(config)
    words = {
        "power": "signed square root, centred and scaled to unit length for each image",
        "standard": "centred and scaled to length sqrt(d) for each image",
        "unit": "scaled to unit length for each image",
    }
    return {
        "image_size": facts.image_size,
        "channels": 3,
        "mean": list(facts.mean),
        "std": list(facts.std),
        "resize": f"shorter side, {facts.interpolation}, centre square",
        "pooling": "none, maps are flattened" if config.model.head == "mlp" else "the backbone's own, or the mean",
        "features": words[scaling_of(config)],
    }
