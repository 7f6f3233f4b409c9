"""BatchNorm whose statistics never move: a type of layer, not a mode that somebody can leave."""

import torch
from torch import nn


class FrozenBatchNorm(nn.Module):
    """A per-channel affine map from the statistics a BatchNorm learned in pretraining.

    Guarantee: the output equals the original layer's in eval mode, for `train()`
    as for `eval()`; no buffer ever moves; examples do not see each other.

    Args of the constructor: a BatchNorm layer with running statistics. An activation
    that timm has fused into the layer (`BatchNormAct2d`) is kept.
    """

    def __init__(self, original: nn.BatchNorm2d) -> None:
        super().__init__()
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
        """Maps (n, channels, height, width), same shape out."""
        mean, var = self.get_buffer("running_mean"), self.get_buffer("running_var")
        scaled = nn.functional.batch_norm(maps, mean, var, self.weight, self.bias, training=False, eps=self.eps)
        out: torch.Tensor = self.act(self.drop(scaled))
        return out


def _or(parameter: torch.Tensor | None, otherwise: torch.Tensor) -> torch.Tensor:
    return otherwise if parameter is None else parameter.detach().clone()


def freeze_batch_norm(module: nn.Module) -> int:
    """Replace every BatchNorm inside a module by a `FrozenBatchNorm`.

    Returns:
        How many layers were replaced.

    Raises:
        ValueError: A layer has no running statistics.
    """
    replaced = 0
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, FrozenBatchNorm(child))  # type: ignore[arg-type]
            replaced += 1
        else:
            replaced += freeze_batch_norm(child)
    return replaced
