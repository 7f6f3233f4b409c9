"""Local training of a network with torch, without privacy and with DP-SGD."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from client.training.augmentation import augment, quarter_turns, view_seeds
from client.training.dp_sgd import ClippedSum, PrivateStreams, UnitRows, check_summed, private_steps
from client.training.gradients.gradient_check import providers_agree
from client.training.gradients.outer_gradients import SplitGradient, SplitSum, outer_weights, split_gradients
from client.training.gradients.per_example_gradients import (
    Examples,
    gradients_in_slots,
    gradients_one_by_one,
    loss_sum,
)
from client.training.gradients.shared_calls import SharedCalls, shared_calls
from client.training.head_sgd import shuffled_batches
from client.training.round_settings import LocalSettings
from common.arrays import Arrays, from_vector, shapes_of, to_vector
from common.models.classifier import AnyNetwork, CnnNetwork, load_arrays, trained_arrays
from common.privacy.batched_gradients import OPACUS
from common.privacy.plan import PrivacyPlan

_log = logging.getLogger("bract.client")
_CHUNK = 64
_SLOTS_ON_ACCELERATOR = 16
_MOST_CHECKS = 16
# By network, and weakly: a network of gigabytes must not live on for the sake of its checks.
_CHECKED: WeakKeyDictionary[AnyNetwork, dict[tuple[Any, ...], Any]] = WeakKeyDictionary()


class TrainingSet:
    """A client's training images or their features in one round.

    Images are (n, side, side, channels) uint8, or (n, d) features; n may be 0. Labels are (n,) int64, content digests
    (n, 32) uint8. Images with equal `units`, (n,) int64, are clipped together under DP; each image alone if None.
    """

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, digests: np.ndarray, units: np.ndarray | None = None
    ) -> None:
        self.images, self.labels, self.digests = images, labels, digests
        self.units = np.arange(len(labels)) if units is None else units

    def batch(self, network: AnyNetwork, rows: np.ndarray, settings: LocalSettings, *, step: int) -> Examples:
        """Return the examples of some rows, augmented and on the network's device."""
        device = next(network.parameters()).device
        seeds = np.zeros(len(rows), dtype=np.int64)
        if settings.augmentation or settings.rotation_weight:
            seeds = view_seeds(self.digests[rows], stream=settings.stream, step=step)
        images = augment(self.images[rows], seeds, settings.augmentation)
        turned, turns = None, np.zeros(len(rows), dtype=np.int64)
        if settings.rotation_weight:
            turned_images, turns = quarter_turns(images, seeds) if len(rows) else (images, turns)
            turned = network.prepare(turned_images).to(device)
        return Examples(
            network.prepare(images).to(device),
            torch.from_numpy(self.labels[rows]).to(device),
            turned,
            torch.from_numpy(turns).to(device),
        )


def train_network(
    network: AnyNetwork, arrays: Arrays, training_set: TrainingSet, settings: LocalSettings, rng: np.random.Generator
) -> Arrays:
    """Train a network for one round of mini-batches.

    The network's trained parameters are overwritten. `arrays` holds their incoming values and is left untouched. The
    new arrays are float32. The public stream `rng` orders the batches.
    """
    load_arrays(network, arrays)
    with _channels_last(network):
        _descend(network, training_set, settings, shuffled_batches(len(training_set.labels), settings, rng))
    return trained_arrays(network)


@contextmanager
def _channels_last(network: AnyNetwork, *, wanted: bool = True) -> Iterator[None]:
    """Compute with the small network's convolutions in the layout that is faster on CPUs."""
    if not wanted or not isinstance(network, CnnNetwork) or next(network.parameters()).device.type != "cpu":
        yield
        return
    filters = [parameter for parameter in network.parameters() if parameter.ndim == 4]
    try:
        for parameter in filters:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        network.channels_last = True
        yield
    finally:
        network.channels_last = False
        # Predictions round by layout, and must not depend on what was trained before.
        for parameter in filters:
            parameter.data = parameter.data.contiguous()


def _descend(
    network: AnyNetwork, training_set: TrainingSet, settings: LocalSettings, batches: list[np.ndarray]
) -> None:
    """Take one step on each batch, in place."""
    named = dict(network.named_parameters())
    trained = [named[name] for name in network.trained]
    start = [parameter.detach().clone() for parameter in trained] if settings.proximal_mu else []
    optimizer = _optimizer(trained, settings)
    for step, batch in enumerate(batches):
        optimizer.zero_grad()
        physical = settings.physical_batch_size or len(batch)
        for first in range(0, len(batch), physical):
            examples = training_set.batch(network, batch[first : first + physical], settings, step=step)
            (loss_sum(network, examples, settings) / len(batch)).backward()  # type: ignore[no-untyped-call]
        for parameter, origin in zip(trained, start, strict=False):
            if parameter.grad is not None:
                parameter.grad.add_(parameter.detach() - origin, alpha=settings.proximal_mu)
        optimizer.step()


