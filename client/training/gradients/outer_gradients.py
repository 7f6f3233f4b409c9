"""Per-example gradients of linear layers, kept as the two vectors of an outer product.

A linear layer that sees one vector of each image has a weight gradient of rank one. Its norm and its part of a clipped
sum follow without forming it. Such layers hold most values of the small network and of every head.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from client.training.gradients.gradient_check import largest_distance, made_up_examples
from client.training.gradients.per_example_gradients import (
    Examples,
    MergedLowRank,
    loss_sum,
)
from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork
from common.privacy.clipping import OuterProductSum, add_clipped, outer_square

# Layer -> its calls: where each output stands in the graph of a loss, and the input.
_Calls = dict[str, list[tuple[torch.autograd.graph.GradientEdge, torch.Tensor]]]


@dataclass(frozen=True)
class SplitGradient:
    """Gradient of one unit in parts.

    Attributes:
        parts: All tensors but those of `products`, float32, in order. Arrays of any shapes, whose values side by side
            are r values.
        products: Output gradient (m,) and input (d,) of each layer whose weight is kept apart, float32, in order.
    """

    parts: tuple[np.ndarray, ...]
    products: tuple[tuple[np.ndarray, np.ndarray], ...] = ()

    @classmethod
    def undivided(cls, gradient: np.ndarray) -> "SplitGradient":
        """Return a gradient (p,) of which nothing is kept apart."""
        return cls((gradient,))

    @property
    def flat(self) -> np.ndarray:
        """The parts side by side, (r,), copied."""
        return np.concatenate([np.zeros(0, np.float32), *(part.reshape(-1) for part in self.parts)])


class SplitSum:
    """Running sum of clipped gradients, of which some tensors come as outer products.

    `weights` names the tensors that do; `shapes` has all trained tensors in order.
    """

    def __init__(self, shapes: dict[str, tuple[int, ...]], weights: Sequence[str], *, max_grad_norm: float) -> None:
        self._shapes, self._bound = shapes, max_grad_norm
        self._products = {name: OuterProductSum((shapes[name][0], shapes[name][1])) for name in weights}
        self._flat = np.zeros(sum(int(np.prod(shape)) for name, shape in shapes.items() if name not in weights))

    def add(self, gradient: SplitGradient) -> None:
        """Add one unit's gradient, clipped once over all tensors."""
        elsewhere = sum(outer_square(left, right) for left, right in gradient.products)
        factor = add_clipped(self._flat, gradient.parts, max_grad_norm=self._bound, elsewhere=elsewhere)
        for product, (left, right) in zip(self._products.values(), gradient.products, strict=True):
            product.add(left, right, factor=factor)

    def total(self) -> np.ndarray:
        """Return the sum, (p,) float64, tensors in order."""
        if not self._products:
            return self._flat
        parts, start = [], 0
        for name, shape in self._shapes.items():
            if name in self._products:
                parts.append(self._products[name].total().ravel())
                continue
            parts.append(self._flat[start : start + int(np.prod(shape))])
            start += parts[-1].size
        return np.concatenate(parts)


def outer_weights(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> tuple[str, ...]:
    """Return the trained weights whose gradients by one image are outer products.

    They belong to linear layers that are called once, with one vector. None are returned if gradients of made-up images
    then differ from those of autograd. That is a check of the training only: whatever the layers do, each image has
    its own vectors, and their norm is counted in its clip.
    """
    # Under autocast a layer rounds its input first, and the factors would not be those of the gradient.
    if settings.autocast != "none":
        return ()
    examples = made_up_examples(network, input_shape, settings)
    weights = _called_once(network, examples.select(torch.tensor([0])), settings)

    def whole(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
        return whole_gradients(network, split_gradients(network, examples, settings, weights), weights)

    return weights if weights and largest_distance(network, input_shape, settings, whole) <= 1 else ()


def whole_gradients(
    network: AnyNetwork, gradients: Iterable[SplitGradient], weights: Sequence[str]
) -> Iterator[np.ndarray]:
    """Yield gradients with their outer products formed, (p,) float64, in the order of `network.trained`."""
    named = dict(network.named_parameters())
    shapes = {name: tuple(named[name].shape) for name in network.trained}
    for gradient in gradients:
        # A bound that clips nothing.
        alone = SplitSum(shapes, weights, max_grad_norm=1e30)
        alone.add(gradient)
        yield alone.total()


def split_gradients(
    network: AnyNetwork, examples: Examples, settings: LocalSettings, weights: Sequence[str]
) -> Iterator[SplitGradient]:
    """Yield each example's gradient by the trained parameters, computed alone.

    `weights` are from `outer_weights`, for this network and such examples.
    """
    named, layers = dict(network.named_parameters()), [name.removesuffix(".weight") for name in weights]
    rest = [named[name] for name in network.trained if name not in weights]
    merged = MergedLowRank(network, settings)
    with watched(network, layers) as calls:
        for row in range(len(examples)):
            calls.clear()
            with merged.in_use():
                # A copy, not a view, as in `gradients_one_by_one`.
                loss = loss_sum(network, examples.select(torch.tensor([row])), settings)
            seen = [calls[layer][0] for layer in layers]
            wanted: list[Any] = [*rest, *(output for output, _ in seen)]
            found = torch.autograd.grad(loss, wanted)
            lefts = [gradient[0].numpy() for gradient in found[len(rest) :]]
            rights = [inputs[0].numpy() for _, inputs in seen]
            # Not side by side: to copy them would take longer than to clip them.
            parts = tuple(gradient.numpy() for gradient in found[: len(rest)])
            yield SplitGradient(parts, tuple(zip(lefts, rights, strict=True)))


def _called_once(network: AnyNetwork, example: Examples, settings: LocalSettings) -> tuple[str, ...]:
    linear = [name for name, layer in network.named_modules() if type(layer) is nn.Linear]
    layers = [name for name in linear if f"{name}.weight" in network.trained]
    with watched(network, layers) as calls:
        loss_sum(network, example, settings)
        return tuple(
            f"{name}.weight"
            for name in layers
            if len(calls.get(name, ())) == 1 and calls[name][0][1].ndim == 2 and len(calls[name][0][1]) == 1
        )


@contextmanager
def watched(network: AnyNetwork, layers: Sequence[str]) -> Iterator[_Calls]:
    """Record the calls of some layers by their names inside the context."""
    calls: _Calls = {}

    def hook(name: str) -> torch.utils.hooks.RemovableHandle:
        def record(_: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            # The place in the graph, since a later layer may overwrite the output.
            edge = torch.autograd.graph.get_gradient_edge(output)
            calls.setdefault(name, []).append((edge, inputs[0].detach()))

        return network.get_submodule(name).register_forward_hook(record)

    hooks = [hook(name) for name in layers]
    try:
        yield calls
    finally:
        for handle in hooks:
            handle.remove()
