"""Methods of Captum that find the parts of images that speak for classes."""

from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import nn

from common.errors import ConfigError
from common.inference.explanation.method_names import Method, MethodChoice
from common.models.classifier import AnyNetwork
from common.system.extras import install_hint, is_installed

if TYPE_CHECKING:
    from types import ModuleType

# Network, prepared images (n, ...) and their classes (n,) -> maps (n, h, w), at least 0.
MapFunction = Callable[["LogOdds", torch.Tensor, torch.Tensor], torch.Tensor]
# Points on the way from a plain image to the real one.
_STEPS = 16
# Images that pass the network at once.
_BATCH = 32
# Cells along a side of a map, where the network has no patches or they are smaller.
_CELLS = 16
_WINDOWS = 8


class LogOdds(nn.Module):
    """Network whose output is the log-odds of one class for each image.

    A logit alone says little of its class, because the same number can be added to the logits of all classes. The
    log-odds depend on the probability alone, and do not flatten where it is near 1. `maps` is the layer to hook.
    """

    def __init__(self, network: AnyNetwork) -> None:
        super().__init__()
        self.network = network
        self.maps = nn.Identity()

    def logits(self, inputs: torch.Tensor) -> torch.Tensor:
        """Return logits (n, classes) of prepared inputs."""
        maps = self.maps(self.network.feature_maps(inputs))
        if maps.requires_grad:
            # The features of a frozen backbone are square roots, whose slope at 0 is infinite. A channel that is 0
            # everywhere adds nothing to a map, but 0 times infinity would make the whole map NaN.
            maps.register_hook(lambda gradient: gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0))
        logits: torch.Tensor = self.network.head(self.network.pooled(maps))
        return logits

    def forward(self, inputs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        """Return the log-odds (n,) of the classes (n,) of prepared inputs."""
        logits, column = self.logits(inputs), classes[:, None]
        others = logits.scatter(1, column, -torch.inf).logsumexp(dim=1)
        return logits.gather(1, column)[:, 0] - others


def grad_cam(network: LogOdds, inputs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Weigh the last convolution's maps by their gradients, averaged over positions.

    Source: Selvaraju et al. 2017, arXiv:1610.02391.
    """
    found = (
        _captum()
        .LayerGradCam(network, network.maps)
        .attribute(inputs, additional_forward_args=(classes,), relu_attributions=True)
    )
    return cast(torch.Tensor, found[:, 0])


def integrated_gradients(network: LogOdds, inputs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Sum gradients on the way from a plain image to the real one.

    The plain image has the mean colour of the network's preprocessing. The sums are averaged over each patch.

    Source: Sundararajan et al. 2017, arXiv:1703.01365.
    """
    found = (
        _captum()
        .IntegratedGradients(network)
        .attribute(inputs, additional_forward_args=(classes,), n_steps=_STEPS, internal_batch_size=_BATCH)
    )
    # Single pixels are noisy. A transformer sees patches, so nothing finer can be told apart.
    return _by_cell(found, inputs.shape[-1] // _patch(network.network, inputs.shape[-1]))


def occlusion(network: LogOdds, inputs: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    """Measure how much the log-odds fall where a window hides the image.

    Windows have the mean colour of the network's preprocessing, and each overlaps the next by half.

    Source: Zeiler and Fergus 2014, arXiv:1311.2901.
    """
    side, channels = inputs.shape[-1], inputs.shape[1]
    step = max(1, side // (2 * _WINDOWS))
    found = (
        _captum()
        .Occlusion(network)
        .attribute(
            inputs,
            sliding_window_shapes=(channels, 2 * step, 2 * step),
            strides=(channels, step, step),
            additional_forward_args=(classes,),
            perturbations_per_eval=max(1, _BATCH // len(inputs)),
        )
    )
    return _by_cell(found, side // step)


METHODS: dict[Method, MapFunction] = {
    "grad-cam": grad_cam,
    "integrated-gradients": integrated_gradients,
    "occlusion": occlusion,
}


def _captum() -> "ModuleType":
    # Captum is an extra, and importing it takes half a second.
    from captum import attr

    return cast("ModuleType", attr)


def _by_cell(found: torch.Tensor, cells: int) -> torch.Tensor:
    """Return what speaks for the class in each cell, (n, cells, cells)."""
    return nn.functional.adaptive_avg_pool2d(found.sum(dim=1), max(1, cells)).relu()


def _patch(network: nn.Module, side: int) -> int:
    """Return the width in pixels of the cells that a map can tell apart."""
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    # The layer that cuts an image into patches steps by its own width.
    cuts = first is not None and first.stride == first.kernel_size
    width = int(first.stride[0]) if first is not None and cuts else 1
    return max(width, side // _CELLS, 1)


def choose_method(network: AnyNetwork, inputs: torch.Tensor, wanted: MethodChoice) -> Method:
    """Return the method that a choice means for a network.

    `auto` is Grad-CAM where the last maps have positions, else integrated gradients.

    Args:
        network: The network.
        inputs: One prepared image.
        wanted: The choice.

    Raises:
        ConfigError: Captum is not installed, or the method needs maps that the network lacks.
    """
    if not is_installed("captum"):
        raise ConfigError(f"explanations need the package captum: {install_hint('explain')}")
    if wanted in ("integrated-gradients", "occlusion"):
        return wanted
    with torch.inference_mode():
        maps = network.feature_maps(inputs)
    # Some transformers put the channels last. Their maps are not square in the last two dimensions.
    positions = maps.ndim == 4 and maps.shape[2] == maps.shape[3] > 1
    if wanted == "grad-cam" and not positions:
        raise ConfigError(
            "grad-cam needs a convolutional backbone whose last maps have positions, and this one has none: "
            "use integrated-gradients or occlusion"
        )
    return "grad-cam" if positions else "integrated-gradients"
