"""Removal of channels or weights of a network by their magnitude."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from common.errors import ConfigError, ModelError
from common.inference.export.comparison import TOLERANCE, relative_error, torch_runner, trial_pixels
from common.inference.export.onnx_file import quiet
from common.inference.export.pixel_network import PixelNetwork
from common.models.classifier import AnyNetwork, Network
from common.models.frozen_batch_norm import FrozenBatchNorm
from common.system.extras import install_hint, is_installed

Part = Literal["channels", "weights"]
# Processors compute channels in eights.
_MULTIPLE = 8


@dataclass(frozen=True)
class Pruned:
    """A smaller copy of a network.

    Attributes:
        network: From RGB pixels to logits, as the original.
        part: What was removed.
        text: Facts of the removal for the file's metadata.
    """

    network: PixelNetwork
    part: Part
    text: str


def check_package(part: Part | None) -> None:
    """Refuse to prune channels without the library that does it.

    Raises:
        ConfigError: It is not installed.
    """
    if part != "weights" and not is_installed("torch_pruning"):
        raise ConfigError(f"--prune needs torch-pruning: {install_hint('prune')}; --prune-by weights does without it")


def prune(network: PixelNetwork, side: int, fraction: float, part: Part | None) -> Pruned:
    """Return a copy of a network without its weakest channels or weights.

    Channels are removed only where one layer makes them, and not those that the head sees. Without them the network
    computes what it computes with their values ignored, which is checked on trial images. Weights are set to zero. The
    head keeps all of its weights.

    Args:
        network: The original, on the CPU.
        side: Side of its images in pixels.
        fraction: Share of the channels of each such layer, or of all weights, above 0 and below 1.
        part: `channels`, `weights`, or None for channels where the network allows it and weights elsewhere.

    Raises:
        ConfigError: `channels` is asked for, and the library cannot remove any from this network.
    """
    if part != "weights":
        pruned = _without_channels(network, side, fraction)
        if pruned is not None:
            return pruned
        if part == "channels":
            raise ConfigError("--prune-by channels: no channels can be removed from this backbone; use weights")
    smaller = copy.deepcopy(network)
    head = set(_head(smaller.network).modules())
    layers = [layer for layer in smaller.modules() if isinstance(layer, nn.Conv2d | nn.Linear) and layer not in head]
    _zero_weights(layers, fraction)
    return Pruned(smaller, "weights", f"{fraction:.0%} of the weights set to zero, smallest first, not trained again")


def _zero_weights(layers: Sequence[nn.Module], fraction: float) -> None:
    from torch.nn.utils import prune as torch_prune

    parameters = [(layer, "weight") for layer in layers]
    torch_prune.global_unstructured(parameters, pruning_method=torch_prune.L1Unstructured, amount=fraction)
    for layer, name in parameters:
        torch_prune.remove(layer, name)  # type: ignore[no-untyped-call]


def _without_channels(network: PixelNetwork, side: int, fraction: float) -> Pruned | None:
    """Return a copy with fewer channels, None where the library fails."""
    masked = copy.deepcopy(network)
    _thaw(masked)
    smaller = copy.deepcopy(masked)
    before = sum(parameter.numel() for parameter in smaller.parameters())
    try:
        with quiet():
            removed = _remove_channels(smaller.network, masked.network, side, fraction)
        pixels = trial_pixels(side)
        wanted, found = (torch_runner(one.eval())(pixels) for one in (masked, smaller))
    # The library raises anything for networks that it does not know.
    except Exception:
        return None
    if not removed or not relative_error(found, wanted) <= TOLERANCE:
        return None
    share = 1 - sum(parameter.numel() for parameter in smaller.parameters()) / before
    text = f"{fraction:.0%} of the channels inside blocks removed ({share:.1%} of all weights), not trained again"
    return Pruned(smaller, "channels", text)


def _remove_channels(network: AnyNetwork, masked: AnyNetwork, side: int, fraction: float) -> int:
    """Remove channels in place and return the number of layers that lost some.

    In `masked` what reads these channels gets weights of zero for them.
    """
    import torch_pruning

    network.requires_grad_(True)
    traced, head = _Unscaled(network), [layer for layer in _head(network).modules() if isinstance(layer, nn.Linear)]
    conv = next(layer for layer in network.modules() if isinstance(layer, nn.Conv2d))
    example = torch.randn(1, conv.in_channels, side, side)
    graph = torch_pruning.DependencyGraph().build_dependency(traced, example)
    ignored: list[nn.Module] = [*head]
    for group in graph.get_all_groups(ignored_layers=head, root_module_types=[nn.Conv2d, nn.Linear]):
        makers = {layer for layer, makes, _ in _layers(group) if makes}
        readers = {layer for layer, makes, _ in _layers(group) if not makes}
        # Layers whose sum is a residual stream must lose the same channels: that costs far more accuracy.
        if len(makers) != 1 or readers & set(head):
            ignored += makers
    names = {layer: name for name, layer in network.named_modules()}
    pruner = torch_pruning.pruner.BasePruner(
        traced,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=fraction,
        ignored_layers=ignored,
        round_to=_MULTIPLE,
    )
    # The library tells of removals in terms of the channels that are left: their original numbers are kept here.
    kept = {name: torch.arange(layer.weight.shape[1]) for layer, name in names.items() if _is_dense(layer)}
    removed = 0
    for group in pruner.step(interactive=True):
        for layer, makes, indices in _layers(group):
            if not makes:
                numbers, left = kept[names[layer]], torch.ones(len(kept[names[layer]]), dtype=torch.bool)
                left[indices] = False
                masked.get_parameter(f"{names[layer]}.weight").data[:, numbers[~left]] = 0.0
                kept[names[layer]] = numbers[left]
        group.prune()
        removed += 1
    network.requires_grad_(False)
    return removed


def _layers(group: Any) -> list[tuple[nn.Module, bool, list[int]]]:
    """Return the dense layers of a group of coupled channels.

    Each comes with True if it makes the channels, False if it reads them, and with the numbers of the channels.
    """
    found = []
    for dependency, indices in group:
        layer, handler = dependency.target.module, dependency.handler.__name__
        if _is_dense(layer) and handler in ("prune_out_channels", "prune_in_channels"):
            found.append((layer, handler == "prune_out_channels", list(indices)))
    return found


def _is_dense(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _head(network: AnyNetwork) -> nn.Module:
    if not isinstance(network, Network):
        return network.output
    if network.body is None:
        raise ModelError("a network without a backbone has nothing to prune")
    return network.head


class _Unscaled(nn.Module):
    """Network without the scaling of its features.

    The sums of the scaling would hide from the library which channels the head reads.
    """

    def __init__(self, network: AnyNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        network = self.network
        logits: torch.Tensor = (
            network.head(network.unscaled_features(inputs)) if isinstance(network, Network) else network(inputs)
        )
        return logits


def _thaw(module: nn.Module) -> None:
    """Replace each frozen BatchNorm in place by the layer that the library knows."""
    for name, child in module.named_children():
        if isinstance(child, FrozenBatchNorm):
            plain = nn.BatchNorm2d(len(child.bias), eps=child.eps)
            plain.load_state_dict(child.state_dict(), strict=False)
            setattr(module, name, nn.Sequential(plain, child.drop, child.act).eval())
        else:
            _thaw(child)
