"""Privacy test T5, of the ledger's epsilon against an independent accountant."""

import json
import math
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from dp_accounting import DpEvent, GaussianDpEvent, NeighboringRelation, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import (
    NeighborRel,
    from_discrete_gaussian_mechanism,
    from_gaussian_mechanism,
)
from scipy.optimize import brentq
from scipy.stats import norm

from common.errors import PrivacyError
from common.ledger.audit.audit import audit_ledger
from common.ledger.data_holder import close_below
from common.privacy.accounting import spent_by
from common.privacy.events import CountsEvent, DpSgdEvent, Event
from common.privacy.mechanisms.registry import names_where
from common.privacy.noise_error import CURRENT_SAMPLER, MAX_DRAWS
from common.privacy.plan import PrivacyPlan
from simulations.harness.client_harness import ClientHarness
from simulations.harness.harness_streams import ObservedStreams
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.neighbouring_data import counts_moved

_NEVER_BELOW = 1e-9
_ABOVE = 2e-3
_EVERYTHING_ELSE_ALLOWED = """
tunings = ["head", "bias", "norm", "lora", "last", "full"]
gradients = ["auto", "opacus"]
units = ["image", "group"]
metrics = ["none", "private", "exact"]
closing = ["matrix", "full"]
subgroup-columns = ["*"]
min-noise-multiplier = 0.0
"""
# Epsilon of one Gaussian with noise multiplier 1 at delta 1e-5, by the closed form.
_GAUSSIAN_AT_ONE = 4.377


def accountant(harness: ClientHarness) -> Iterator[Check]:
    """Check the ledger's epsilon against an independent accountant (T5).

    Guarantee of what passes: after two runs, of which the second was not finished, the ledger's epsilon is that of both
    whole plans. It is between the independent figure and 0.2 % above it, also after the ledger was closed and opened
    again. Each answered request is one charge of one round. Counts move by the sensitivity that is accounted.
    """
    folder, plan = "accountant", harness.plan
    runs = [f"{number:032x}" for number in range(2)]
    rounds, streams = plan.num_rounds, ObservedStreams()
    for run, count in zip(runs, (rounds, 1), strict=True):
        for server_round in range(1, count + 1):
            harness.ask("train", harness.images, run=run, ledger=folder, server_round=server_round, streams=streams)
    harness.ask("evaluate", harness.images, run=runs[0], ledger=folder)
    file = harness.folder / folder / "ledgers" / "bench.sqlite"
    expected = max(_independent(plan, 2), _independent_counts(plan, 2))
    yield from _spent(file, expected, "two runs over the same images")
    yield from _caps(harness, folder, max(_independent(plan, 3), _independent_counts(plan, 3)))
    close_below(harness.folder / folder)
    yield from _spent(file, expected, "two runs, after the ledger was opened again")
    yield from _charges(file, plan, rounds + 1)
    yield from _labels(file, plan, len(streams.labels))
    yield from _single_facts(plan)
    yield from _noise_error(plan)
    yield from _sensitivity(harness)


def _spent(file: Path, expected: float, name: str) -> Iterator[Check]:
    report = audit_ledger(file, [])
    spent = report.worst.spent.pld if report.worst else 0.0
    fine = expected - _NEVER_BELOW <= spent <= expected * (1 + _ABOVE) and not report.remarks.doubts
    yield Check(f"{name} are charged in full", fine, f"epsilon {spent:.5f}, independently {expected:.5f}")


def _caps(harness: ClientHarness, folder: str, expected: float) -> Iterator[Check]:
    """Check that a policy's cap counts earlier runs.

    The third run has one more image. Spent budget belongs to images and not to the folder that holds them.
    """
    images = harness.images.with_unit(harness.images.inputs[:1], harness.images.labels[:1])
    for factor, answer in ((1 - _ABOVE, "POLICY"), (1 + 2 * _ABOVE, "")):
        policy = harness.folder / f"{answer or 'enough'}.toml"
        mechanisms = json.dumps(names_where("noise_at_client"))
        policy.write_text(
            f"max-epsilon = {expected * factor}\ndelta = {harness.plan.delta}\nmechanisms = {mechanisms}\n"
            f"{_EVERYTHING_ELSE_ALLOWED}"
        )
        seen = harness.ask("query", images, ledger=folder, policy=policy)
        name = f"a cap {'below' if answer else 'above'} what three runs cost is {'refused' if answer else 'enough'}"
        yield Check(name, seen.failure == answer, seen.failure or "answered")