class _PlainSgd:
    """SGD by `torch.optim.SGD`'s arithmetic, without its bookkeeping."""

    def __init__(self, trained: list[torch.nn.Parameter], learning_rate: float) -> None:
        self._trained, self._learning_rate = trained, learning_rate

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self._trained:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Move each parameter against its gradient."""
        for parameter in self._trained:
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-self._learning_rate)


def _optimizer(trained: list[torch.nn.Parameter], settings: LocalSettings) -> torch.optim.Optimizer | _PlainSgd:
    if settings.optimizer == "adamw":
        return torch.optim.AdamW(trained, lr=settings.learning_rate, weight_decay=settings.weight_decay)
    # On an accelerator torch's own step moves all parameters in one call.
    if not (settings.momentum or settings.weight_decay) and all(part.device.type == "cpu" for part in trained):
        return _PlainSgd(trained, settings.learning_rate)
    return torch.optim.SGD(
        trained, lr=settings.learning_rate, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def train_network_privately(
    network: AnyNetwork,
    arrays: Arrays,
    training_set: TrainingSet,
    plan: PrivacyPlan,
    settings: LocalSettings,
    streams: PrivateStreams,
) -> Arrays:
    """Train a network for one round of DP-SGD.

    Guarantee: each unit's gradient is clipped once, over all trained tensors together. Arrays are treated as in
    `train_network`. `streams` must be fresh, for this message alone.
    """
    members = UnitRows(training_set.units)
    # Checks of gradients, too, must see the layout that they are computed in.
    with _channels_last(network, wanted=_takes_one_by_one(network, settings)):
        clipped = _clipped_sums(network, arrays, training_set, members, plan, settings)
        weights = private_steps(to_vector(arrays, arrays), members.count, clipped, plan, settings, streams)
    return _unflatten(weights, arrays)


def network_gradient_sum(
    network: AnyNetwork, arrays: Arrays, training_set: TrainingSet, plan: PrivacyPlan, settings: LocalSettings
) -> np.ndarray:
    """Return the clipped sum of a network's gradients over all units.

    The result is (p,) float64, tensors in the order of `arrays`, and has no noise: it may leave only with this client's
    share of it, in a secure sum. Arguments are as in `train_network_privately`.

    Raises:
        PrivacyError: The plan is not for one sum a round with every unit in it, or its noise is not in shares.
    """
    check_summed(plan)
    members = UnitRows(training_set.units)
    with _channels_last(network, wanted=_takes_one_by_one(network, settings)):
        clipped = _clipped_sums(network, arrays, training_set, members, plan, settings)
        return clipped(to_vector(arrays, arrays), np.arange(members.count))


def _clipped_sums(
    network: AnyNetwork,
    arrays: Arrays,
    training_set: TrainingSet,
    members: UnitRows,
    plan: PrivacyPlan,
    settings: LocalSettings,
) -> ClippedSum:
    """Return how clipped gradients are summed over a batch of units."""
    shapes = shapes_of(arrays)
    weights_apart = () if members.grouped else _weights_apart(network, training_set.images.shape[1:], settings)
    provide = _provider(network, training_set.images.shape[1:], settings, weights_apart)
    steps = iter(range(plan.steps_per_round))

    def clipped(weights: np.ndarray, batch: np.ndarray) -> np.ndarray:
        load_arrays(network, _unflatten(weights, arrays))
        step, total = next(steps), SplitSum(shapes, weights_apart, max_grad_norm=plan.max_grad_norm)
        for gradient in _unit_gradients(network, provide, training_set, members, batch, settings, step):
            # Each unit by itself and in float64. Clipping a sum would not bound what one unit adds.
            total.add(gradient)
        return total.total()

    return clipped


Provider = Callable[[Examples, np.ndarray], Iterator[SplitGradient]]


def _unit_gradients(
    network: AnyNetwork,
    provide: Provider,
    training_set: TrainingSet,
    members: UnitRows,
    batch: np.ndarray,
    settings: LocalSettings,
    step: int,
) -> Iterator[SplitGradient]:
    """Yield each unit's gradient, the mean over its images in float64."""

    def gradients(rows: np.ndarray) -> Iterator[SplitGradient]:
        for first in range(0, len(rows), _CHUNK):
            part = rows[first : first + _CHUNK]
            examples = training_set.batch(network, part, settings, step=step)
            yield from provide(examples, training_set.digests[part])

    rows = members.rows(batch)
    if not members.grouped:
        yield from gradients(rows)
        return
    unit_of = members.units(rows)
    for unit in np.unique(unit_of):
        own = rows[unit_of == unit]
        # A warning about a non-finite gradient would reveal that its unit was in this batch.
        with np.errstate(over="ignore", invalid="ignore"):
            # Averaged before clipping, so that the unit as a whole is bounded and not each image.
            mean = sum(gradient.flat.astype(np.float64) for gradient in gradients(own)) / len(own)
        yield SplitGradient.undivided(np.asarray(mean))


