"""Per-example gradients of many images in one pass, by rules for layers.

The network runs on a chunk of images, and each trained parameter appears once for every slot of the chunk. So its
gradient by its slot's copy is that of one image. It costs little more than plain training, where `torch.func` repeats
a layer's product for every image.

A hostile server could choose weights that amplify a difference in rounding beyond the clip bound, so an image's
gradient must not depend on which other images were drawn:

* The shape is always that of a full chunk, and empty slots hold zeros. One thread computes, and torch's memory starts
  on 64 bytes. Which operations a kernel does for a slot, and in which order, then depends on the slot alone.
* No operation adds values of two slots. Those of a network with frozen statistics keep examples apart, and the rules
  here either go by element, or reduce within one slot, or call the kernel of one image on one slot.
* All slots do the same operations in the same order, so it does not matter which one an image gets. `slots_are_equal`
  checks that: the order is fixed, and another order would show in the last bits of a made-up image's gradient.

A layer without a rule is an error, and the caller takes one image at a time.
"""

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch

from client.training.gradients.slot_rules import SlotCopies, SlotRules
from client.training.per_example_gradients import Examples, gradients_one_by_one, loss_sum
from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork

_AGREEMENT = 1e-4
# From 16 images on, torch takes its fast kernels for convolutions of one pixel.
_MOST_SLOTS = 16
_FEWEST_SLOTS = 4
# Gradients of a chunk take at most 128 MiB.
_MOST_VALUES = 1 << 25


def slots_of(network: AnyNetwork) -> int:
    """Return how many images a chunk takes, by the number of trained values.

    It is 1 where so few would fit that chunks are not worth it.
    """
    named = dict(network.named_parameters())
    slots, values = _MOST_SLOTS, sum(named[name].numel() for name in network.trained)
    while slots * values > _MOST_VALUES:
        slots //= 2
    return slots if slots >= _FEWEST_SLOTS else 1


class BatchedGradients:
    """A provider of each example's gradient, computed in chunks of a fixed shape.

    Args:
        network: Its values may change between calls.
        settings: Settings that shape the loss.
        slots: Examples in a chunk; memory grows with it.
    """

    def __init__(self, network: AnyNetwork, settings: LocalSettings, slots: int) -> None:
        self._network = network
        self._settings = settings
        self._slots = slots
        named = dict(network.named_parameters())
        trained = [named[name] for name in network.trained]
        ends = np.cumsum([0, *(parameter.numel() for parameter in trained)]).tolist()
        # One buffer for all chunks: fresh memory of this size costs more time than what is written to it.
        self._flat = torch.zeros((slots, ends[-1]), dtype=trained[0].dtype)
        self._copies = {
            id(parameter): SlotCopies(parameter, self._flat[:, start:end])
            for parameter, start, end in zip(trained, ends, ends[1:], strict=False)
        }

    def __call__(self, examples: Examples) -> Iterator[np.ndarray]:
        """Yield gradients, (p,) on the CPU, in the order of the examples.

        One is valid until the next is asked for.

        Raises:
            NoRuleError: A trained parameter is used in a way that has no rule.
        """
        for first in range(0, len(examples), self._slots):
            count = min(self._slots, len(examples) - first)
            yield from self.chunk(examples.select(torch.arange(first, first + count)))[:count]

    def chunk(self, examples: Examples) -> np.ndarray:
        """Return a chunk's gradients, (slots, p), with those of empty slots."""
        # Leaving empty slots out would change the shape, and with it the arithmetic of the others.
        full = Examples(
            _filled(examples.inputs, self._slots),
            _filled(examples.labels, self._slots),
            None if examples.turned is None else _filled(examples.turned, self._slots),
            _filled(examples.turns, self._slots),
        )
        self._flat.zero_()
        with SlotRules(self._copies, self._slots):
            loss = loss_sum(self._network, full, self._settings)
        leaves = [copies.leaf for copies in self._copies.values()]
        # None for a leaf whose gradient its rule has already put into the buffer.
        for copies, gradient in zip(
            self._copies.values(), torch.autograd.grad(loss, leaves, allow_unused=True), strict=True
        ):
            if gradient is not None:
                copies.gradient += gradient
        return np.asarray(self._flat.numpy())


def _filled(rows: torch.Tensor, slots: int) -> torch.Tensor:
    full = rows.new_zeros((slots, *rows.shape[1:]))
    full[: len(rows)] = rows
    return full


def batched_is_right(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings, *, slots: int) -> bool:
    """Compare batched gradients with one image at a time and among slots."""
    # A copy, since the outcome must not depend on the weights of a round, which may be zeros or not finite.
    made_up = deepcopy(network)
    named, generator = dict(made_up.named_parameters()), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in made_up.trained:
            noise = torch.randn(named[name].shape, generator=generator)
            named[name].nan_to_num_(0.0, 0.0, 0.0).clamp_(-100.0, 100.0).add_(noise, alpha=0.02)
    try:
        return slots_are_equal(made_up, input_shape, settings, slots=slots) and _agree(
            made_up.double(), input_shape, settings, slots
        )
    # A use without a rule, or a rule's layer with other arguments.
    except (RuntimeError, TypeError):
        return False


def slots_are_equal(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings, *, slots: int) -> bool:
    """Compare to the bit a made-up image's gradients in all slots, in any company."""
    provide, image = BatchedGradients(network, settings, slots), _made_up(network, input_shape, settings, 1)
    wanted = provide.chunk(image)[0].copy()
    # Zeros and numbers that are not finite would hide a difference.
    if not (np.isfinite(wanted).all() and wanted.any()):
        return False
    everywhere = image.select(torch.zeros(slots, dtype=torch.int64))
    even = np.arange(slots) % 2 == 0
    for kept in (even | True, even, ~even):
        company = everywhere.select(slice(None))
        company.inputs = company.inputs.clone()
        # Neighbours that would spoil whatever an operation mixes with them.
        company.inputs[torch.from_numpy(~kept)] = torch.nan
        if any(not np.array_equal(row, wanted) for row in provide.chunk(company)[kept]):
            return False
    return True


def _agree(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings, slots: int) -> bool:
    # In float64, where rounding cannot flip an activation. So the outcome does not depend on a round's weights.
    examples = _made_up(network, input_shape, settings, 2)
    batched = BatchedGradients(network, settings, slots).chunk(examples)[:2]
    alone = np.stack(list(gradients_one_by_one(network, examples, settings)))
    return bool(np.linalg.norm(batched - alone) <= _AGREEMENT * np.linalg.norm(alone))


def _made_up(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings, rows: int) -> Examples:
    # Never private images, because the outcome shows in a log and in the time that training takes.
    kind = np.uint8 if len(input_shape) == 3 else np.float32
    images = np.random.default_rng(0).integers(0, 256, (rows, *input_shape)).astype(kind)
    inputs, dtype = network.prepare(images), next(network.parameters()).dtype
    inputs = inputs.to(dtype)
    with torch.no_grad():
        # The least likely class, since the gradient of a sure and right prediction is all rounding.
        labels = network(inputs).argmin(dim=1)
    turned = inputs.flip(-1).contiguous() if settings.rotation_weight else None
    return Examples(inputs, labels, turned, torch.zeros(rows, dtype=torch.int64))
