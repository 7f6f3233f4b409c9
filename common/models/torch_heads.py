"""Heads as torch modules, and how features are scaled before them."""

from collections import OrderedDict

import torch
from torch import nn

HIDDEN = 256


def scale_features(features: torch.Tensor, scaling: str) -> torch.Tensor:
    """Bring each image's features to one length, a function of that image alone.

    Needs no statistics of private data, and bounds every example's gradient by the
    head, which makes clipping mild.

    Args:
        features: (n, d) float.
        scaling: `power`: signed square root, centred, unit length, for a head alone.
            `standard`: centred, length sqrt(d), for a head above layers that are trained.
            `unit`: unit length, as CLIP compares images with text.

    Returns:
        (n, d) float32; under `power` a row without variation becomes zero.

    Source: Perronnin et al. 2010, Improving the Fisher Kernel (power and L2 normalisation).
    """
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if scaling == "unit":
        return nn.functional.normalize(features, dim=1)
    if scaling == "standard":
        return nn.functional.layer_norm(features, features.shape[1:])
    rooted = features.sign() * features.abs().sqrt()
    centred = rooted - rooted.mean(dim=1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    rounding = 1e-6 * rooted.norm(dim=1, keepdim=True)
    return torch.where(length > rounding, centred / length.clamp_min(1e-30), torch.zeros_like(centred))


def build_head(kind: str, num_features: int, num_classes: int) -> nn.Module:
    """A head with undefined weights: `linear` and `text` without a bias, or `mlp` (dense 256, ReLU, dense)."""
    if kind != "mlp":
        return nn.Linear(num_features, num_classes, bias=False)
    layers = [
        ("dense", nn.Linear(num_features, HIDDEN)),
        ("relu", nn.ReLU()),
        ("output", nn.Linear(HIDDEN, num_classes)),
    ]
    return nn.Sequential(OrderedDict(layers))
