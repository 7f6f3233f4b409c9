"""Facts about a run's backbone, stored so that cached features need no torch."""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.config.sections import ModelConfig
from common.errors import ConfigError, WeightsError
from common.models.engines.feature_engine import choose_engine, processor
from common.models.loading import load_pretrained
from common.models.names import BackboneSpec, resolve_name
from common.models.weight_files import RANDOM, check_weights_file, hash_tensors
from common.system.files import write_atomic
from common.system.paths import cache_folder

if TYPE_CHECKING:
    from common.models.backbone import Backbone

_FORMAT = 3


@dataclass(frozen=True)
class BackboneInfo:
    """Facts about a backbone that a run needs without loading it.

    `sha256` names all its tensors, which must be the same at all clients. Features are counted for one image, pooled or
    flattened as for an `mlp` head. Mean and deviation are of channel values in 0..255. The engine is the fastest that
    gives right features on this machine's CPU, see `choose_engine`.
    """

    sha256: str
    origin: str
    num_features: int
    num_flattened: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    engine: str


def load_backbone(spec: BackboneSpec) -> "Backbone":
    """Load the run's backbone, with frozen parameters and BatchNorm statistics.

    Raises:
        ConfigError: The backbone is unknown or cannot take such images.
        WeightsError: The weights are missing, do not fit, or are not the agreed ones.
    """
    body, _ = _load(spec)
    _check_pin(spec, hash_tensors(body.state_dict()))
    return _frozen(body)


def _frozen(body: "Backbone") -> "Backbone":
    from common.models.frozen_batch_norm import freeze_batch_norm

    # By type, not by mode. A later train() on the network would move the statistics of a BatchNorm,
    # and examples would see each other through them.
    freeze_batch_norm(body)
    return body.eval().requires_grad_(False)


def backbone_info(spec: BackboneSpec) -> BackboneInfo:
    """Return facts about the run's backbone, from an earlier load if possible.

    Raises:
        ConfigError: The backbone is unknown or cannot take such images.
        WeightsError: The weights are missing, do not fit, or are not the agreed ones.
    """
    facts = _remembered(_file_of(spec), spec)
    _check_pin(spec, facts.sha256)
    return facts


def has_facts(spec: BackboneSpec) -> bool:
    """Return whether the facts of `backbone_info` are stored.

    Raises:
        WeightsError: The weights are a file that is missing.
    """
    return _file_of(spec).is_file()


def _file_of(spec: BackboneSpec) -> Path:
    check_weights_file(spec.weights)
    return cache_folder("backbones") / f"{_request(spec)}.json"


def _load(spec: BackboneSpec) -> "tuple[Backbone, str]":
    return load_pretrained(resolve_name(spec.name), spec.weights, side=spec.image_size, seed=spec.seed)


def _check_pin(spec: BackboneSpec, actual: str) -> None:
    wanted = spec.weights_sha256
    if wanted and actual != wanted:
        raise WeightsError(
            f"model.weights-sha256 asks for {wanted[:16]}..., the weights of {spec.name} here have "
            f"{actual[:16]}...: use the same file as everybody else"
        )


def _request(spec: BackboneSpec) -> str:
    """Return a key of the facts that changes with the weights file."""
    parts = [_FORMAT, spec.name, spec.weights, spec.image_size]
    # An engine that is right for one processor or library may not be for another.
    parts += [version("timm"), version("torchvision"), version("torch"), *processor()]
    if spec.weights == RANDOM:
        parts += [spec.seed]
    elif spec.weights:
        # A file can change under the same name, so its size and time belong to the key.
        state = Path(spec.weights).stat()
        parts += [str(Path(spec.weights).resolve()), state.st_size, state.st_mtime_ns]
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:24]


@lru_cache(maxsize=64)
def _remembered(file: Path, spec: BackboneSpec) -> BackboneInfo:
    if file.is_file():
        stored = json.loads(file.read_text())
        return BackboneInfo(**stored | {"mean": tuple(stored["mean"]), "std": tuple(stored["std"])})
    facts = _measure(spec)
    write_atomic(file, json.dumps(asdict(facts)), durable=False, mode=0o600)
    return facts


def _measure(spec: BackboneSpec) -> BackboneInfo:
    import torch

    body, origin = _load(spec)
    facts = body.preprocessing
    try:
        with torch.inference_mode():
            maps = body.feature_maps(torch.zeros(1, 3, facts.image_size, facts.image_size))
            pooled = body.pooled(maps)
    except (AssertionError, RuntimeError, ValueError):
        raise ConfigError(
            f"data.image-size={facts.image_size}: {spec.name} cannot take images of this size; leave it empty for "
            "the backbone's own, or try a larger multiple of 32"
        ) from None
    mapped = maps if maps.ndim == 4 else pooled
    # Freezing changes the names of tensors, so the hash comes first.
    sha256 = hash_tensors(body.state_dict())
    return BackboneInfo(
        sha256=sha256,
        origin=origin,
        num_features=pooled.shape[1],
        num_flattened=mapped[0].numel(),
        image_size=facts.image_size,
        mean=facts.mean,
        std=facts.std,
        interpolation=facts.interpolation,
        engine=choose_engine(_frozen(body), facts.image_size),
    )


def scaling_of(model: ModelConfig) -> str:
    """Return how features are scaled before the head, as `scale_features` names it."""
    if model.head == "text":
        return "unit"
    # A tuning that is left open means `head` for a pretrained backbone.
    return "power" if model.tuning in (None, "head") and model.head == "linear" else "standard"


def describe(model: ModelConfig, spec: BackboneSpec, input_shape: tuple[int, ...]) -> dict[str, Any]:
    """Return the model card's facts on how an image becomes features."""
    if model.backbone == "cnn":
        return {"image_size": input_shape[0], "channels": input_shape[2], "mean": 127.5, "std": 127.5}
    facts = backbone_info(spec)
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
        "pooling": "none, maps are flattened" if model.head == "mlp" else "the backbone's own, or the mean",
        "features": words[scaling_of(model)],
    }
