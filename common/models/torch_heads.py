"""Heads as torch modules and the scaling of their features."""

from collections import OrderedDict

import torch
from torch import nn

HIDDEN = 256


def scale_features(features: torch.Tensor, scaling: str) -> torch.Tensor:
    """Scale each image's features to one length, from that image alone.

    This needs no statistics of private data. It also bounds every example's gradient by the head, so that clipping
    changes little. `power` is the signed square root, centred, of unit length, for a head alone; a row without
    variation becomes zero. `standard` is centred, of length sqrt(d), for a head above trained layers. `unit` is of unit
    length, for a CLIP text head. The result is (n, d) float32.

    Source: Perronnin et al. 2010, Improving the Fisher Kernel (power and L2 normalisation).
    """
    # At least float32, because in bfloat16 the mean of a row is too coarse to centre it.
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    if scaling == "unit":
        return nn.functional.normalize(features, dim=1)
    if scaling == "standard":
        return nn.functional.layer_norm(features, features.shape[1:])
    rooted = features.sign() * features.abs().sqrt()
    centred = rooted - rooted.mean(dim=1, keepdim=True)
    length = centred.norm(dim=1, keepdim=True)
    # Without variation `centred` is rounding error only, and dividing would blow it up to unit length.
    rounding = 1e-6 * rooted.norm(dim=1, keepdim=True)
    return torch.where(length > rounding, centred / length.clamp_min(1e-30), torch.zeros_like(centred))


def build_head(kind: str, num_features: int, num_classes: int) -> nn.Module:
    """Build a head with undefined weights.

    For `mlp` it is dense 256, ReLU and dense, for all other kinds linear without a bias.
    """
    if kind != "mlp":
        return nn.Linear(num_features, num_classes, bias=False)
    dense, output = nn.Linear(num_features, HIDDEN), nn.Linear(HIDDEN, num_classes)
    return nn.Sequential(OrderedDict([("dense", dense), ("relu", nn.ReLU()), ("output", output)]))
