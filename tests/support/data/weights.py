"""Small weights that the tests of backbones and their weights share."""

from collections.abc import Callable
from typing import Any

import timm
import torch

from common.config.schema import RunConfig
from common.models.backbone import Backbone

MakeConfig = Callable[..., RunConfig]
PACKAGED, SMALL = "efficientnet_lite0", "timm:mobilenetv3_small_050"


def config_of(make_config: MakeConfig, backbone: str, weights: object = "random", **more: Any) -> RunConfig:
    settings = {"model.backbone": backbone, "model.weights": str(weights), "data.image-size": 32} | more
    return make_config(settings)


def classifier_tensors() -> dict[str, torch.Tensor]:
    """Weights of a small network as a user would have them: the provider's names, the classifier included."""
    torch.manual_seed(7)
    found: dict[str, torch.Tensor] = timm.create_model("mobilenetv3_small_050", pretrained=False).state_dict()
    return found


def body_tensors(body: Backbone) -> dict[str, torch.Tensor]:
    return body.model.state_dict()
