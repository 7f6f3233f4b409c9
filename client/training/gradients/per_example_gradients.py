"""Per-example gradients of a network, each independent of all other examples.

There are two providers here. One image at a time is exact by construction. In chunks, `torch.func` computes many images
at once. Small networks have a way of their own, see `shared_calls`.

A batched product rounds a row by its position and the batch's shape. A hostile server could choose weights that amplify
a difference in rounding beyond the clip bound. Chunks therefore have a fixed shape, and each image has a slot in its
chunk that its own digest chooses. The arithmetic of an image then does not depend on which other images were drawn.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork


class Examples:
    """Examples of one batch, prepared for the network.

    `inputs` is (n, ...), see the network's `prepare`, and `labels` (n,) int64. `turned` holds the turned images'
    inputs, None without rotation prediction. `turns` is (n,) int64, the quarters that each was turned, zeros without
    the task.
    """

    def __init__(
        self, inputs: torch.Tensor, labels: torch.Tensor, turned: torch.Tensor | None, turns: torch.Tensor
    ) -> None:
        self.inputs, self.labels, self.turned, self.turns = inputs, labels, turned, turns

    def select(self, rows: torch.Tensor | slice) -> "Examples":
        """Return the examples of some rows."""
        turned = None if self.turned is None else self.turned[rows]
        return Examples(self.inputs[rows], self.labels[rows], turned, self.turns[rows])

    def __len__(self) -> int:
        return len(self.labels)


def loss_sum(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> torch.Tensor:
    """Return the sum of the examples' losses, the auxiliary task's included.

    The loss of an example is the weight of its class times its cross-entropy, plus `rotation_weight` times the
    cross-entropy of the rotation prediction, which has no class.
    """
    device = examples.inputs.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=settings.autocast == "bfloat16"):
        logits = network(examples.inputs)
        turned = None if examples.turned is None else network.rotation_logits(examples.turned)  # type: ignore[operator]
    loss = _class_loss(logits.float(), examples.labels, settings)
    if turned is not None:
        loss = loss + settings.rotation_weight * nn.functional.cross_entropy(
            turned.float(), examples.turns, reduction="sum"
        )
    return loss


def _class_loss(logits: torch.Tensor, labels: torch.Tensor, settings: LocalSettings) -> torch.Tensor:
    smoothing = settings.label_smoothing
    if not settings.class_weights:
        return nn.functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    # Not by the function's own `weight`, which weighs the smoothed share of every other class by that class.
    losses = nn.functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return (losses * logits.new_tensor(settings.class_weights)[labels]).sum()


def gradients_one_by_one(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
    """Yield each example's gradient by the trained parameters, computed alone.

    Each is (p,) float32 on the CPU, with the parameters in the order of `network.trained`.
    """
    named = dict(network.named_parameters())
    trained = [named[name] for name in network.trained]
    merged = MergedLowRank(network, settings)
    for row in range(len(examples)):
        with merged.in_use():
            # A copy, not a view. The rounding of a view depends on its place in memory, and so on its neighbours.
            loss = loss_sum(network, examples.select(torch.tensor([row])), settings)
            gradient = flat_gradient(torch.autograd.grad(loss, trained))
        yield gradient


class MergedLowRank:
    """LoRA's 1x1 convolutions, each computed as one convolution where one image is alone.

    Made for one set of weights. Gradients are those of the layers as they are, up to rounding. Nothing is merged under
    autocast, which would round a merged weight another way.
    """

    def __init__(self, network: AnyNetwork, settings: LocalSettings) -> None:
        layers = [layer for layer in network.modules() if settings.autocast == "none" and _can_be_merged(layer)]
        self._forwards = [(layer, _merged_forward(layer)) for layer in layers]

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Replace the layers' computation inside the context."""
        for layer, forward in self._forwards:
            layer.forward = forward
        try:
            yield
        finally:
            for layer, _ in self._forwards:
                # The class has its own again.
                layer.__dict__.pop("forward", None)


def _can_be_merged(layer: nn.Module) -> bool:
    base: Any = getattr(layer, "base_layer", None)
    low_rank: Any = getattr(layer, "lora_A", None)
    if not isinstance(base, nn.Conv2d) or low_rank is None or isinstance(base.padding, str):
        return False
    sizes = (base.kernel_size, base.stride, base.padding, base.groups, getattr(layer, "active_adapters", None))
    frozen = not any(parameter.requires_grad for parameter in base.parameters())
    one_by_one = sizes == ((1, 1), (1, 1), (0, 0), 1, list(low_rank)) and len(low_rank) == 1
    return one_by_one and frozen and _is_plain(layer, *low_rank)


def _is_plain(layer: Any, name: str) -> bool:
    """Return True if a LoRA layer only adds its low-rank product."""
    # Each of these would be left out by the merged layer, and gradients would be silently wrong.
    dropout = layer.lora_dropout[name] if name in layer.lora_dropout else nn.Identity()
    extras = (
        layer.disable_adapters,
        layer.merged,
        layer.use_dora.get(name, False),
        layer.lora_B[name].bias is not None,
    )
    return isinstance(dropout, nn.Identity) and not any(extras)


