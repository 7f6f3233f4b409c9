"""T1: the same round on neighbouring images, with the same noise and sampling: what moves is the data's alone."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

from common.messages.fields import CORRECT, NOISED_CONFUSION, WRONG
from common.privacy.plan import SENSITIVITY_SLACK
from simulations.harness.client_harness import ClientHarness, Observation, Streams
from simulations.harness.harness_images import Images
from simulations.harness.harness_streams import Joins
from simulations.privacy_tests.check import Check

_MOST_OF_THE_BOUND = 0.9


@dataclass(frozen=True)
class Canary:
    """One unit that is added.

    Attributes:
        name: What is special about it.
        inputs: (k, ...) its rows.
        labels: (k,) int64.
    """

    name: str
    inputs: np.ndarray
    labels: np.ndarray


def neighbour_replay(harness: ClientHarness) -> Iterator[Check]:
    """T1 for training and counts.

    Guarantee of what passes: for each canary that joins the last step, the released sum moves by at most
    C (1 + 1e-4), and for one that joins no step not at all; streams are used alike; every field, log
    line and count of steps is the same. Some canary comes near the bound, so that the replay does see canaries.
    """
    last = harness.plan.steps_per_round - 1
    reach = 0.0
    for canary in canaries(harness.images):
        moved, same = _moved(harness, harness.images, canary, steps=(last,))
        bound = harness.plan.max_grad_norm * (1 + SENSITIVITY_SLACK) + 2 * harness.rounding()
        reach = max(reach, moved / harness.plan.max_grad_norm)
        yield Check(f"{canary.name} moves a sum by no more than C", bool(moved <= bound), f"{moved:.6g} <= {bound:.6g}")
        yield same
    yield Check("some canary reaches the bound", reach > _MOST_OF_THE_BOUND, f"{reach:.3f} C")
    if harness.plan.sample_rate < 1:
        canary = canaries(harness.images)[0]
        moved, _ = _moved(harness, harness.images, canary, steps=())
        yield Check("a canary that joins no step moves nothing", moved == 0.0, f"{moved:.6g}")
    if harness.plan.counts is not None:
        yield from _votes(harness)


def boundary_replay(harness: ClientHarness, *, sizes: tuple[int, ...] = (0, 63, 64)) -> Iterator[Check]:
    """T1 where one unit more starts another block of the client's own arithmetic.

    Args:
        harness: Images of it are repeated until there are so many.
        sizes: Training units before the canary comes.
    """
    base, canary = harness.images.only(~harness.images.held_out), canaries(harness.images)[1]
    for size in sizes:
        rows = np.arange(size) % len(base.labels)
        images = Images.of(base.inputs[rows], base.labels[rows], held_out=0)
        moved, same = _moved(harness, images, canary, steps=(harness.plan.steps_per_round - 1,))
        bound = harness.plan.max_grad_norm * (1 + SENSITIVITY_SLACK) + 2 * harness.rounding()
        yield Check(f"{size + 1} units against {size} move a sum by no more than C", moved <= bound, f"{moved:.6g}")
        yield same


def canaries(images: Images) -> list[Canary]:
    """Units that a mechanism may trip over: long, short, zero, not finite, of a rare class, of several images."""
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
    found = [Canary(f"a row of norm {norm:g}", direction * np.float32(norm), label) for norm in (1, 1000, 10, 1e30)]
    found.append(Canary("a row of a rare class", direction * np.float32(1000), rare))
    found.append(Canary("a zero row", np.zeros_like(direction), label))
    for odd in (np.nan, np.inf):
        strange = direction * 1000
        strange.reshape(-1)[0] = odd
        found.append(Canary(f"a row with {odd}", strange, label))
    several = np.concatenate([direction, -1000 * direction, 10 * direction])
    found.append(Canary("a unit of three rows", several, np.concatenate([label, rare, label])))
    return found


def _moved(harness: ClientHarness, images: Images, canary: Canary, steps: tuple[int, ...]) -> tuple[float, Check]:
    """How far a canary moves what is released, and whether all else is the same."""
    if harness.config.privacy.unit == "image":
        canary = Canary(canary.name, canary.inputs[:1], canary.labels[:1])
    joins = Joins(images.num_training_units, steps)
    ours, theirs = (
        harness.ask("train", each, streams=Streams.repeated(joins))
        for each in (images, images.with_unit(canary.inputs, canary.labels))
    )
    if ours.failure or theirs.failure:
        return np.inf, Check(f"{canary.name}: a client answers", passed=False, seen=f"{ours.failure} {theirs.failure}")
    moved = float(np.linalg.norm(harness.noised_sum(theirs) - harness.noised_sum(ours)))
    return moved, _alike(canary.name, ours, theirs, images.num_training_units, harness.start)


def _alike(name: str, ours: Observation, theirs: Observation, num_units: int, trained: Collection[str]) -> Check:
    """Everything that must not depend on one unit: fields, types, other tensors, log lines, uses of streams."""
    differ = [what for what, a, b in _traits(ours, theirs, num_units, trained) if a != b]
    return Check(f"{name} changes nothing else", not differ, ", ".join(differ))


def _traits(
    ours: Observation, theirs: Observation, num_units: int, trained: Collection[str]
) -> Iterator[tuple[str, object, object]]:
    for what in ("lines", "failure"):
        yield what, getattr(ours, what), getattr(theirs, what)
    yield "fields", _fields(ours), _fields(theirs)
    metrics = [dict(seen.reply.metric_records["metrics"]) for seen in (ours, theirs)]
    yield "metrics", metrics[0], metrics[1]
    others = [
        {key: array.tobytes() for key, array in seen.arrays.items() if key not in trained} for seen in (ours, theirs)
    ]
    yield "tensors that are not trained", others[0], others[1]
    yield "uses of streams", _uses(ours, num_units), _uses(theirs, num_units + 1)


def _fields(seen: Observation) -> list[tuple[str, object]]:
    fields: list[tuple[str, object]] = []
    for record, content in sorted(seen.reply.items()):
        kinds = [
            (key, getattr(value, "dtype", type(value)), getattr(value, "shape", ())) for key, value in content.items()
        ]
        fields.append((record, kinds))
    numbers = [(key, value) for key, value in seen.reply["ledger"].items() if key == "seq"]
    return [*fields, ("ledger", numbers)]


def _uses(seen: Observation, num_units: int) -> list[tuple[str, int]]:
    """Each use of a stream; a sampling stream must be asked for exactly one number a unit."""
    return [(draw.stream, draw.size - num_units * (draw.stream == "sampling")) for draw in seen.draws]


def _votes(harness: ClientHarness) -> Iterator[Check]:
    """A held-out unit, of one row or of several, moves one count by one."""
    image = harness.images.inputs[-1:]
    label = harness.images.labels[-1:]
    units = {"a held-out unit": (image, label)}
    if harness.config.privacy.unit == "group":
        units["a held-out unit of three rows"] = (np.repeat(image, 3, axis=0), np.array([label[0], 0, 1]))
    for name, (inputs, labels) in units.items():
        for kind, fields in (("train", (CORRECT, WRONG)), ("evaluate", (NOISED_CONFUSION,))):
            moved = counts_moved(harness, inputs, labels, kind=kind, fields=fields)
            yield Check(f"{name} moves the counts of {kind!r} by 1", moved == 1.0, f"L2 norm {moved:.6g}")


def counts_moved(
    harness: ClientHarness, inputs: np.ndarray, labels: np.ndarray, *, kind: str, fields: tuple[str, ...]
) -> float:
    """L2 norm of what one more held-out unit changes in released counts, the noise being the same.

    Args:
        harness: The configuration.
        inputs: (k, ...) rows of the unit.
        labels: (k,) int64.
        kind: `train` or `evaluate`.
        fields: Names of the counts.
    """
    more = harness.images.with_unit(inputs, labels, held_out=True)
    seen = [harness.ask(kind, images, streams=Streams.repeated()) for images in (harness.images, more)]
    if any(one.failure for one in seen):
        return np.inf
    ours, theirs = (one.metric(*fields) for one in seen)
    return float(np.linalg.norm(theirs - ours))
