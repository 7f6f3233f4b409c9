"""Per-example gradients of a network by Opacus' hooks, computed in batches.

They are used only where the run names them and the data holder's policy allows them. A batched product rounds a row by
the shape of its batch, so an image's gradient depends on its neighbours by rounding. No bound is proven on what a
server can make of that by its choice of weights. Gradients of one image at a time have no such gap.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from client.training.gradients.gradient_check import largest_distance
from client.training.gradients.per_example_gradients import Examples, loss_sum
from client.training.round_settings import LocalSettings
from common.errors import ConfigError, PrivacyError
from common.models.classifier import AnyNetwork
from common.models.frozen_batch_norm import FrozenBatchNorm

_CHUNK = 32


@contextmanager
def _unconfigured() -> Iterator[None]:
    """Keep the root logger as it is."""
    root, handler = logging.getLogger(), logging.NullHandler()
    # A logger that has a handler is configured by nobody else.
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)


# Opacus configures the root logger when it is imported, and each line of a client would be printed twice.
with _unconfigured():
    from opacus import GradSampleModule


def opacus_gradients(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
    """Yield each example's gradient by the trained parameters, in order.

    Each is (p,) float32 on the CPU, with the parameters in the order of `network.trained`. The network is left as it
    was. Memory grows with `system.physical-batch-size`, the number of examples in one batch.

    Raises:
        PrivacyError: Opacus gave a parameter no gradient for each example.
    """
    size = settings.physical_batch_size or _CHUNK
    for first in range(0, len(examples), size):
        yield from _batch_gradients(network, examples.select(slice(first, first + size)), settings)


def check_opacus(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings, trained: str) -> None:
    """Refuse a network whose gradients Opacus gets wrong.

    Both are compared on made-up images, each tensor by itself. The network is left as it was. `trained` names in a
    refusal what is trained.

    Raises:
        ConfigError: Opacus refuses the network, or its gradients differ from those of one image at a time.
    """
    try:
        distance = largest_distance(network, input_shape, settings, opacus_gradients)
    except PrivacyError as error:
        raise ConfigError(_refusal(trained, "gives a parameter no gradient of each example")) from error
    # Opacus and `torch.func` fail in many ways, and the images are made up. So nothing private is in any of them.
    except Exception as error:
        raise ConfigError(_refusal(trained, f"fails ({type(error).__name__})")) from error
    # Never a silent change to other gradients, since the user has named these.
    if not distance <= 1:
        raise ConfigError(_refusal(trained, "gives other gradients than one image at a time"))


def _refusal(trained: str, why: str) -> str:
    return f"training.gradients='opacus': Opacus {why} with {trained}: set training.gradients=auto"


def _batch_gradients(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> np.ndarray:
    """Return the gradients of one batch, (n, p) float32."""
    named = dict(network.named_parameters())
    trained = {name: named[name] for name in network.trained}
    with _hooks(network):
        # Not by `backward()`, which would leave the summed gradients of private images at the parameters.
        torch.autograd.grad(loss_sum(network, examples, settings), list(trained.values()), allow_unused=True)
        parts = [_checked(name, parameter, len(examples)) for name, parameter in trained.items()]
    return np.asarray(torch.cat(parts, dim=1).cpu().numpy())


def _checked(name: str, parameter: nn.Parameter, count: int) -> torch.Tensor:
    """Return what Opacus left at a parameter, (n, values) float32."""
    found = getattr(parameter, "grad_sample", None)
    # Fewer or other rows would be clipped as if they were single examples.
    if not isinstance(found, torch.Tensor) or found.shape != (count, *parameter.shape):
        raise PrivacyError(f"Opacus gave {name} no gradient of each example: use training.gradients=auto")
    return found.flatten(1).float()


@contextmanager
def _hooks(network: AnyNetwork) -> Iterator[None]:
    """Attach Opacus to a network for a while, without a trace afterwards."""
    owners = [*network.modules(), *network.parameters()]
    before = [dict(vars(owner)) for owner in owners]
    hooks = None
    try:
        for module in network.modules():
            # Hooks capture nothing in eval mode. Layers without parameters, such as dropout, stay as they were.
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False)):
                module.training = True
            # A layer that overwrites its input would change what the hooks have captured.
            if getattr(module, "inplace", False):
                vars(module)["inplace"] = False
        hooks = _Hooks(network, loss_reduction="sum", strict=False)
        yield
    finally:
        if hooks is not None:
            hooks.remove_hooks()
        # Everything else that was set at layers and parameters: modes, flags, activations, gradients of examples.
        for owner, attributes in zip(owners, before, strict=True):
            vars(owner).clear()
            vars(owner).update(attributes)


def _frozen_affine(
    layer: FrozenBatchNorm, activations: Sequence[torch.Tensor], backprops: torch.Tensor
) -> dict[nn.Parameter, torch.Tensor]:
    """Return the gradients of a BatchNorm with frozen statistics.

    Opacus refuses such layers. They are affine maps of each channel, below the activation that may be fused into them.
    """
    mean, var = layer.get_buffer("running_mean"), layer.get_buffer("running_var")
    with torch.enable_grad():
        normalised = nn.functional.batch_norm(activations[0], mean, var, eps=layer.eps)
        affine = normalised * layer.weight.detach()[:, None, None] + layer.bias.detach()[:, None, None]
        affine.requires_grad_()
        (gradients,) = torch.autograd.grad(layer.act(layer.drop(affine)), affine, backprops)
    return {layer.weight: (gradients * normalised).sum((2, 3)), layer.bias: gradients.sum((2, 3))}


class _Hooks(GradSampleModule):  # type: ignore[misc]
    """Opacus' hooks, with the layers and layouts that it lacks."""

    GRAD_SAMPLERS = MappingProxyType({**GradSampleModule.GRAD_SAMPLERS, FrozenBatchNorm: _frozen_affine})

    def add_hooks(self, **given: Any) -> None:
        """Attach Opacus with the gradients of outputs taken where these are made."""
        super().add_hooks(**given)
        for module in self.iterate_submodules(self._module):
            # A hook on a layer makes its output a view, which models such as ResNets may not add to in place.
            module._backward_hooks.clear()

    def capture_activations_hook(
        self, module: nn.Module, forward_input: Sequence[torch.Tensor], forward_output: torch.Tensor
    ) -> None:
        """Capture a layer's input and later the gradient by its output."""
        super().capture_activations_hook(module, forward_input, forward_output)

        def capture(gradient: torch.Tensor) -> None:
            self.capture_backprops_hook(module, forward_input, (gradient,), loss_reduction="sum", batch_first=True)

        # A layer that returns several tensors has no gradient of each example, and so is refused.
        if isinstance(forward_output, torch.Tensor) and forward_output.requires_grad:
            forward_output.register_hook(capture)  # type: ignore[no-untyped-call]

    def rearrange_grad_samples(self, **given: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Return activations and gradients of outputs in the layout that Opacus reads."""
        activations, backprops = super().rearrange_grad_samples(**given)
        # Opacus 1.6 reads maps by their strides, and wrongly where channels are last.
        return [part.contiguous() for part in activations], backprops.contiguous()
