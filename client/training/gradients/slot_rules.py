"""Rules for layers whose trained parameters have a copy for each slot.

Each rule gives the layer's usual output. Its backward pass keeps the gradients of slots apart: it goes by element, or
reduces within one slot, or calls the kernel of one image on one slot.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class NoRuleError(RuntimeError):
    """A use of a trained parameter for which there is no rule."""


class SlotCopies:
    """The copies of a parameter for all slots, with their gradients.

    Attributes:
        leaf: (slots, ...) without memory of its own, follows the parameter's values.
        gradient: (slots, ...) as a part of the buffer.
    """

    def __init__(self, parameter: nn.Parameter, flat: torch.Tensor) -> None:
        self.leaf = parameter.detach().expand(len(flat), *parameter.shape).requires_grad_()
        self.gradient = flat.view(len(flat), *parameter.shape)


class SlotRules(TorchFunctionMode):
    """A mode in which layers use the copies of trained parameters."""

    def __init__(self, copies: dict[int, SlotCopies], slots: int) -> None:
        super().__init__()
        self._copies = copies
        self._slots = slots

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run a torch function, with a trained parameter by its rule."""
        given = (*args, *(kwargs or {}).values())
        if func in _FACTS or not any(self._copy(value) is not None for value in given):
            return func(*args, **(kwargs or {}))
        if func not in _RULES or not isinstance(given[0], torch.Tensor) or len(given[0]) != self._slots:
            raise NoRuleError(f"there is no rule for a trained parameter in {getattr(func, '__name__', func)}")
        return _RULES[func](self._copy, *args, **(kwargs or {}))

    def _copy(self, value: object) -> SlotCopies | None:
        return self._copies.get(id(value)) if isinstance(value, nn.Parameter) else None


Copy = Callable[[object], SlotCopies | None]


def _beside(copy: torch.Tensor, like: torch.Tensor, axis: int) -> torch.Tensor:
    """Return (slots, c) copies in a shape for maps with channels on an axis."""
    shape = [len(copy), *[1] * (like.ndim - 1)]
    shape[axis] = copy.shape[1]
    return copy.view(shape)


def _with_bias(copy: Copy, maps: torch.Tensor, bias: torch.Tensor | None, axis: int) -> torch.Tensor:
    if bias is None:
        return maps
    copies = copy(bias)
    return maps + (bias.view([-1, *[1] * (-axis - 1)]) if copies is None else _beside(copies.leaf, maps, axis))


