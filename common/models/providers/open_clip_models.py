"""CLIP image encoders of the OpenCLIP library."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from common.errors import ConfigError, WeightsError
from common.models.backbone import Backbone, Preprocessing, times255
from common.models.providers.registry import PROVIDERS, BackboneName
from common.models.weight_files import RANDOM, read_tensors
from common.system.extras import install_hint
from common.system.light_imports import light_imports

PROMPT = "a photo of a {}."


class ClipBackbone(Backbone):
    """The image tower of an open_clip model."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return the projected image embedding (n, d), not yet scaled."""
        out: torch.Tensor = self.model(pixels)
        return out

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the embedding as it is, already pooled."""
        return maps

    def layer_groups(self) -> list[list[str]]:
        """Return one group for each residual block, the projection in the last."""
        groups: dict[int, list[str]] = {}
        blocks = len(getattr(getattr(self.model, "transformer", None), "resblocks", []))
        for name, _ in self.model.named_parameters():
            parts = name.split(".")
            first = name.startswith(("conv1", "class_embedding", "positional_embedding", "ln_pre"))
            index = int(parts[2]) + 1 if name.startswith("transformer.resblocks.") else (0 if first else blocks)
            groups.setdefault(index, []).append(f"model.{name}")
        return [groups[index] for index in sorted(groups)]

    def own_tensors(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the image tower's tensors, also from a file with both towers."""
        tower = {key.removeprefix("visual."): value for key, value in tensors.items() if key.startswith("visual.")}
        return tower or tensors


def _open_clip() -> Any:
    try:
        with light_imports():
            import open_clip
    except ImportError:
        raise ConfigError(f"CLIP backbones need open_clip: {install_hint(PROVIDERS['clip'].extra)}") from None
    return open_clip


def knows(architecture: str) -> bool:
    """Check whether open_clip has an architecture of this name."""
    return architecture in _open_clip().list_models()


def similar_names(architecture: str) -> list[str]:
    """Return up to five names of open_clip, those that contain this one first."""
    return sorted(_open_clip().list_models(), key=lambda known: architecture not in known)[:5]


def fetch_tensors(name: BackboneName) -> dict[str, torch.Tensor]:
    """Download the pretrained image tower from the hub.

    Raises:
        ConfigError: The name lacks which pretraining is meant.
    """
    return dict(_pretrained(name).visual.state_dict())


def build_backbone(name: BackboneName, side: int | None) -> ClipBackbone:
    """Build the image tower with the weights its constructor draws.

    Raises:
        ConfigError: open_clip is not installed or does not know the name, or the tower takes images of another size.
    """
    body = _image_tower(_create(name))
    if side not in (None, body.preprocessing.image_size):
        raise ConfigError(
            f"data.image-size={side} with model.backbone={name.given!r}: it takes {body.preprocessing.image_size}"
        )
    return body


def _create(name: BackboneName) -> Any:
    """Build a whole CLIP model, both towers, with the weights its constructor draws.

    The architecture is a name of open_clip's, or the path of a JSON file with one.
    """
    open_clip = _open_clip()
    architecture = _without_pretraining(name)
    if name.architecture.endswith(".json"):
        if not Path(name.architecture).is_file():
            raise ConfigError(f"model.backbone={name.given!r}: there is no file {name.architecture}")
        open_clip.add_model_config(name.architecture)
    if not knows(architecture):
        some = ", ".join(similar_names(architecture))
        raise ConfigError(f"model.backbone={name.given!r}: open_clip has no {architecture!r}; it has {some}, ...")
    return open_clip.create_model(architecture, pretrained=None)


def _without_pretraining(name: BackboneName) -> str:
    path = name.architecture
    return Path(path).stem if path.endswith(".json") else path.partition("/")[0]


def _image_tower(model: Any) -> ClipBackbone:
    size = model.visual.image_size
    side = int(size[0] if isinstance(size, tuple | list) else size)
    mean = getattr(model.visual, "image_mean", None) or (0.48145466, 0.4578275, 0.40821073)
    std = getattr(model.visual, "image_std", None) or (0.26862954, 0.26130258, 0.27577711)
    return ClipBackbone(model.visual, Preprocessing(times255(mean), times255(std), "bicubic", side))


def _pretrained(name: BackboneName) -> Any:
    """Download a whole CLIP model, both towers, from the hub."""
    open_clip = _open_clip()
    architecture, slash, pretraining = name.architecture.partition("/")
    if not slash:
        known = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:5])
        raise ConfigError(f"model.backbone={name.given!r}: say which weights, as clip:{architecture}/<one of {known}>")
    return open_clip.create_model(architecture, pretrained=pretraining)


def zero_shot_head(name: BackboneName, weights: str, classes: tuple[str, ...]) -> np.ndarray:
    """Return `text_head` of the run's backbone, with the weights of `clip_with_weights`."""
    return text_head(clip_with_weights(name, weights), name, classes)


def text_head(model: Any, name: BackboneName, classes: tuple[str, ...]) -> np.ndarray:
    """Return a linear head whose rows are the class names' embeddings.

    The rows, (classes, d) float32, are scaled by the model's own temperature.

    Raises:
        WeightsError: The tokeniser cannot be loaded.

    Source: Radford et al. 2021, arXiv:2103.00020.
    """
    try:
        tokeniser = _open_clip().get_tokenizer(_without_pretraining(name))
    except Exception as error:
        raise WeightsError(f"the tokeniser of {name.given} cannot be loaded ({type(error).__name__})") from None
    with torch.inference_mode():
        tokens = tokeniser([PROMPT.format(label.replace("_", " ")) for label in classes])
        embedded = torch.nn.functional.normalize(model.encode_text(tokens).float(), dim=-1)
        scaled = model.logit_scale.exp().float() * embedded
    return np.asarray(scaled.numpy(), dtype=np.float32)


def clip_with_weights(name: BackboneName, weights: str) -> Any:
    """Load a whole CLIP model, both towers, with the weights of the run's backbone.

    Raises:
        ConfigError: The name lacks which pretraining is meant.
        WeightsError: The file does not hold both towers, or weights are random.
    """
    # With random weights class names have no meaning to start from.
    if weights == RANDOM:
        raise WeightsError("model.head='text' needs pretrained weights: random ones know no class names")
    if not weights:
        return _pretrained(name)
    model = _create(name)
    tensors, expected = read_tensors(Path(weights)), model.state_dict()
    if any(key not in tensors or tensors[key].shape != expected[key].shape for key in expected):
        raise WeightsError(
            f"model.weights={weights!r}: model.head='text' needs a file with both towers of {name.given}"
        )
    model.load_state_dict({key: tensors[key] for key in expected})
    return model.eval()
