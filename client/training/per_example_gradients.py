"""Per-example gradients of a network, so that no example can touch another one's.

Two providers. One image at a time is exact by construction. In chunks,
`torch.func` computes many at once: each image has a *slot* in the chunk that its
own digest chooses, and chunks have a fixed shape, so that the arithmetic an image
goes through does not depend on which other images were drawn. A row of a batched
product is rounded by its position and the batch's shape; weights chosen by a
hostile server could blow a difference in rounding up beyond the clip bound.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork

_AGREEMENT = 1e-3


class Examples:
    """Prepared examples of one batch.

    Attributes:
        inputs: (n, ...) prepared by the network.
        labels: (n,) int64.
        turned: (n, ...) turned inputs, or None without the auxiliary task.
        turns: (n,) int64; zeros without the task.
    """

    def __init__(
        self, inputs: torch.Tensor, labels: torch.Tensor, turned: torch.Tensor | None, turns: torch.Tensor
    ) -> None:
        self.inputs, self.labels, self.turned, self.turns = inputs, labels, turned, turns

    def select(self, rows: torch.Tensor | slice) -> "Examples":
        """Some of the examples."""
        turned = None if self.turned is None else self.turned[rows]
        return Examples(self.inputs[rows], self.labels[rows], turned, self.turns[rows])

    def __len__(self) -> int:
        return len(self.labels)


def loss_sum(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> torch.Tensor:
    """Sum of the examples' losses: cross-entropy, and the weighted auxiliary task's."""
    device = examples.inputs.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=settings.autocast == "bfloat16"):
        logits = network(examples.inputs)
        turned = None if examples.turned is None else network.rotation_logits(examples.turned)  # type: ignore[operator]
    loss = nn.functional.cross_entropy(
        logits.float(), examples.labels, reduction="sum", label_smoothing=settings.label_smoothing
    )
    if turned is not None:
        loss = loss + settings.rotation_weight * nn.functional.cross_entropy(
            turned.float(), examples.turns, reduction="sum"
        )
    return loss


def gradients_one_by_one(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
    """Each example's gradient by the trained parameters.

    Yields:
        (p,) float32, the parameters side by side in `network.trained`'s order.
    """
    named = dict(network.named_parameters())
    trained = [named[name] for name in network.trained]
    for row in range(len(examples)):
        # A copy, not a view: how a row is rounded would depend on its place in memory, and so on its neighbours.
        loss = loss_sum(network, examples.select(torch.tensor([row])), settings)
        parts = torch.autograd.grad(loss, trained)
        yield np.asarray(torch.cat([part.ravel() for part in parts]).float().cpu().numpy())


def gradients_in_slots(
    network: AnyNetwork, examples: Examples, digests: np.ndarray, settings: LocalSettings, *, slots: int
) -> Iterator[np.ndarray]:
    """The same gradients from chunks of a fixed shape, in an order that the digests set.

    Args:
        network: The model.
        examples: n of them.
        digests: (n, 32) uint8; an image's own digest chooses its slot.
        settings: The loss.
        slots: Examples in one chunk; memory grows with it, results do not depend on it
            beyond rounding.

    Yields:
        (p,) float32 for each example.
    """
    named = dict(network.named_parameters())
    trained = {f"network.{name}": named[name].detach() for name in network.trained}

    whole = _Loss(network, settings)

    def one(parameters: dict[str, torch.Tensor], example: tuple[torch.Tensor, ...]) -> torch.Tensor:
        inputs, labels, turned, turns = (part.unsqueeze(0) for part in example)
        alone = Examples(inputs, labels, turned if examples.turned is not None else None, turns)
        loss: torch.Tensor = torch.func.functional_call(whole, parameters, (alone,))
        return loss

    batched = torch.func.vmap(torch.func.grad(one), in_dims=(None, 0))
    for rows in slot_chunks(digests, slots):
        held = torch.from_numpy(np.maximum(rows, 0))
        chunk = examples.select(held)
        empty = torch.from_numpy(rows < 0)
        inputs = chunk.inputs.clone()
        inputs[empty] = 0
        turned = chunk.inputs if chunk.turned is None else chunk.turned
        found = batched(trained, (inputs, chunk.labels, turned, chunk.turns))
        flat = torch.cat([found[name].flatten(1) for name in trained], dim=1).float().cpu().numpy()
        for slot in np.flatnonzero(rows >= 0):
            yield flat[slot]


def slot_chunks(digests: np.ndarray, slots: int) -> Iterator[np.ndarray]:
    """Spread examples over chunks so that each always sits in the slot its digest names.

    Yields:
        (slots,) int64 row numbers, -1 where a slot is empty; every row once.
    """
    slot_of = digests[:, :8].copy().view(np.uint64).ravel() % np.uint64(slots) if len(digests) else np.zeros(0)
    queues = [np.flatnonzero(slot_of == slot) for slot in range(slots)]
    for depth in range(max((len(queue) for queue in queues), default=0)):
        yield np.array([queue[depth] if depth < len(queue) else -1 for queue in queues], dtype=np.int64)


def providers_agree(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> bool:
    """Whether both providers give the same gradients on made-up images: a self-check before private data is touched."""
    rng = np.random.default_rng(0)
    made_up = rng.integers(0, 256, (2, *input_shape)).astype(np.uint8 if len(input_shape) == 3 else np.float32)
    inputs = network.prepare(made_up).to(next(network.parameters()).device)
    labels = torch.zeros(2, dtype=torch.int64, device=inputs.device)
    turned = inputs.flip(-1) if settings.rotation_weight else None
    examples = Examples(inputs, labels, turned, labels.clone())
    digests = np.array([[0] * 32, [1] * 32], dtype=np.uint8)
    try:
        chunked = np.stack(list(gradients_in_slots(network, examples, digests, settings, slots=2)))
    except RuntimeError:
        return False
    alone = np.stack(list(gradients_one_by_one(network, examples, settings)))
    return bool(np.linalg.norm(chunked - alone) <= _AGREEMENT * np.linalg.norm(alone))


class _Loss(nn.Module):
    """The loss as a module's forward, which is what `functional_call` wants."""

    def __init__(self, network: AnyNetwork, settings: LocalSettings) -> None:
        super().__init__()
        self.network = network
        self.settings = settings

    def forward(self, examples: Examples) -> torch.Tensor:
        return loss_sum(self.network, examples, self.settings)
