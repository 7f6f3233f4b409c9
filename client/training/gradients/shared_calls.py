"""Per-example gradients of small networks, some images in each call of a layer.

A small layer is called for longer than it computes. Images that share its calls must not touch one another, even by
rounding: a hostile server could choose weights that amplify a difference beyond the clip bound. So a gradient must be
the same to the bit wherever its image stands and whatever stands beside it. Made-up images show this for the layers'
shapes on this processor. Which operations a kernel does follows from these, not from values, in a single thread: each
thread may have its own rule for the smallest numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from client.training.gradients.gradient_check import largest_distance, made_up_examples, made_up_weights
from client.training.gradients.outer_gradients import SplitGradient, watched, whole_gradients
from client.training.gradients.per_example_gradients import Examples, loss_sum
from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork

# More images gain nothing on CPUs.
_TOGETHER = 8
# Patches of a convolution's input that are in memory at once, in values.
_MOST_PATCHES = 1 << 22


@dataclass(frozen=True)
class SharedCalls:
    """Gradients of a network's trained layers, some images at a time.

    `layers` names convolutions and linear layers, each called once; `apart` the weights that are kept as outer
    products.
    """

    layers: tuple[str, ...]
    apart: tuple[str, ...]

    def gradients(self, network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[SplitGradient]:
        """Yield each example's gradient by the trained parameters."""
        for first in range(0, len(examples), _TOGETHER):
            # The last call repeats an image, because another shape would have other kernels.
            rows = torch.arange(first, first + _TOGETHER).clamp(max=len(examples) - 1)
            found = self._of_call(network, examples.select(rows), settings)
            yield from found[: len(examples) - first]

    def _of_call(self, network: AnyNetwork, examples: Examples, settings: LocalSettings) -> list[SplitGradient]:
        inputs, outputs = self.passes(network, examples, settings)
        parts: dict[str, torch.Tensor] = {}
        for layer, gradient in outputs.items():
            parts[f"{layer}.bias"] = gradient.flatten(2).sum(2) if gradient.ndim == 4 else gradient
            if f"{layer}.weight" not in self.apart:
                parts[f"{layer}.weight"] = _of_filters(network.get_submodule(layer), inputs[layer], gradient)
        kept = [parts[name] for name in network.trained if name not in self.apart]
        flat = torch.cat(kept, dim=1).numpy() if kept else np.zeros((len(examples), 0), dtype=np.float32)
        names = [name.removesuffix(".weight") for name in self.apart]
        pairs = [(outputs[name].numpy(), inputs[name].numpy()) for name in names]
        return [
            SplitGradient((flat[row],), tuple((left[row], right[row]) for left, right in pairs))
            for row in range(len(examples))
        ]

    def passes(
        self, network: AnyNetwork, examples: Examples, settings: LocalSettings
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """Return each layer's input and the gradient by its output, both (n, ...)."""
        with watched(network, self.layers) as calls:
            loss = loss_sum(network, examples, settings)
        seen = {layer: calls[layer][0] for layer in self.layers}
        gradients = torch.autograd.grad(loss, [edge for edge, _ in seen.values()])
        return {layer: inputs for layer, (_, inputs) in seen.items()}, dict(zip(seen, gradients, strict=True))


def _of_filters(layer: Any, maps: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return each image's gradient (n, p) by the filters of a convolution."""
    (high, wide), (down, across), (above, left) = layer.kernel_size, layer.stride, layer.padding
    number, filters = gradient.shape[:2]
    padded = nn.functional.pad(maps, (left, left, above, above)).permute(0, 2, 3, 1)
    # Channels last, since these values are neighbours in memory.
    patches = padded.unfold(1, high, down).unfold(2, wide, across).permute(0, 1, 2, 4, 5, 3)
    rows = patches.reshape(number, -1, high * wide * maps.shape[1])
    columns = gradient.permute(0, 2, 3, 1).reshape(number, -1, filters).transpose(1, 2)
    found = torch.bmm(columns, rows).view(number, filters, high, wide, maps.shape[1])
    return found.permute(0, 1, 4, 2, 3).reshape(number, -1)


def shared_calls(
    network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings, apart: tuple[str, ...]
) -> SharedCalls | None:
    """Return how images share calls, None where they must not.

    Never with several threads. The result holds while the network's layers stay as they are.

    Args:
        network: The network, with any finite weights.
        input_shape: Shape of an image, or of its features.
        settings: Settings of local training.
        apart: Result of `outer_weights`.
    """
    # Layers of a backbone are large, and one image at a time is as fast.
    if settings.autocast != "none" or getattr(network, "body", None) is not None or torch.get_num_threads() > 1:
        return None
    if not all(name.endswith((".weight", ".bias")) for name in network.trained):
        return None
    layers = tuple(dict.fromkeys(name.rpartition(".")[0] for name in network.trained))
    examples = made_up_examples(network, input_shape, settings)
    with watched(network, layers) as calls:
        loss_sum(network, examples.select(torch.tensor([0])), settings)
    for name in layers:
        seen, layer = calls.get(name, []), network.get_submodule(name)
        if len(seen) != 1 or not (f"{name}.weight" in apart or _has_plain_filters(layer, seen[0][1])):
            return None
    found = SharedCalls(layers, apart)
    with made_up_weights(network):
        alone = _stand_alone(found, network, input_shape, settings)
        return found if alone and _agree(found, network, input_shape, settings) else None


def _has_plain_filters(layer: nn.Module, maps: torch.Tensor) -> bool:
    if type(layer) is not nn.Conv2d or isinstance(layer.padding, str) or layer.padding_mode != "zeros":
        return False
    values = maps[0].numel() * layer.kernel_size[0] * layer.kernel_size[1]
    return layer.groups == 1 and layer.dilation == (1, 1) and _TOGETHER * values <= _MOST_PATCHES


def _agree(found: SharedCalls, network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> bool:
    def whole(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
        return whole_gradients(network, found.gradients(network, examples, settings), found.apart)

    return largest_distance(network, input_shape, settings, whole, spared=1) <= 1


def _stand_alone(
    found: SharedCalls, network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings
) -> bool:
    """Check that no bit of an image depends on its place and company."""
    examples = made_up_examples(network, input_shape, settings, number=2 * _TOGETHER)
    known: dict[int, list[bytes]] = {}
    for shift in range(2 * _TOGETHER):
        rows = (torch.arange(_TOGETHER) + shift) % len(examples)
        beside = _bits(found, network, examples.select(rows), settings)
        for place, image in enumerate(rows.tolist()):
            if known.setdefault(image, beside[place]) != beside[place]:
                return False
        # Where a kernel reads beyond its image, NaN would spread whatever it is multiplied by.
        spoiled, place = examples.select(rows), shift % _TOGETHER
        spoiled.inputs[torch.arange(_TOGETHER) != place] = float("nan")
        if _bits(found, network, spoiled, settings)[place] != beside[place]:
            return False
    return True


def _bits(found: SharedCalls, network: AnyNetwork, examples: Examples, settings: LocalSettings) -> list[list[bytes]]:
    """Return all bytes that are computed of each image.

    Sums of thousands of values may hide a bit. The maps between layers do not.
    """
    maps = [part.numpy() for passed in found.passes(network, examples, settings) for part in passed.values()]
    bits = [[part[row].tobytes() for part in maps] for row in range(len(examples))]
    for row, gradient in enumerate(found.gradients(network, examples, settings)):
        bits[row].append(gradient.flat.tobytes())
    return bits