def _provider(
    network: AnyNetwork,
    input_shape: tuple[int, ...],
    settings: LocalSettings,
    weights_apart: tuple[str, ...],
) -> Provider:
    """Choose how per-example gradients are computed on the network's device.

    On a CPU images share the calls of small layers, and one image at a time is as fast for large ones. On an
    accelerator chunks are faster. Whatever is faster is used only if it gives the same gradients.
    """
    if settings.gradients == OPACUS:
        # Loaded only for runs that name it. `Trainer` has checked it on this network.
        from client.training.gradients.opacus_gradients import opacus_gradients

        return lambda examples, _: map(SplitGradient.undivided, opacus_gradients(network, examples, settings))
    slots = _slots(network, settings)
    # Not every layer gives the same gradients under `torch.func`. A network that fails is never chunked.
    if slots > 1 and not _chunks_are_right(network, input_shape, _for_checks(settings)):
        _log.warning("gradients in chunks disagree with one at a time for this network: taking one at a time")
        slots = 1
    if slots > 1:
        return lambda examples, digests: map(
            SplitGradient.undivided, gradients_in_slots(network, examples, digests, settings, slots=slots)
        )
    if weights_apart:
        shared = _shared_calls(network, input_shape, _for_checks(settings), weights_apart)
        if shared is not None:
            return lambda examples, _: shared.gradients(network, examples, settings)
        return lambda examples, _: split_gradients(network, examples, settings, weights_apart)
    return lambda examples, _: map(SplitGradient.undivided, gradients_one_by_one(network, examples, settings))


def _slots(network: AnyNetwork, settings: LocalSettings) -> int:
    on_cpu = next(network.parameters()).device.type == "cpu"
    return settings.physical_batch_size or (1 if on_cpu else _SLOTS_ON_ACCELERATOR)


def _takes_one_by_one(network: AnyNetwork, settings: LocalSettings) -> bool:
    # Opacus has silently wrong gradients of convolutions in channels_last.
    return settings.gradients != OPACUS and _slots(network, settings) == 1


def _for_checks(settings: LocalSettings) -> LocalSettings:
    # Equal in all rounds, so that one check serves them.
    return replace(settings, learning_rate=0.0, stream=b"")


def _weights_apart(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> tuple[str, ...]:
    """Return the weights whose gradients are kept as outer products."""
    if not _takes_one_by_one(network, settings) or next(network.parameters()).device.type != "cpu":
        return ()
    return _checked_outer_weights(network, input_shape, _for_checks(settings))


def _checked_outer_weights(
    network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings
) -> tuple[str, ...]:
    found: tuple[str, ...] = _checked_once(outer_weights, network, input_shape, settings)
    return found


def _shared_calls(
    network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings, apart: tuple[str, ...]
) -> SharedCalls | None:
    # A client has one thread. Before PyTorch is told so, nothing may be remembered.
    if torch.get_num_threads() > 1:
        return None
    found: SharedCalls | None = _checked_once(shared_calls, network, input_shape, settings, apart)
    return found


def _chunks_are_right(network: AnyNetwork, input_shape: tuple[int, ...], settings: LocalSettings) -> bool:
    return bool(_checked_once(providers_agree, network, input_shape, settings))


def _checked_once(check: Callable[..., Any], network: AnyNetwork, *key: Any) -> Any:
    """Return what a check says of a network, computed once while the network lives."""
    known = _CHECKED.setdefault(network, {})
    if (check, *key) in known:
        return known[check, *key]
    # Settings hold class weights, of which each client may have its own.
    if len(known) >= _MOST_CHECKS:
        known.clear()
    found = known[check, *key] = check(network, *key)
    return found


def network_logits(
    network: AnyNetwork, arrays: Arrays, images: np.ndarray, settings: LocalSettings, *, apart: bool = False
) -> np.ndarray:
    """Return the logits of images or features, (n, classes) float32.

    With `apart` each image is computed alone, so that none depends on another one.
    """
    # Rounding differs with the other rows of a chunk, and a noised count must not depend on them.
    size = 1 if apart else _CHUNK
    load_arrays(network, arrays)
    device = next(network.parameters()).device
    chunks: list[np.ndarray] = []
    with (
        torch.inference_mode(),
        torch.autocast(device.type, dtype=torch.bfloat16, enabled=settings.autocast == "bfloat16"),
    ):
        # At least one chunk, because an empty result must have the right number of columns.
        for first in range(0, max(1, len(images)), size):
            inputs = network.prepare(images[first : first + size]).to(device)
            chunks.append(network(inputs).float().cpu().numpy())
    return np.concatenate(chunks)


def _unflatten(weights: np.ndarray, like: Arrays) -> Arrays:
    return {name: part.astype(np.float32) for name, part in from_vector(weights, shapes_of(like)).items()}
