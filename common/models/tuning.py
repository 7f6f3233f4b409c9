"""Table of the tunings, each of which trains some parameters of the backbone.

Settings are checked by this table, so torch is imported only where a network is built.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from common.errors import ConfigError
from common.system.extras import install_hint

if TYPE_CHECKING:
    from torch import nn

    from common.models.backbone import Backbone


@dataclass(frozen=True)
class Tuning:
    """Choice of the backbone's parameters that are trained beside the head.

    Attributes:
        description: Which parameters are trained, for people to read.
        select: (backbone, number after the colon) -> names of the backbone's trained parameters.
        trains_backbone: False if the whole backbone stays frozen, so that its features can be cached and settings that
            shape the backbone are refused.
        prepare: (backbone, rank) -> None; adds layers to the backbone before anything is selected.
    """

    description: str
    select: "Callable[[Backbone, int], list[str]]"
    trains_backbone: bool = True
    prepare: "Callable[[Backbone, int], None] | None" = None


def parse_tuning(value: str) -> tuple[Tuning, int]:
    """Return the row of `model.tuning` with the number after the colon or 0.

    Raises:
        ValueError: The value is not a tuning.

    >>> parse_tuning("last:2")[1]
    2
    """
    if value == "last:<n>":
        raise ValueError("write how many groups of layers, such as last:1")
    if re.fullmatch(r"last:[1-9]\d*", value):
        return TUNINGS["last:<n>"], int(value.partition(":")[2])
    if value not in TUNINGS:
        raise ValueError(f"{value!r} is not a tuning; there are {', '.join(TUNINGS)}")
    return TUNINGS[value], 0


def tuned_names(body: "Backbone", tuning: str, backbone: str) -> list[str]:
    """Return the names of the backbone's parameters that are trained.

    The names are in the order of `body.named_parameters()`; there are none for `head`. The backbone has frozen
    statistics, after `Tuning.prepare`.

    Raises:
        ConfigError: The backbone has no such parameters; the message names the tunings that it has.

    Source: BitFit, Ben Zaken et al. 2022, arXiv:2106.10199; norm layers, Frankle et al. 2021, arXiv:2003.00152; LoRA,
    Hu et al. 2022, arXiv:2106.09685.
    """
    row, number = parse_tuning(tuning)
    groups = len(body.layer_groups()) if number else 0
    if number > groups:
        raise ConfigError(
            f"model.tuning={tuning!r}: {backbone} has {groups} groups of layers, so last:1 to last:{groups}"
        )
    chosen = set(row.select(body, number))
    names = [name for name in _all_names(body) if name in chosen]
    if not names and row.trains_backbone:
        raise ConfigError(
            f"model.tuning={tuning!r}: {backbone} has no such layers; it has {', '.join(possible_tunings(body))}"
        )
    return names


def possible_tunings(body: "Backbone") -> list[str]:
    """Return the tunings that a backbone admits."""
    # A tuning that adds its own layers, such as LoRA, has none to select yet.
    return [name for name, row in TUNINGS.items() if row.select(body, 1) or row.prepare or not row.trains_backbone]


def norm_names(body: "nn.Module", kinds: "tuple[type[nn.Module], ...]" = ()) -> list[str]:
    """Return the names of the affine parameters of the normalisation layers."""
    from torch import nn

    from common.models.frozen_batch_norm import FrozenBatchNorm

    return [
        f"{prefix}.{name}"
        for prefix, layer in body.named_modules()
        if isinstance(layer, kinds or (FrozenBatchNorm, nn.LayerNorm, nn.GroupNorm))
        for name, _ in layer.named_parameters(recurse=False)
    ]


def add_lora(body: "Backbone", rank: int) -> None:
    """Put low-rank layers beside linear layers and ungrouped convolutions, in place.

    In mobile nets these convolutions are the 1x1 ones; depthwise ones cannot be split by rank.

    Raises:
        ConfigError: peft is not installed, or the backbone has no such layer.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ConfigError(f"model.tuning='lora' needs peft: {install_hint('lora')}") from None
    targets = [name for name, layer in body.model.named_modules() if _takes_lora(layer)]
    if not targets:
        raise ConfigError("model.tuning='lora': the backbone has no linear layer and no ungrouped convolution")
    # One exact pattern, because peft matches a list of names with the ends of other names too.
    pattern = "|".join(re.escape(name) for name in targets)
    settings = LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=pattern, init_lora_weights=True)
    inject_adapter_in_model(settings, body.model)
    # peft makes its layers trainable and in training mode.
    body.eval().requires_grad_(False)


def _takes_lora(layer: "nn.Module") -> bool:
    from torch import nn

    # nn.MultiheadAttention reads this layer's weight directly and would pass LoRA by.
    if type(layer).__name__ == "NonDynamicallyQuantizableLinear":
        return False
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _all_names(body: "Backbone") -> list[str]:
    return [name for name, _ in body.named_parameters()]


TUNINGS = {
    "head": Tuning("the head alone, on a frozen backbone", lambda *_: [], trains_backbone=False),
    "bias": Tuning(
        "every bias of the backbone", lambda body, _: [name for name in _all_names(body) if name.endswith("bias")]
    ),
    "norm": Tuning("weight and bias of every normalisation layer", lambda body, _: norm_names(body)),
    "lora": Tuning(
        "low-rank layers beside linear layers and convolutions (extra `lora`)",
        lambda body, _: [name for name in _all_names(body) if ".lora_" in name],
        prepare=add_lora,
    ),
    "last:<n>": Tuning(
        "the last n groups of layers",
        lambda body, number: [name for group in body.layer_groups()[-number:] for name in group],
    ),
    "full": Tuning("the whole backbone", lambda body, _: _all_names(body)),
}