def _linear(copy: Copy, rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    copies = copy(weight)
    out = functional.linear(rows, weight) if copies is None else _SlotLinear.apply(rows, copies.leaf, copies)
    return _with_bias(copy, out, bias, -1)


class _SlotLinear(torch.autograd.Function):
    """A linear layer whose weight has a gradient for each slot."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, leaf: torch.Tensor, copies: SlotCopies) -> torch.Tensor:
        """Return the product of rows and weight."""
        ctx.save_for_backward(rows, leaf)
        ctx.copies = copies
        return functional.linear(rows, leaf[0])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None]:
        """Return the gradient by rows and keep those by the weight."""
        (rows, leaf), gradient = ctx.saved_tensors, gradients[0]
        by_weight = ctx.copies.gradient
        if rows.ndim == 2:
            by_weight.addcmul_(gradient[:, :, None], rows[:, None, :])
        else:
            by_weight += torch.bmm(gradient.flatten(1, -2).transpose(1, 2), rows.flatten(1, -2))
        return gradient @ leaf[0] if ctx.needs_input_grad[0] else None, None, None


def _conv2d(
    copy: Copy,
    maps: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> torch.Tensor:
    copies = copy(weight)
    if isinstance(padding, str):
        raise NoRuleError("there is no rule for a convolution whose padding is a word")
    shape = (_pair(stride), _pair(padding), _pair(dilation))
    if copies is None:
        out = torch.conv2d(maps, weight, None, *shape, groups)
    else:
        out = _SlotConv.apply(maps, copies.leaf, copies, shape, groups)
    return _with_bias(copy, out, bias, -3)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


Shape = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]


class _SlotConv(torch.autograd.Function):
    """A convolution whose weight has a gradient for each slot."""

    @staticmethod
    def forward(
        ctx: Any, maps: torch.Tensor, leaf: torch.Tensor, copies: SlotCopies, shape: Shape, groups: int
    ) -> torch.Tensor:
        """Return the convolved maps."""
        ctx.save_for_backward(maps, leaf)
        ctx.copies, ctx.shape, ctx.groups = copies, shape, groups
        return torch.conv2d(maps, leaf[0], None, *shape, groups)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None]:
        """Return the gradient by maps and keep those by the weight."""
        maps, leaf = ctx.saved_tensors
        kernel, gradient = leaf[0], gradients[0].contiguous()

        def by(wanted: list[bool], rows: slice) -> Any:
            return torch.ops.aten.convolution_backward(
                gradient[rows], maps[rows], kernel, None, *ctx.shape, False, [0, 0], ctx.groups, wanted
            )

        # The kernel of one image, which sees this slot alone. It is as fast as one product of all slots.
        for slot in range(len(maps)):
            ctx.copies.gradient[slot] += by([False, True, False], slice(slot, slot + 1))[1]
        return by([True, False, False], slice(None))[0] if ctx.needs_input_grad[0] else None, None, None, None, None


def _batch_norm(
    copy: Copy,
    maps: torch.Tensor,
    running_mean: torch.Tensor,
    running_var: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    training: bool = False,
    momentum: float = 0.1,  # noqa: ARG001 - one of the function's arguments, of no use with frozen statistics
    eps: float = 1e-5,
) -> torch.Tensor:
    if training:
        raise NoRuleError("a layer that normalises by the batch lets examples see each other")
    weights, biases = copy(weight), copy(bias)
    leaves = [parameter if copies is None else copies.leaf for parameter, copies in ((weight, weights), (bias, biases))]
    out: torch.Tensor = _SlotBatchNorm.apply(maps, running_mean, running_var, *leaves, weights, biases, eps)
    return out


class _SlotBatchNorm(torch.autograd.Function):
    """A normalisation with frozen statistics whose weight and bias have gradients for each slot."""

    @staticmethod
    def forward(
        ctx: Any,
        maps: torch.Tensor,
        mean: torch.Tensor,
        var: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        weights: SlotCopies | None,
        biases: SlotCopies | None,
        eps: float,
    ) -> torch.Tensor:
        """Return the normalised maps."""
        scale, shift = (part if part.ndim == 1 else part[0] for part in (weight, bias))
        ctx.save_for_backward(maps, mean, torch.rsqrt(var + eps), scale)
        ctx.copies = weights, biases
        return functional.batch_norm(maps, mean, var, scale, shift, False, 0.0, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, *tuple[None, ...]]:
        """Return the gradient by maps and keep those by weight and bias."""
        (maps, mean, inverse, scale), gradient = ctx.saved_tensors, gradients[0]
        weights, biases = ctx.copies
        if weights is not None:
            weights.gradient += (maps - _channels(mean)).mul_(gradient).flatten(2).sum(2) * inverse
        if biases is not None:
            biases.gradient += gradient.flatten(2).sum(2)
        by_maps = gradient * _channels(scale * inverse) if ctx.needs_input_grad[0] else None
        return by_maps, *[None] * 7


def _channels(values: torch.Tensor) -> torch.Tensor:
    return values.view(1, -1, 1, 1)


def _layer_norm(
    copy: Copy,
    maps: torch.Tensor,
    normalized_shape: Any,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
) -> torch.Tensor:
    return _scaled(copy, functional.layer_norm(maps, normalized_shape, None, None, eps), weight, bias, -1)


def _group_norm(
    copy: Copy,
    maps: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float = 1e-5,
) -> torch.Tensor:
    return _scaled(copy, functional.group_norm(maps, num_groups, None, None, eps), weight, bias, 1)


def _scaled(copy: Copy, maps: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, axis: int) -> torch.Tensor:
    """Return normalised maps times weight plus bias, each channel's of its own slot."""
    parts = []
    for parameter in (weight, bias):
        if parameter.ndim != 1:
            raise NoRuleError("there is a rule for normalisation by one axis of parameters only")
        copies = copy(parameter)
        parts.append(_beside(parameter.expand(len(maps), -1) if copies is None else copies.leaf, maps, axis))
    return torch.addcmul(parts[1], maps, parts[0])


# Reading these of a parameter computes nothing.
_FACTS = {getattr(torch.Tensor, name).__get__ for name in ("shape", "dtype", "device", "ndim")}
_RULES: dict[Callable[..., Any], Callable[..., torch.Tensor]] = {
    torch.conv2d: _conv2d,
    functional.linear: _linear,
    functional.batch_norm: _batch_norm,
    functional.layer_norm: _layer_norm,
    functional.group_norm: _group_norm,
}
