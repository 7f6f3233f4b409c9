"""Which tensors of a network are trained, by the way of tuning."""

import re

from torch import nn

from common.config.schema import TUNINGS
from common.errors import ConfigError
from common.models.backbone import Backbone
from common.models.frozen_batch_norm import FrozenBatchNorm

_NORMS = (FrozenBatchNorm, nn.LayerNorm, nn.GroupNorm)


def tuned_names(body: Backbone, tuning: str, backbone: str) -> list[str]:
    """Names of the body's parameters that are trained; the head is trained in every mode.

    Args:
        body: A backbone with frozen statistics, LoRA layers already in it for `lora`.
        tuning: One of `common.config.schema.TUNINGS`.
        backbone: Its name, for messages.

    Returns:
        Names in the body's own order; none for `head`.

    Raises:
        ConfigError: The backbone has no such tensors; the message says which modes it has.

    Source: BitFit, Ben Zaken et al. 2022, arXiv:2106.10199; norm layers, Frankle et al.
    2021, arXiv:2003.00152; LoRA, Hu et al. 2022, arXiv:2106.09685.
    """
    chosen = set(_chosen(body, tuning, backbone))
    names = [name for name, _ in body.named_parameters() if name in chosen]
    if not names and tuning != "head":
        raise ConfigError(
            f"model.tuning={tuning!r}: {backbone} has no such layers; it has {', '.join(possible_tunings(body))}"
        )
    return names


def _chosen(body: Backbone, tuning: str, backbone: str) -> list[str]:
    everything = [name for name, _ in body.named_parameters()]
    if tuning == "head":
        return []
    if tuning == "full":
        return everything
    if tuning == "bias":
        return [name for name in everything if name.endswith("bias")]
    if tuning == "norm":
        return norm_names(body)
    if tuning == "lora":
        return [name for name in everything if ".lora_" in name]
    groups = body.layer_groups()
    wanted = int(tuning.partition(":")[2])
    if wanted > len(groups):
        raise ConfigError(
            f"model.tuning={tuning!r}: {backbone} has {len(groups)} groups of layers, so last:1 to last:{len(groups)}"
        )
    return [name for group in groups[-wanted:] for name in group]


def norm_names(body: nn.Module, kinds: tuple[type[nn.Module], ...] = _NORMS) -> list[str]:
    """Names of the affine parameters of the normalisation layers."""
    return [
        f"{prefix}.{name}"
        for prefix, layer in body.named_modules()
        if isinstance(layer, kinds)
        for name, _ in layer.named_parameters(recurse=False)
    ]


def possible_tunings(body: Backbone) -> list[str]:
    """The ways of tuning that a backbone admits."""
    found = {"head", "full", "last:<n>", "lora"}
    found |= {"bias"} if any(name.endswith("bias") for name, _ in body.named_parameters()) else set()
    found |= {"norm"} if norm_names(body) else set()
    return [tuning for tuning in TUNINGS if tuning in found]


def add_lora(body: Backbone, rank: int) -> None:
    """Put low-rank layers beside every linear layer and every ungrouped convolution, in place.

    In mobile nets these are the 1x1 convolutions; depthwise ones cannot be split by rank.

    Raises:
        ConfigError: peft is not installed, or the backbone has no such layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError("model.tuning='lora' needs peft: pip install 'bract[lora]'") from None
    targets = [name for name, layer in body.model.named_modules() if _takes_lora(layer)]
    if not targets:
        raise ConfigError("model.tuning='lora': the backbone has no linear layer and no ungrouped convolution")
    exactly = "|".join(re.escape(name) for name in targets)  # a list of names would match the ends of others too
    settings = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=exactly, init_lora_weights=True)
    inject_adapter_in_model(settings, body.model)


def _takes_lora(layer: nn.Module) -> bool:
    if (
        type(layer).__name__ == "NonDynamicallyQuantizableLinear"
    ):  # inside nn.MultiheadAttention, which reads its weight
        return False
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)
