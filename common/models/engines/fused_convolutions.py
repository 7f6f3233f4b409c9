"""Convolutions of oneDNN that include the BatchNorm and the activation after them.

PyTorch's own compiler computes frozen networks with these operators. Here they replace layers without compilation.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from common.models.backbone import Backbone
from common.models.frozen_batch_norm import FrozenBatchNorm

# Activation -> its name and constants in oneDNN's operators.
_ACTIVATIONS: dict[type[nn.Module], tuple[str, list[float]]] = {
    nn.ReLU: ("relu", []),
    nn.ReLU6: ("hardtanh", [0.0, 6.0]),
    nn.Hardswish: ("hardswish", []),
    nn.SiLU: ("swish", []),
}
_NO_ACTIVATION = ("none", list[float]())


class FusedConvolution(nn.Module):
    """Convolution with frozen weights for inputs of one size, on CPUs.

    Args:
        convolution: The original layer.
        norm: The frozen BatchNorm after it, or None.
        activation: Name and constants in oneDNN's operators.
        shape: Shape of its inputs, (n, channels, height, width).
        dtype: Number format of weights, inputs and outputs.
    """

    def __init__(
        self,
        convolution: nn.Conv2d,
        norm: FrozenBatchNorm | None,
        activation: tuple[str, list[float]],
        shape: torch.Size,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        weight, bias = convolution.weight.detach(), convolution.bias
        if norm is not None:
            mean, variance = norm.get_buffer("running_mean"), norm.get_buffer("running_var")
            weight, bias = fuse_conv_bn_weights(weight, bias, mean, variance, norm.eps, norm.weight, norm.bias)
        weight, padding = _symmetric(weight.detach(), convolution, shape)
        layout = (padding, convolution.stride, convolution.dilation, convolution.groups)
        self._dtype = dtype
        # Plain attributes: opaque tensors cannot be moved to another memory format, as buffers would be.
        self._weight = torch.ops.mkldnn._reorder_convolution_weight(
            weight.to(dtype).contiguous(memory_format=torch.channels_last), *layout, list(shape)
        )
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._rest = (*layout, *activation, "")

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (n, channels, height, width) in the layer's number format."""
        out: torch.Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps.to(self._dtype), self._weight, self._bias, *self._rest
        )
        return out


def _symmetric(weight: torch.Tensor, convolution: nn.Conv2d, shape: torch.Size) -> tuple[torch.Tensor, list[int]]:
    """Return an equal kernel with symmetric padding."""
    if type(convolution) is nn.Conv2d:
        return weight, [int(width) for width in convolution.padding]
    padding, leading = [], []
    for size, kernel, stride in zip(shape[2:], convolution.kernel_size, convolution.stride, strict=True):
        total = max(0, (-(-size // stride) - 1) * stride + kernel - size)
        # An odd padding is one longer at the end. A row of zeros before the kernel moves it to the middle,
        # and no padded copy of the maps is needed.
        padding.append(-(-total // 2))
        leading.append(total % 2)
    return nn.functional.pad(weight, (leading[1], 0, leading[0], 0)), padding


def _can_fuse(layer: nn.Conv2d) -> bool:
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return False
    # timm's layer pads as TensorFlow does. Other subclasses may do anything.
    same = type(layer).__name__ == "Conv2dSame" and layer.dilation == (1, 1)
    return type(layer) is nn.Conv2d or same


@dataclass
class _Trace:
    """Layers in the order in which one pass called them."""

    calls: Counter[nn.Module] = field(default_factory=Counter)
    shapes: dict[nn.Module, torch.Size] = field(default_factory=dict)
    followers: dict[nn.Module, nn.Module] = field(default_factory=dict)
    # Outputs stay alive, so that no two have the same id.
    _outputs: dict[int, tuple[nn.Module, torch.Tensor, int]] = field(default_factory=dict)

    def enter(self, layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Note a layer's input."""
        self.calls[layer] += 1
        self.shapes[layer] = inputs[0].shape
        source, _, version = self._outputs.get(id(inputs[0]), (None, None, 0))
        # A sum in place, as in residual blocks, keeps the tensor but changes its version.
        if source is not None and inputs[0]._version == version:
            self.followers[source] = layer

    def leave(self, layer: nn.Module, _: tuple[Any, ...], output: torch.Tensor) -> None:
        """Note a layer's output."""
        self._outputs[id(output)] = (layer, output, output._version)

    def after(self, layer: nn.Module) -> nn.Module | None:
        """Return the layer that took a layer's output.

        There is none unless both were called once.
        """
        follower = self.followers.get(layer)
        return follower if follower is not None and self.calls[layer] == self.calls[follower] == 1 else None


@contextmanager
def _tracing(body: Backbone) -> Iterator[_Trace]:
    trace = _Trace()
    kinds = (nn.Conv2d, FrozenBatchNorm, *_ACTIVATIONS)
    layers = [layer for layer in body.modules() if isinstance(layer, kinds)]
    hooks = [layer.register_forward_pre_hook(trace.enter) for layer in layers]
    hooks += [layer.register_forward_hook(trace.leave) for layer in layers]
    try:
        yield trace
    finally:
        for hook in hooks:
            hook.remove()


def fuse_convolutions(body: Backbone, side: int, batch_size: int, dtype: torch.dtype) -> None:
    """Replace the convolutions of a frozen backbone in place, with what follows each.

    Afterwards the backbone takes images of this side only. A layer whose output goes elsewhere too must be found by
    comparison with the original network, because a trace of layers does not see such uses.

    Raises:
        RuntimeError: This build of PyTorch or this processor lacks the operators.
        AttributeError: This release of PyTorch does not have the operators.
    """
    with torch.no_grad(), _tracing(body) as trace:
        body.pooled(body.feature_maps(torch.zeros(1, 3, side, side)))
    replaced: dict[nn.Module, nn.Module] = {}
    for layer in trace.calls:
        if isinstance(layer, nn.Conv2d) and trace.calls[layer] == 1 and _can_fuse(layer):
            norm, activation, absorbed = _what_follows(layer, trace)
            shape = torch.Size((batch_size, *trace.shapes[layer][1:]))
            replaced |= absorbed | {layer: FusedConvolution(layer, norm, activation, shape, dtype)}
    for parent in list(body.modules()):
        for name, child in list(parent.named_children()):
            if child in replaced:
                setattr(parent, name, replaced[child])


def _what_follows(
    layer: nn.Conv2d, trace: _Trace
) -> tuple[FrozenBatchNorm | None, tuple[str, list[float]], dict[nn.Module, nn.Module]]:
    """Return a convolution's BatchNorm, its activation and what these layers become."""
    follower = trace.after(layer)
    norm = follower if isinstance(follower, FrozenBatchNorm) and isinstance(follower.drop, nn.Identity) else None
    absorbed: dict[nn.Module, nn.Module] = {}
    if norm is not None:
        inner = _ACTIVATIONS.get(type(norm.act))
        if inner is not None:
            return norm, inner, {norm: nn.Identity()}
        absorbed[norm] = norm.act
        follower = trace.after(norm) if isinstance(norm.act, nn.Identity) else None
    activation = _ACTIVATIONS.get(type(follower))  # type: ignore[arg-type]
    if follower is None or activation is None:
        return norm, _NO_ACTIVATION, absorbed
    return norm, activation, absorbed | {follower: nn.Identity()}
