"""Privacy test T1, of one round on neighbouring images under the same noise."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from common.arrays import Arrays
from common.errors import PrivacyError
from common.messages.fields import (
    CORRECT,
    NOISED_CONFIDENCE_COUNTS,
    NOISED_CONFUSION,
    NOISED_SCORE_COUNTS,
    NOISED_SUBGROUP_COUNTS,
    WRONG,
)
from common.privacy.batched_gradients import AUTO
from common.privacy.plan import SENSITIVITY_SLACK
from simulations.harness.client_harness import ClientHarness, Observation
from simulations.harness.harness_images import Images
from simulations.harness.harness_streams import ChosenBatch, Joins, ObservedStreams, RepeatedStreams
from simulations.privacy_tests.check import Check

_MOST_OF_THE_BOUND = 0.9
# Far above the grid's rounding of four sums, and far below a gradient that has moved.
_OTHERS_MOVED = 1e-3
# A model under which rounding decides the predicted class multiplies it by so much.
_AMPLIFIED = 1e9
# Name of a release of counts -> the message and the fields that bring it.
_COUNTS = {"train": ("train", (CORRECT, WRONG)), "evaluate": ("evaluate", (NOISED_CONFUSION,))}
_HISTOGRAMS = {
    "scores": ("evaluate", (NOISED_SCORE_COUNTS,)),
    "confidence": ("evaluate", (NOISED_CONFIDENCE_COUNTS,)),
}
_SUBGROUPS = {"subgroups": ("evaluate", (NOISED_SUBGROUP_COUNTS,))}


@dataclass(frozen=True)
class Canary:
    """A unit that is added.

    Attributes:
        name: Its special property.
        inputs: (k, ...) its images.
        labels: (k,) int64.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray


def neighbour_replay(harness: ClientHarness) -> Iterator[Check]:
    """Check what one unit can change in a client's answers (T1).

    Guarantee of what passes: a canary that joins the last step moves the released sum by at most C (1 + 1e-4), and
    one that joins no step does not move it. Uses of streams, fields, log lines and the number of steps stay the same.
    Some canary comes near the bound, which shows that the replay notices canaries. One held-out unit moves the counts
    by 1, and those of all classes' scores by the root of their number. The label counts that class weights follow from
    are the same in both replays, since they are a release of their own, and one trained unit moves them by 1.
    """
    last = harness.plan.steps_per_round - 1
    reach = 0.0
    for canary in canaries(harness.images):
        moved, same = _moved(harness, harness.images, canary, steps=(last,))
        bound = _bound(harness)
        reach = max(reach, moved / harness.plan.max_grad_norm)
        yield Check(f"{canary.name} moves a sum by no more than C", bool(moved <= bound), f"{moved:.6g} <= {bound:.6g}")
        yield same
    yield Check("some canary reaches the bound", reach > _MOST_OF_THE_BOUND, f"{reach:.3f} C")
    if harness.plan.sample_rate < 1:
        canary = canaries(harness.images)[0]
        moved, _ = _moved(harness, harness.images, canary, steps=())
        yield Check("a canary that joins no step moves nothing", moved == 0.0, f"{moved:.6g}")
    if harness.plan.counts is not None:
        yield from _counts(harness)
    if harness.plan.label_events():
        yield from _labels(harness)


def boundary_replay(harness: ClientHarness, *, sizes: tuple[int, ...] = (0, 63, 64)) -> Iterator[Check]:
    """Check units that start another block of the client's arithmetic (T1).

    Args:
        harness: The configuration. Its images are repeated as often as needed.
        sizes: Numbers of training units before one is added.
    """
    base, canary = harness.images.only(~harness.images.held_out), canaries(harness.images)[1]
    for size in sizes:
        rows = np.arange(size) % len(base.labels)
        images = Images.of(base.inputs[rows], base.labels[rows], held_out=0)
        moved, same = _moved(harness, images, canary, steps=(harness.plan.steps_per_round - 1,))
        fine = moved <= _bound(harness)
        yield Check(f"{size + 1} units against {size} move a sum by no more than C", fine, f"{moved:.6g}")
        yield same