def _merged_forward(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    (name,) = layer.lora_A
    down, up, scaling = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    base = layer.base_layer
    with torch.no_grad():
        merged = torch.addmm(base.weight.flatten(1), up.flatten(1), down.flatten(1), alpha=scaling)

    def forward(maps: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = _MergedConvolution.apply(maps, down, up, merged, scaling)
        return out if base.bias is None else out + base.bias.view(-1, 1, 1)

    return forward


class _MergedConvolution(torch.autograd.Function):
    """Convolution of one image by W + s B A in 1x1 pixels.

    Only products of rank r are formed for the gradients by A and B.
    """

    @staticmethod
    def forward(
        ctx: Any, maps: torch.Tensor, down: torch.Tensor, up: torch.Tensor, merged: torch.Tensor, scaling: float
    ) -> torch.Tensor:
        # Below, several images would be mixed without an error.
        if len(maps) != 1:
            raise ValueError(f"a merged layer takes one image at a time, not {len(maps)}")
        pixels = maps.reshape(maps.shape[1], -1)
        ctx.save_for_backward(pixels, down, up, merged)
        ctx.scaling, ctx.shape = scaling, maps.shape
        return torch.mm(merged, pixels).view(1, -1, *maps.shape[2:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        pixels, down, up, merged = ctx.saved_tensors
        rows = gradient.reshape(len(merged), -1)
        of_up = torch.mm(rows, torch.mm(down.flatten(1), pixels).t())
        of_down = torch.mm(torch.mm(up.flatten(1).t(), rows), pixels.t())
        if ctx.scaling != 1:
            of_up, of_down = of_up * ctx.scaling, of_down * ctx.scaling
        of_maps = torch.mm(merged.t(), rows).view(ctx.shape) if ctx.needs_input_grad[0] else None
        return of_maps, of_down.view_as(down), of_up.view_as(up), None, None


def flat_gradient(parts: Sequence[torch.Tensor]) -> np.ndarray:
    """Return gradients of some tensors side by side, (p,) float32, in the processor's memory."""
    if not parts:
        return np.zeros(0, dtype=np.float32)
    return np.asarray(torch.cat([part.ravel() for part in parts]).float().cpu().numpy())


def gradients_in_slots(
    network: AnyNetwork, examples: Examples, digests: np.ndarray, settings: LocalSettings, *, slots: int
) -> Iterator[np.ndarray]:
    """Yield each example's gradient, computed in chunks of a fixed shape.

    Each is (p,) float32 on the CPU, for each example once, in an order that the digests, (n, 32) uint8, set. Memory
    grows with `slots`, the number of examples in one chunk. Results do not depend on it beyond rounding.
    """
    named = dict(network.named_parameters())
    trained = {f"network.{name}": named[name].detach() for name in network.trained}
    module = _Loss(network, settings)

    def example_loss(parameters: dict[str, torch.Tensor], example: tuple[torch.Tensor, ...]) -> torch.Tensor:
        inputs, labels, turned, turns = (part.unsqueeze(0) for part in example)
        alone = Examples(inputs, labels, turned if examples.turned is not None else None, turns)
        loss: torch.Tensor = torch.func.functional_call(module, parameters, (alone,))
        return loss

    batched = torch.func.vmap(torch.func.grad(example_loss), in_dims=(None, 0))
    for rows in slot_chunks(digests, slots):
        # An empty slot is computed with zeros and thrown away. Leaving it out would change the shape.
        chunk = examples.select(torch.from_numpy(np.maximum(rows, 0)))
        inputs = chunk.inputs.clone()
        inputs[torch.from_numpy(rows < 0)] = 0
        turned = chunk.inputs if chunk.turned is None else chunk.turned
        gradients = batched(trained, (inputs, chunk.labels, turned, chunk.turns))
        filled = torch.from_numpy(np.flatnonzero(rows >= 0)).to(inputs.device)
        yield from _on_processor(torch.cat([gradients[name].flatten(1)[filled] for name in trained], dim=1))


def _on_processor(gradients: torch.Tensor) -> np.ndarray:
    """Return gradients (k, p) as float32 in the processor's memory."""
    if gradients.device.type != "cuda":
        return np.asarray(gradients.float().cpu().numpy())
    # Into pages that the device may write itself. PyTorch keeps them for the next chunk.
    pages = torch.empty(gradients.shape, dtype=torch.float32, pin_memory=True)
    return np.asarray(pages.copy_(gradients).numpy())


def slot_chunks(digests: np.ndarray, slots: int) -> Iterator[np.ndarray]:
    """Yield chunks of row numbers, each row in the slot that its digest chooses.

    Chunks are (slots,) int64, -1 where a slot is empty. Every row comes once.
    """
    # By the digest alone. The next free slot would depend on the other images of the batch.
    slot_of = digests[:, :8].copy().view(np.uint64).ravel() % np.uint64(slots) if len(digests) else np.zeros(0)
    queues = [np.flatnonzero(slot_of == slot) for slot in range(slots)]
    for depth in range(max((len(queue) for queue in queues), default=0)):
        yield np.array([queue[depth] if depth < len(queue) else -1 for queue in queues], dtype=np.int64)


class _Loss(nn.Module):
    """Module whose forward is the loss, as `functional_call` needs it."""

    def __init__(self, network: AnyNetwork, settings: LocalSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def forward(self, examples: Examples) -> torch.Tensor:
        return loss_sum(self.network, examples, self.settings)
