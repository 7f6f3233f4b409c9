"""T5: what the ledger says was spent is what an independent account of the same releases comes to."""

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism

from common.ledger.audit.audit import audit_ledger
from common.ledger.data_holder import close_below
from common.messages.fields import CORRECT, NOISED_CONFUSION, WRONG
from common.privacy.accounting import spent_by
from common.privacy.events import CountsEvent, DpSgdEvent, Event
from common.privacy.plan import PrivacyPlan
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.neighbouring_data import counts_moved

_NEVER_BELOW = 1e-9
_ABOVE = 2e-3
_ALL_ELSE_GOES = """
tunings = ["head", "bias", "norm", "lora", "last", "full"]
units = ["image", "group"]
metrics = ["none", "private", "exact"]
min-noise-multiplier = 0.0
"""
_GAUSSIAN_AT_ONE = 4.377  # epsilon of one Gaussian of noise 1 at delta 1e-5, worked out in closed form


def accountant(harness: ClientHarness) -> Iterator[Check]:
    """T5 for one configuration.

    Guarantee of what passes: over two runs, of which the second was never finished, the ledger's epsilon is that of
    both whole plans, between the independent figure and 0.2 % above it, also after the ledger was closed and opened
    again; each answered request is one charge of one round; counts move by what they are accounted at.
    """
    folder, plan = "accountant", harness.plan
    runs = [f"{number:032x}" for number in range(2)]
    rounds = plan.num_rounds
    for run, count in zip(runs, (rounds, 1), strict=True):
        for server_round in range(1, count + 1):
            harness.ask("train", harness.images, run=run, ledger=folder, server_round=server_round)
    harness.ask("evaluate", harness.images, run=runs[0], ledger=folder)
    file = harness.folder / folder / "ledgers" / "bench.sqlite"
    expected = max(_independent(plan, 2), _independent_counts(plan, 2))
    yield from _spent(file, expected, "two runs over the same images")
    yield from _caps(harness, folder, max(_independent(plan, 3), _independent_counts(plan, 3)))
    close_below(harness.folder / folder)
    yield from _spent(file, expected, "two runs, after the ledger was opened again")
    yield from _charges(file, plan, rounds + 1)
    yield from _single_facts(plan)
    yield from _sensitivity(harness)


def _spent(file: Path, expected: float, what: str) -> Iterator[Check]:
    report = audit_ledger(file, [])
    found = report.worst.spent.pld if report.worst else 0.0
    fine = expected - _NEVER_BELOW <= found <= expected * (1 + _ABOVE) and not report.remarks.doubts
    yield Check(f"{what} are charged in full", fine, f"epsilon {found:.5f}, independently {expected:.5f}")


def _caps(harness: ClientHarness, folder: str, expected: float) -> Iterator[Check]:
    """A policy lets a third run pass if all three fit, and not if they do not: what was spent is not forgotten.

    The third run is over one image more: what was spent belongs to images, not to the folder they lie in.
    """
    images = harness.images.with_unit(harness.images.inputs[:1], harness.images.labels[:1])
    for factor, answer in ((1 - _ABOVE, "POLICY"), (1 + 2 * _ABOVE, "")):
        policy = harness.folder / f"{answer or 'enough'}.toml"
        policy.write_text(f"max-epsilon = {expected * factor}\ndelta = {harness.plan.delta}\n{_ALL_ELSE_GOES}")
        seen = harness.ask("query", images, ledger=folder, policy=policy)
        name = f"a cap {'below' if answer else 'above'} what three runs cost is {'refused' if answer else 'enough'}"
        yield Check(name, seen.failure == answer, seen.failure or "answered")


def _independent(plan: PrivacyPlan, times: int) -> float:
    """Epsilon of so many whole plans by dp_accounting alone, from the plan's own constants."""
    event: DpEvent = GaussianDpEvent(plan.noise_multiplier)
    if plan.sample_rate < 1:
        event = PoissonSampledDpEvent(plan.sample_rate, event)
    steps = plan.steps_per_round * plan.num_rounds * times
    judge = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-4)
    return float(judge.compose(SelfComposedDpEvent(event, steps)).get_epsilon(plan.delta))