def _independent(plan: PrivacyPlan, times: int) -> float:
    """Return the epsilon of several whole plans by dp_accounting alone."""
    event: DpEvent = GaussianDpEvent(plan.noise_multiplier)
    if plan.sample_rate < 1:
        event = PoissonSampledDpEvent(plan.sample_rate, event)
    steps = plan.steps_per_round * plan.num_rounds * times
    if plan.label_noise_stddev is not None:
        return _independent_with_labels(plan, steps, times)
    accounting = PLDAccountant(NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-4)
    return float(accounting.compose(SelfComposedDpEvent(event, steps)).get_epsilon(plan.delta))


def _independent_with_labels(plan: PrivacyPlan, steps: int, times: int) -> float:
    """Return the epsilon of steps and of label counts together.

    PLDAccountant has no event for discrete Gaussian noise.
    """
    grid = {"value_discretization_interval": 1e-4}
    one = from_gaussian_mechanism(
        plan.noise_multiplier,
        sampling_prob=plan.sample_rate,
        neighboring_relation=NeighborRel.REPLACE_SPECIAL,
        **grid,
    )
    labels = from_discrete_gaussian_mechanism(plan.label_noise_stddev, sensitivity=1, **grid)
    return float(one.self_compose(steps).compose(labels.self_compose(times)).get_epsilon_for_delta(plan.delta))


def _independent_counts(plan: PrivacyPlan, times: int) -> float:
    if plan.counts is None:
        return 0.0
    pair, matrix = (
        from_discrete_gaussian_mechanism(stddev, sensitivity=1, value_discretization_interval=1e-4)
        for stddev in (plan.counts.noise_stddev, plan.counts.closing_noise_stddev)
    )
    whole = pair.self_compose(plan.counts.num_rounds * times).compose(matrix.self_compose(times))
    # A unit has one vote for each class, one for the likeliest and one in its subgroup.
    for stddev, votes in (
        (plan.counts.scores_noise_stddev, plan.counts.num_classes),
        (plan.counts.calibration_noise_stddev, 1),
        (plan.counts.subgroups_noise_stddev, 1),
    ):
        if stddev is not None and votes is not None:
            one = from_discrete_gaussian_mechanism(stddev, sensitivity=1, value_discretization_interval=1e-4)
            whole = whole.compose(one.self_compose(votes * times))
    return float(whole.get_epsilon_for_delta(plan.delta))


def _charges(file: Path, plan: PrivacyPlan, trained: int) -> Iterator[Check]:
    """Check that each answer has one reservation and one commit.

    The file is read without the ledger's own code.
    """
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT kind, event FROM entry WHERE kind IN ('reserve', 'commit')").fetchall()
    kinds = [kind for kind, _ in rows]
    events = [json.loads(event) for kind, event in rows if kind == "reserve"]
    trains, closings = (
        [event["charges"] for event in events if event["release"] == name] for name in ("train", "closing")
    )
    fine = len(trains) == trained and kinds.count("commit") == kinds.count("reserve")
    yield Check("each answered round is one reservation and one commit", fine, f"{len(trains)} for {trained} rounds")
    steps = [event["steps"] for charge in trains for event in charge["training"]]
    yield Check("a round is charged all its steps", steps == [plan.steps_per_round] * trained, str(steps))
    samplers = {
        (event.get("sampler"), event.get("draws-per-step")) for charge in trains for event in charge["training"]
    }
    fine = samplers == {(CURRENT_SAMPLER, MAX_DRAWS)}
    yield Check("each event names its noise sampler and its draws", fine, str(samplers))
    if plan.counts is None:
        return
    counts, closing = plan.counts, [(plan.counts.closing_noise_stddev, 1, 1.0)]
    if counts.num_classes is not None:
        closing.append((counts.scores_noise_stddev or 0.0, 1, math.sqrt(counts.num_classes)))
        closing.append((counts.calibration_noise_stddev or 0.0, 1, 1.0))
    if counts.subgroups:
        closing.append((counts.subgroups_noise_stddev or 0.0, 1, 1.0))
    for name, charges, expected in (
        ("the pair of counts", trains, [(counts.noise_stddev, 1, 1.0)]),
        ("the closing matrix", closings, closing),
    ):
        charged = [
            (event["noise-stddev"], event["releases"], event.get("l2-sensitivity", 1.0))
            for charge in charges
            for event in charge["evaluation"]
        ]
        fine = bool(charged) and sorted(charged) == sorted(expected * len(charges))
        yield Check(f"{name} is charged each time", fine, str(charged))


