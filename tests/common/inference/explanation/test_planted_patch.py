"""The part of an image that decides its class is the part that is lit, in networks that learned so.

Drives `common.inference.explanation.methods`, `common.inference.explanation.sanity_check`.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from common.config.schema import RunConfig
from common.inference.explanation.method_names import Method
from common.inference.explanation.methods import METHODS, LogOdds, choose_method
from common.inference.explanation.sanity_check import check_sanity
from common.models.classifier import AnyNetwork
from tests.support.inference.planted_patches import planted, share_lit, trained_on_patches

pytestmark = pytest.mark.slow

Made = Callable[..., RunConfig]
# Name -> backbone, side, patch, steps of training and what `auto` chooses.
NETWORKS: dict[str, tuple[str, int, int, int, Method]] = {
    "small CNN": ("cnn", 32, 8, 40, "grad-cam"),
    "small ViT": ("timm:test_vit", 96, 20, 60, "integrated-gradients"),
}


@pytest.mark.parametrize("name", ["small CNN", pytest.param("small ViT", marks=pytest.mark.soak)])
def test_the_patch_that_decides_is_lit_and_a_constant_map_fails_the_check(make_config: Made, name: str) -> None:
    backbone, side, patch, steps, method = NETWORKS[name]
    network = trained_on_patches(make_config, backbone, side, patch, steps)
    images, labels, corners = planted(200, side, patch, seed=9)
    blank = network.prepare(np.zeros((1, side, side, 3), np.uint8))
    assert choose_method(network, blank, "auto") == method

    def explain(network: AnyNetwork, number: int) -> np.ndarray:
        parts = []
        for start in range(0, number, 25):
            part = slice(start, min(start + 25, number))
            inputs = network.prepare(images[part]).requires_grad_()
            parts.append(METHODS[method](LogOdds(network), inputs, torch.from_numpy(labels[part])).detach().numpy())
        return np.concatenate(parts)

    with torch.inference_mode():
        assert (network(network.prepare(images)).argmax(dim=1).numpy() == labels).mean() > 0.95
    assert share_lit(explain(network, 200), corners, side, patch) >= 0.9
    assert check_sanity(network, lambda other: explain(other, 4)).holds
    constant = explain(network, 4)
    assert not check_sanity(network, lambda _: constant).holds
    # Where patches lie at random, a map that lights one place always is in the patch by chance only.
    middle = np.zeros((200, *constant.shape[1:]))
    middle[:, middle.shape[1] // 2, middle.shape[2] // 2] = 1
    assert share_lit(middle, corners, side, patch) < 0.6