def _independent_counts(plan: PrivacyPlan, times: int) -> float:
    if plan.counts is None:
        return 0.0
    pair, matrix = (
        from_discrete_gaussian_mechanism(stddev, sensitivity=1, value_discretization_interval=1e-4)
        for stddev in (plan.counts.noise_stddev, plan.counts.closing_noise_stddev)
    )
    whole = pair.self_compose(plan.counts.num_rounds * times).compose(matrix.self_compose(times))
    return float(whole.get_epsilon_for_delta(plan.delta))


def _charges(file: Path, plan: PrivacyPlan, trained: int) -> Iterator[Check]:
    """Read past the ledger's own code: one reservation and one commit for each answer."""
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT kind, event FROM entry WHERE kind IN ('reserve', 'commit')").fetchall()
    kinds = [kind for kind, _ in rows]
    events = [json.loads(event) for kind, event in rows if kind == "reserve"]
    trains, closings = ([one["charges"] for one in events if one["release"] == name] for name in ("train", "closing"))
    fine = len(trains) == trained and kinds.count("commit") == kinds.count("reserve")
    yield Check("each answered round is one reservation and one commit", fine, f"{len(trains)} for {trained} rounds")
    steps = [event["steps"] for charge in trains for event in charge["training"]]
    yield Check("a round is charged all its steps", steps == [plan.steps_per_round] * trained, str(steps))
    if plan.counts is None:
        return
    for name, charges, stddev in (
        ("the pair of counts", trains, plan.counts.noise_stddev),
        ("the closing matrix", closings, plan.counts.closing_noise_stddev),
    ):
        found = [(one["noise-stddev"], one["releases"]) for charge in charges for one in charge["evaluation"]]
        fine = bool(found) and found == [(stddev, 1)] * len(charges)
        yield Check(f"{name} is charged each time", fine, str(found))


def _single_facts(plan: PrivacyPlan) -> Iterator[Check]:
    one = spent_by([DpSgdEvent(1.0, 1.0, 1)], delta=1e-5, fresh=True).pld
    yield Check("one Gaussian of noise 1 costs 4.377", abs(one - _GAUSSIAN_AT_ONE) < 2e-3, f"{one:.4f}")
    rng = np.random.default_rng(3)
    pieces: list[Event] = [DpSgdEvent(plan.sample_rate, plan.noise_multiplier, int(n)) for n in rng.integers(1, 9, 5)]
    pieces += [CountsEvent(25.0, int(n)) for n in rng.integers(1, 5, 3)]
    apart, whole = (spent_by(found, delta=plan.delta, fresh=True) for found in (pieces, _added(pieces)))
    yield Check(
        "a history in pieces costs what it costs in one", abs(apart.pld - whole.pld) < 1e-12, f"{apart.pld:.6f}"
    )
    yield Check("RDP is no lower than PLD", apart.rdp >= apart.pld - 1e-3, f"{apart.rdp:.4f}, {apart.pld:.4f}")


def _added(pieces: Sequence[Event]) -> list[Event]:
    steps = sum(piece.count for piece in pieces if isinstance(piece, DpSgdEvent))
    counts = sum(piece.count for piece in pieces if isinstance(piece, CountsEvent))
    first = next(piece for piece in pieces if isinstance(piece, DpSgdEvent))
    last = next(piece for piece in pieces if isinstance(piece, CountsEvent))
    return [first.counted(steps), last.counted(counts)]


def _sensitivity(harness: ClientHarness) -> Iterator[Check]:
    """Counts are accounted at sensitivity 1: that is how far a unit may move them, together.

    One image under each label in turn: under one of them it is predicted right, under the others wrong.
    """
    if harness.plan.counts is None:
        return
    image, labels = harness.images.inputs[-1:], np.arange(len(harness.classes)).reshape(-1, 1)
    for kind, fields in (("train", (CORRECT, WRONG)), ("evaluate", (NOISED_CONFUSION,))):
        moved = max(counts_moved(harness, image, label, kind=kind, fields=fields) for label in labels)
        yield Check(f"counts of {kind!r} move by the 1 they are accounted at", moved <= 1.0, f"L2 norm {moved:.4f}")