def _labels(file: Path, plan: PrivacyPlan, drawn: int) -> Iterator[Check]:
    """Check that label counts are charged and drawn once a run."""
    if plan.label_noise_stddev is None:
        return
    with sqlite3.connect(f"file:{file}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT event FROM entry WHERE kind = 'reserve'").fetchall()
    events = [json.loads(event) for (event,) in rows]
    charges = [event["charges"] for event in events if event["release"] == "labels"]
    charged = [(event["noise-stddev"], event["releases"]) for charge in charges for event in charge["training"]]
    fine = charged == [(plan.label_noise_stddev, 1)] * 2
    yield Check("label counts are charged once a run", fine, str(charged))
    yield Check("label counts are drawn once for each charge", drawn == len(charges), f"{drawn} for {len(charges)}")


def _single_facts(plan: PrivacyPlan) -> Iterator[Check]:
    single = spent_by([DpSgdEvent(1.0, 1.0, 1)], delta=1e-5, fresh=True).pld
    yield Check("one Gaussian of noise 1 costs 4.377", abs(single - _GAUSSIAN_AT_ONE) < 2e-3, f"{single:.4f}")
    rng = np.random.default_rng(3)
    pieces: list[Event] = [DpSgdEvent(plan.sample_rate, plan.noise_multiplier, int(n)) for n in rng.integers(1, 9, 5)]
    pieces += [CountsEvent(25.0, int(n)) for n in rng.integers(1, 5, 3)]
    apart, whole = (spent_by(history, delta=plan.delta, fresh=True) for history in (pieces, _added(pieces)))
    yield Check(
        "a history in pieces costs what it costs in one", abs(apart.pld - whole.pld) < 1e-12, f"{apart.pld:.6f}"
    )
    yield Check("RDP is not lower than PLD", apart.rdp >= apart.pld - 1e-3, f"{apart.rdp:.4f}, {apart.pld:.4f}")


def _noise_error(plan: PrivacyPlan) -> Iterator[Check]:
    """Check that the error of the noise is taken from delta.

    The draws are so many that they take a part that shows. For the largest epsilon, 200, they take 3 % of delta.
    """
    draws = int(0.03 * plan.delta / (np.exp(200.0) * 2.0**-448))
    events = [DpSgdEvent(1.0, 1.0, 1, sampler=CURRENT_SAMPLER, draws_per_step=many) for many in (draws, 10 * draws)]
    spent = spent_by(events[:1], delta=plan.delta, fresh=True)
    least = _gaussian_epsilon(0.97 * plan.delta)
    yield Check(
        "the noise's error is taken from delta",
        spent.pld >= least - _NEVER_BELOW,
        f"epsilon {spent.pld:.6f}, at least {least:.6f}",
    )
    try:
        refused, seen = False, f"epsilon {spent_by(events[1:], delta=plan.delta, fresh=True).pld:.6f}"
    except PrivacyError as error:
        refused, seen = True, str(error)
    yield Check("an error of more than a tenth of delta is refused", refused, seen)


def _gaussian_epsilon(delta: float) -> float:
    """Return the epsilon of one Gaussian of noise multiplier 1 by the closed form.

    Source: Balle and Wang 2018, arXiv:1805.06530, Theorem 8.
    """

    def excess(epsilon: float) -> float:
        return float(norm.cdf(0.5 - epsilon) - np.exp(epsilon) * norm.cdf(-0.5 - epsilon)) - delta

    # A large delta is met without any epsilon.
    return 0.0 if excess(0.0) <= 0 else float(brentq(excess, 0.0, 100.0))


def _added(pieces: Sequence[Event]) -> list[Event]:
    steps = sum(piece.count for piece in pieces if isinstance(piece, DpSgdEvent))
    counts = sum(piece.count for piece in pieces if isinstance(piece, CountsEvent))
    first = next(piece for piece in pieces if isinstance(piece, DpSgdEvent))
    last = next(piece for piece in pieces if isinstance(piece, CountsEvent))
    return [first.counted(steps), last.counted(counts)]


def _sensitivity(harness: ClientHarness) -> Iterator[Check]:
    """Check that one unit moves counts by no more than they are accounted at.

    One image is added under each label in turn. One label is predicted correctly, and the others are not.
    """
    if harness.plan.counts is None:
        return
    image, labels = harness.images.inputs[-1:], np.arange(len(harness.classes)).reshape(-1, 1)
    moves = [counts_moved(harness, image, label) for label in labels]
    for kind, event in zip(moves[0], harness.plan.counts.events(), strict=True):
        moved, most = max(each[kind] for each in moves), event.l2_sensitivity
        # The square, which is a whole number: a root is rounded.
        fine = bool(moved**2 <= most**2 + 1e-6)
        yield Check(f"counts of {kind!r} move by the {most:g} they are accounted at", fine, f"L2 norm {moved:.4f}")
