"""BatchNorm whose statistics never move, in training mode either.

Under DP the examples of a batch must not see each other, and statistics of a batch would mix them. A layer that only
sits in eval mode is not enough, since any later call of `train()` would bring the batch statistics back.
"""

import torch
from torch import nn


class FrozenBatchNorm(nn.Module):
    """Per-channel affine map with the statistics that a BatchNorm learned in pretraining.

    Guarantee: the output equals the original layer's in eval mode, after `train()` and after `eval()`. No buffer ever
    changes. No example depends on another one. An activation that timm has fused into the layer (`BatchNormAct2d`) is
    kept.

    Raises:
        ValueError: The layer has no running statistics.
    """

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__()
        # Such a layer normalises by the batch in eval mode too, and so lets examples see each other.
        if original.running_mean is None or original.running_var is None:
            raise ValueError("a BatchNorm without running statistics cannot be frozen")
        size = original.num_features
        self.eps = original.eps
        self.weight = nn.Parameter(_or(original.weight, torch.ones(size)))
        self.bias = nn.Parameter(_or(original.bias, torch.zeros(size)))
        self.register_buffer("running_mean", original.running_mean.detach().clone())
        self.register_buffer("running_var", original.running_var.detach().clone())
        self.drop = getattr(original, "drop", None) or nn.Identity()
        self.act = getattr(original, "act", None) or nn.Identity()

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return normalised maps, (n, channels, height, width) as they came."""
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        # training=False in every mode: the batch's own statistics are never used.
        scaled = nn.functional.batch_norm(maps, mean, var, self.weight, self.bias, training=False, eps=self.eps)
        out: torch.Tensor = self.act(self.drop(scaled))
        return out


def _or(parameter: torch.Tensor | None, otherwise: torch.Tensor) -> torch.Tensor:
    return otherwise if parameter is None else parameter.detach().clone()


def freeze_batch_norm(module: nn.Module) -> int:
    """Replace every BatchNorm inside a module in place and return their number.

    Raises:
        ValueError: A layer has no running statistics.
    """
    replaced = 0
    for name, child in module.named_children():
        # The base class of all BatchNorm layers, so that no kind of them is overlooked.
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, FrozenBatchNorm(child))  # type: ignore[arg-type]
            replaced += 1
        else:
            replaced += freeze_batch_norm(child)
    return replaced