def amplified_replay(harness: ClientHarness, *, sizes: tuple[int, ...] = (1, 3), draws: int = 2) -> Iterator[Check]:
    """Check that a unit changes no other unit's gradient (T1).

    The model is a hostile server's: it multiplies rounding until that decides which class is predicted. Four batches of
    the same units under the same noise show what one unit moves beside its own gradient: all, all but it, it alone, and
    none.

    Args:
        harness: The configuration, of a network.
        sizes: Numbers of other units. Few rows are where products change their rounding.
        draws: Hostile models of each size.
    """
    if harness.plan.sample_rate == 1:
        # So that the batch can be chosen.
        harness = harness.with_settings(training={"batch_size": max(1, harness.num_units // 2)})
    base, bound = harness.images.only(~harness.images.held_out), harness.plan.max_grad_norm
    for size in sizes:
        rows = np.arange(size) % len(base.labels)
        inputs = np.concatenate([base.inputs[rows], canaries(harness.images)[0].inputs[:1]])
        # Of a class that the model never predicts, so that no gradient is zero.
        images = Images.of(inputs, np.full(size + 1, len(harness.classes) - 1), held_out=0)
        last, largest, moved = np.arange(size + 1) == size, 0.0, 0.0
        for draw in range(draws):
            model = _amplifying(harness, images, draw)
            everyone, others, alone, none = (
                _first_sum(harness, images, model, chosen) for chosen in (last | True, ~last, last, last & False)
            )
            largest = max(largest, float(np.linalg.norm(everyone - others - alone + none)))
            moved = max(moved, float(np.linalg.norm(everyone - others)))
        seen = f"{largest / bound:.3g} C beside its own; it moves the sum by up to {moved / bound:.3g} C{_why(harness)}"
        fine = largest <= _OTHERS_MOVED * bound and moved > 0
        yield Check(f"a unit beside {size} changes no other one's gradient", bool(fine), seen)


def _why(harness: ClientHarness) -> str:
    named = harness.config.training.gradients
    if named == AUTO:
        return ""
    return f"; training.gradients={named!r} computes units in batches, and no epsilon covers what their rounding shows"


def _first_sum(harness: ClientHarness, images: Images, model: Arrays, chosen: np.ndarray) -> np.ndarray:
    """Return the noised sum of a round's first step over chosen units."""
    streams = ObservedStreams(RepeatedStreams(None, _uneven_counts(harness), ChosenBatch(chosen)))
    failure = harness.ask("train", images, streams=streams, arrays=model).failure
    if failure:
        raise PrivacyError(f"a client failed where it should have trained: {failure}")
    return streams.sums[0]


def _amplifying(harness: ClientHarness, images: Images, draw: int) -> Arrays:
    """Return a model under which multiplied rounding decides between two classes.

    It is the first round's model where the last layer is personal, because no server sets that.
    """
    from torch import nn

    from common.models.classifier import build_network, load_arrays

    network = build_network(harness.config, images.inputs.shape[1:], len(harness.classes))
    load_arrays(network, harness.start | harness.trainer.initial_personal())
    last = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)][-1]
    name = next(name for name, parameter in network.named_parameters() if parameter is last.weight)
    if name not in harness.start:
        return harness.start
    inputs: list[np.ndarray] = []
    last.register_forward_hook(lambda _, given, __: inputs.append(given[0].detach().double().numpy()))
    for row in range(len(images.labels)):
        network(network.prepare(images.inputs[row : row + 1]))
    features = np.concatenate(inputs)
    direction = np.random.default_rng(draw).standard_normal(features.shape[1])
    # Orthogonal to the features of all images: only the rounding of a product is left.
    direction -= np.linalg.lstsq(features, features @ direction, rcond=None)[0]
    weight = np.zeros(harness.start[name].shape, dtype=np.float32)
    weight[0] = _AMPLIFIED * direction / np.linalg.norm(features)
    weight[1] = -weight[0]
    return harness.start | {name: weight}


def _bound(harness: ClientHarness) -> float:
    return harness.plan.max_grad_norm * (1 + SENSITIVITY_SLACK) + 2 * harness.rounding()


def canaries(images: Images) -> list[Canary]:
    """Return units that may break a mechanism.

    They are long, short, zero, not finite, of a rare class, or have several images.

    Args:
        images: Images of the client, whose shape and classes the canaries take.
    """
    rng = np.random.default_rng(7)
    shape, label = images.inputs.shape[1:], images.labels[:1]
    rare = np.array([int(images.labels.max(initial=0))])
    if images.inputs.dtype == np.uint8:
        noise = rng.integers(0, 256, (3, *shape)).astype(np.uint8)
        return [
            Canary("noise", noise[:1], label),
            Canary("a black image", np.zeros((1, *shape), np.uint8), label),
            Canary("a white image of a rare class", np.full((1, *shape), 255, np.uint8), rare),
            Canary("a unit of three images", noise, np.repeat(label, 3)),
        ]
    direction = rng.standard_normal((1, *shape))
    direction = (direction / np.linalg.norm(direction)).astype(np.float32)
    units = [Canary(f"a row of norm {norm:g}", direction * np.float32(norm), label) for norm in (1, 1000, 10, 1e30)]
    units.append(Canary("a row of a rare class", direction * np.float32(1000), rare))
    units.append(Canary("a zero row", np.zeros_like(direction), label))
    for odd in (np.nan, np.inf):
        strange = direction * 1000
        strange.reshape(-1)[0] = odd
        units.append(Canary(f"a row with {odd}", strange, label))
    several = np.concatenate([direction, -1000 * direction, 10 * direction])
    units.append(Canary("a unit of three rows", several, np.concatenate([label, rare, label])))
    return units


def _moved(harness: ClientHarness, images: Images, canary: Canary, steps: tuple[int, ...]) -> tuple[float, Check]:
    """Return a canary's change of the noised sum and a check of everything else."""
    if harness.config.privacy.unit == "image":
        canary = Canary(canary.name, canary.inputs[:1], canary.labels[:1])
    joins, counts = Joins(images.num_training_units, steps), _uneven_counts(harness)
    ours, theirs = (
        harness.ask("train", each, streams=RepeatedStreams(joins, counts))
        for each in (images, images.with_unit(canary.inputs, canary.labels))
    )
    if ours.failure or theirs.failure:
        return np.inf, Check(f"{canary.name}: a client answers", passed=False, seen=f"{ours.failure} {theirs.failure}")
    moved = float(np.linalg.norm(harness.noised_sum(theirs) - harness.noised_sum(ours)))
    num_units = images.num_training_units
    before, after = _traits(ours, num_units, harness.released), _traits(theirs, num_units + 1, harness.released)
    differ = [trait for trait in before if before[trait] != after[trait]]
    return moved, Check(f"{canary.name} changes nothing else", not differ, ", ".join(differ))


def _traits(seen: Observation, num_units: int, trained: Collection[str]) -> dict[str, object]:
    """Return all of an answer that must not depend on one unit, by name."""
    return {
        "lines": seen.lines,
        "failure": seen.failure,
        "fields": _fields(seen),
        "metrics": dict(seen.reply.metric_records["metrics"]),
        "tensors that are not trained": {
            key: array.tobytes() for key, array in seen.arrays.items() if key not in trained
        },
        # A sampling stream must be asked for exactly one number a unit.
        "uses of streams": [(draw.stream, draw.size - num_units * (draw.stream == "sampling")) for draw in seen.draws],
    }


def _fields(seen: Observation) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = []
    for record, content in sorted(seen.reply.items()):
        kinds = [
            (key, getattr(value, "dtype", type(value)), getattr(value, "shape", ())) for key, value in content.items()
        ]
        fields.append((record, kinds))
    numbers = [(key, value) for key, value in seen.reply["ledger"].items() if key == "seq"]
    return [*fields, ("ledger", numbers)]


def _counts(harness: ClientHarness) -> Iterator[Check]:
    """Check that a held-out unit moves one count by 1.

    Its number of images must not matter.
    """
    image = harness.images.inputs[-1:]
    label = harness.images.labels[-1:]
    units = {"a held-out unit": (image, label)}
    if harness.config.privacy.unit == "group":
        units["a held-out unit of three rows"] = (np.repeat(image, 3, axis=0), np.array([label[0], 0, 1]))
    for name, (inputs, labels) in units.items():
        for kind, moved in counts_moved(harness, inputs, labels).items():
            # A unit votes in one histogram a class.
            votes = len(harness.classes) if kind == "scores" else 1
            fine, by = moved == float(np.sqrt(votes)), "1" if votes == 1 else f"the root of {votes}"
            yield Check(f"{name} moves the counts of {kind!r} by {by}", fine, f"L2 norm {moved:.6g}")


def counts_moved(harness: ClientHarness, inputs: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the change of the released counts by one more held-out unit.

    The noise is the same with and without the unit.

    Args:
        harness: The configuration.
        inputs: (k, ...) images of the unit.
        labels: (k,) int64.

    Returns:
        `train`, `evaluate` and, where they leave, `scores`, `confidence` and `subgroups` -> L2 norm of the change;
        infinite if a client fails.
    """
    more, rng = harness.images.with_unit(inputs, labels, held_out=True), np.random.default_rng(5)
    # A model that scores each image differently. That of round 1 gives all classes the same score.
    model = {
        name: array + 0.1 * rng.standard_normal(array.shape).astype(np.float32) for name, array in harness.start.items()
    }
    moved: dict[str, float] = {}
    config = harness.config
    more_counts = (_HISTOGRAMS if config.releases_histograms else {}) | (_SUBGROUPS if config.data.subgroups else {})
    for name, (kind, fields) in (_COUNTS | more_counts).items():
        both = (harness.images, more)
        seen = [harness.ask(kind, images, streams=RepeatedStreams(), arrays=model) for images in both]
        if any(answer.failure for answer in seen):
            moved[name] = np.inf
        else:
            ours, theirs = (answer.metric(*fields) for answer in seen)
            moved[name] = float(np.linalg.norm(theirs - ours))
    return moved


def _uneven_counts(harness: ClientHarness) -> np.ndarray:
    """Return label counts that give the classes very different weights, shape (classes,), int64."""
    return np.asarray(np.geomspace(1, 1000, len(harness.classes)).round(), dtype=np.int64)


def _labels(harness: ClientHarness) -> Iterator[Check]:
    """Check that a trained unit moves one label count by 1.

    Its number of images must not matter.
    """
    size = 1 if harness.config.privacy.unit == "image" else None
    for canary in canaries(harness.images)[-2:]:
        more = harness.images.with_unit(canary.inputs[:size], canary.labels[:size])
        counts = []
        for images in (harness.images, more):
            streams = RepeatedStreams()
            harness.ask("train", images, streams=streams)
            counts += streams.labels
        moved = float(np.linalg.norm(counts[1] - counts[0])) if len(counts) == 2 else np.inf
        yield Check(f"{canary.name} moves the label counts by 1", moved == 1.0, f"L2 norm {moved:.6g}")
