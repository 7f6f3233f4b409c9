"""CLIP image encoders of the OpenCLIP library."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import ConfigError, WeightsError
from common.models.backbone import Backbone, Preprocessing, times255
from common.models.names import BackboneName


class ClipBackbone(Backbone):
    """The image tower of an open_clip model."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """The projected image embedding (n, d), not yet scaled."""
        out: torch.Tensor = self.model(pixels)
        return out

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Nothing is left to do."""
        return maps

    def layer_groups(self) -> list[list[str]]:
        """A group a residual block; the projection belongs to the last one."""
        found: dict[int, list[str]] = {}
        blocks = len(getattr(getattr(self.model, "transformer", None), "resblocks", []))
        for name, _ in self.model.named_parameters():
            parts = name.split(".")
            first = name.startswith(("conv1", "class_embedding", "positional_embedding", "ln_pre"))
            at = int(parts[2]) + 1 if name.startswith("transformer.resblocks.") else (0 if first else blocks)
            found.setdefault(at, []).append(f"model.{name}")
        return [found[key] for key in sorted(found)]


PROMPT = "a photo of a {}."


def _open_clip() -> Any:
    try:
        import open_clip
    except ImportError:
        raise ConfigError("CLIP backbones need open_clip: pip install 'bract[clip]'") from None
    return open_clip


def create_clip(name: BackboneName) -> Any:
    """A whole CLIP model, both towers, with the weights its constructor draws.

    The architecture is a name of open_clip's, or the path of a JSON file with one.

    Raises:
        ConfigError: open_clip is not installed or does not know the name.
    """
    open_clip = _open_clip()
    architecture = name.architecture
    if architecture.endswith(".json"):
        if not Path(architecture).is_file():
            raise ConfigError(f"model.backbone={name.given!r}: there is no file {architecture}")
        open_clip.add_model_config(architecture)
        architecture = Path(architecture).stem
    else:
        architecture = architecture.partition("/")[0]
    if architecture not in open_clip.list_models():
        some = ", ".join(open_clip.list_models()[:5])
        raise ConfigError(f"model.backbone={name.given!r}: open_clip has no {architecture!r}; it has {some}, ...")
    return open_clip.create_model(architecture, pretrained=None)


def build_clip_backbone(name: BackboneName, side: int | None) -> ClipBackbone:
    """The image tower alone.

    Raises:
        ConfigError: open_clip is not installed or does not know the name, or the tower
            takes images of another size.
    """
    body = clip_tower(create_clip(name))
    if side not in (None, body.preprocessing.image_size):
        raise ConfigError(
            f"data.image-size={side} with model.backbone={name.given!r}: it takes {body.preprocessing.image_size}"
        )
    return body


def clip_tower(model: Any) -> ClipBackbone:
    """The image tower of a whole CLIP model, with its preprocessing."""
    size = model.visual.image_size
    side = int(size[0] if isinstance(size, tuple | list) else size)
    mean = getattr(model.visual, "image_mean", None) or (0.48145466, 0.4578275, 0.40821073)
    std = getattr(model.visual, "image_std", None) or (0.26862954, 0.26130258, 0.27577711)
    return ClipBackbone(model.visual, Preprocessing(times255(mean), times255(std), "bicubic", side))


def text_head(model: Any, name: BackboneName, classes: tuple[str, ...]) -> np.ndarray:
    """A linear head whose rows are the class names' embeddings: zero-shot classification.

    Args:
        model: A whole CLIP model with its weights.
        name: Says which tokeniser belongs to it.
        classes: Class names, words a person would use.

    Returns:
        (classes, d) float32, scaled by the model's own temperature.

    Raises:
        WeightsError: The tokeniser cannot be loaded.

    Source: Radford et al. 2021, arXiv:2103.00020.
    """
    open_clip = _open_clip()
    architecture = name.architecture
    stem = Path(architecture).stem if architecture.endswith(".json") else architecture.partition("/")[0]
    try:
        tokeniser = open_clip.get_tokenizer(stem)
    except Exception as error:
        raise WeightsError(f"the tokeniser of {name.given} cannot be loaded ({type(error).__name__})") from None
    with torch.inference_mode():
        tokens = tokeniser([PROMPT.format(label.replace("_", " ")) for label in classes])
        embedded = torch.nn.functional.normalize(model.encode_text(tokens).float(), dim=-1)
        scaled = model.logit_scale.exp().float() * embedded
    return np.asarray(scaled.numpy(), dtype=np.float32)


def pretrained_clip(name: BackboneName) -> Any:
    """A whole CLIP model with the weights of the hub.

    Raises:
        ConfigError: The name lacks which pretraining is meant.
    """
    open_clip = _open_clip()
    architecture, slash, pretraining = name.architecture.partition("/")
    if not slash:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:5])
        raise ConfigError(f"model.backbone={name.given!r}: say which weights, as clip:{architecture}/<one of {known}>")
    return open_clip.create_model(architecture, pretrained=pretraining)


def clip_with_weights(name: BackboneName, weights: str) -> Any:
    """A whole CLIP model, both towers, with the same weights as its body in the run.

    Args:
        name: From `resolve_name`.
        weights: Empty for the hub, or a file with both towers.

    Raises:
        WeightsError: The file does not hold both towers, or weights are random: class
            names then have no meaning to start from.
    """
    from common.models.weight_files import RANDOM, read_tensors

    if weights == RANDOM:
        raise WeightsError("model.head='text' needs pretrained weights: random ones know no class names")
    if not weights:
        return pretrained_clip(name)
    model = create_clip(name)
    found = read_tensors(Path(weights))
    expected = model.state_dict()
    if any(key not in found or found[key].shape != expected[key].shape for key in expected):
        raise WeightsError(
            f"model.weights={weights!r}: model.head='text' needs a file with both towers of {name.given}"
        )
    model.load_state_dict({key: found[key] for key in expected})
    return model.eval()
