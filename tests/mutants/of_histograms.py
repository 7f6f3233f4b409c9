"""T1, T2, T3, T5, T6: histograms of scores and confidence, beyond what was charged for them.

The faults at the end are noticed by plain tests.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from client.evaluation import evaluate as evaluation
from client.training.dp_sgd import FreshStreams, SecureStream
from common import score_histograms as histograms_module
from common.config.loading import Scalar
from common.messages import codec
from common.messages.codec import Evaluation
from common.privacy import accounting, calibration, events
from common.privacy.counts import counts_plan
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.events import CountsEvent
from common.privacy.policy import Policy
from common.score_histograms import ScoreHistograms
from tests.common import test_score_histograms as plain
from tests.common.messages import test_codec as messages
from tests.common.privacy.counts import test_histogram_plans as plans
from tests.mutants.faults import every_case, planted
from tests.mutants.of_replay import each_image_of_a_unit_votes
from tests.mutants.registry import mutant

_FULL: dict[str, Scalar] = {"privacy.closing": "full", "data.classes": "a,b,c"}


@mutant("T5", "counts of 'scores' move by", settings=_FULL)
def scores_are_accounted_at_sensitivity_1(patch: pytest.MonkeyPatch) -> None:
    """One unit changes a count in the histogram of each class, not one count alone."""
    patch.setattr(
        counts_plan,
        "histogram_events",
        lambda scores, calibrated, _: (CountsEvent(scores, 1), CountsEvent(calibrated, 1)),
    )


@mutant("T5", "the closing matrix is charged each time", settings=_FULL)
def histograms_are_free(patch: pytest.MonkeyPatch) -> None:
    """They leave with the matrix in one reply, and the reservation holds the matrix alone."""
    genuine = CountsPlan.closing_events
    patch.setattr(CountsPlan, "closing_events", lambda self: genuine(self)[:1])


@mutant("T2", "noise of the score histograms", settings=_FULL)
def scores_share_one_noise_among_the_classes(patch: pytest.MonkeyPatch) -> None:
    """Each class has its part of the noise that each must have in full."""

    def noised(exact: ScoreHistograms, plan: CountsPlan, **more: Any) -> ScoreHistograms:
        assert plan.scores_noise_stddev is not None
        other = replace(plan, scores_noise_stddev=plan.scores_noise_stddev / plan.num_classes)
        return genuine(exact, other, **more)

    genuine = evaluation.noised_histograms
    patch.setattr(evaluation, "noised_histograms", noised)


@mutant("T2", "noise of the confidence histogram", settings=_FULL)
def confidence_leaves_as_it_is(patch: pytest.MonkeyPatch) -> None:
    """Thirty counts of a hundred units say nothing of any one, so that they need no noise."""

    def noised(exact: ScoreHistograms, plan: CountsPlan, **more: Any) -> ScoreHistograms:
        return ScoreHistograms(genuine(exact, plan, **more).scores, exact.confidence)

    genuine = evaluation.noised_histograms
    patch.setattr(evaluation, "noised_histograms", noised)


@mutant("T3", "one a stream", settings=_FULL)
def closing_releases_share_a_stream(patch: pytest.MonkeyPatch) -> None:
    """One key for the whole reply."""
    kept: list[SecureStream] = []

    def evaluate(session: Any, *args: Any, **more: Any) -> Evaluation | None:
        kept[:] = [SecureStream()]
        return genuine(session, *args, **more)

    genuine = evaluation.evaluate_incoming
    patch.setattr(FreshStreams, "for_counts", lambda self: kept[0])
    patch.setattr("client.app.evaluate_incoming", evaluate)


@mutant("T1", "three rows moves the counts of 'scores' by", mode="head of groups", settings=_FULL)
def each_image_of_a_unit_votes_in_the_histograms(patch: pytest.MonkeyPatch) -> None:
    """A patient with three images moves the histograms three times as far."""
    each_image_of_a_unit_votes(patch)


@mutant("T1", "moves the counts of 'confidence' by 1", settings=_FULL)
def confidence_is_normalised(patch: pytest.MonkeyPatch) -> None:
    """Shares of a thousand in place of votes: another unit changes all of them."""

    def shares(logits: np.ndarray, labels: np.ndarray) -> ScoreHistograms:
        found = genuine(logits, labels)
        return ScoreHistograms(found.scores, found.confidence * 1000 // max(1, int(found.confidence.sum())))

    genuine = evaluation.score_histograms
    patch.setattr(evaluation, "score_histograms", shares)


@mutant("T1", "moves the counts of 'scores' by the root of 3", settings=_FULL)
def bins_follow_from_the_units_that_are_there(patch: pytest.MonkeyPatch) -> None:
    """Quantiles of the scores as edges: one unit more moves the others into other bins."""

    def ranked(logits: np.ndarray, labels: np.ndarray) -> ScoreHistograms:
        places = logits.argsort(axis=0).argsort(axis=0) * 8.0 / max(1, len(logits))
        return genuine(places - places.mean(axis=1, keepdims=True), labels)

    genuine = evaluation.score_histograms
    patch.setattr(evaluation, "score_histograms", ranked)


planted(
    plans.test_sensitivity_is_stored_and_read_back,
    events.as_json,
    {"a sensitivity that no ledger holds": ("vars(event).items()", "list(vars(event).items())[:3]")},
)
planted(
    every_case(plans.test_sensitivity_that_no_histogram_has_is_refused),
    CountsEvent.votes.fget,
    {"a release that costs nothing": ("if votes < 1 or abs(squared - votes) > 1e-9 * votes:", "if votes < 0:")},
)
planted(
    plans.test_votes_in_many_histograms_cost_what_so_many_releases_cost,
    accounting._with_ideal_noise,
    {"PLD at sensitivity 1": ("event.releases * event.votes", "event.releases")},
)
planted(
    plans.test_votes_in_many_histograms_cost_what_so_many_releases_cost,
    accounting._divergences,
    {"RDP at sensitivity 1": ("event.releases * event.votes", "event.releases")},
)
planted(
    every_case(plans.test_whole_plan_meets_the_target_with_histograms),
    calibration._factor,
    {
        "noise that is raised for sensitivity 1": (
            "replace(event, noise_stddev=factor * event.noise_stddev)",
            "CountsEvent(factor * event.noise_stddev, event.releases)",
        )
    },
)
planted(
    every_case(plans.test_whole_plan_meets_the_target_with_histograms),
    calibration.split_counts_noise,
    {
        "histograms beside the target": (
            "if num_classes is not None:\n            events",
            "if False:\n            events",
        )
    },
)
planted(
    every_case(messages.test_histograms_that_cannot_be_are_refused),
    codec._histograms,
    {
        "histograms of another shape": ("part.shape != (math.prod(shape),) or ", ""),
        "counts of any size": ("or not _bounded(part)", ""),
    },
)
planted(
    every_case(messages.test_histograms_that_cannot_be_are_refused),
    codec._agree,
    {"negative exact counts": ("whole and own", "own"), "histograms of more images": ("own and others", "own")},
)
planted(
    plans.test_policy_allows_histograms_only_where_its_holder_does,
    Policy.check_run,
    {"a policy that does not look at histograms": ("config.privacy.closing, self.closing", "'matrix', self.closing")},
)
planted(
    every_case(plain.test_unit_votes_once_in_each_histogram_whatever_its_scores),
    histograms_module.score_histograms,
    {
        "a unit that votes for its own class alone": (
            "for name, probability in enumerate(probabilities):",
            "for name, probability in [(label, probabilities[label])]:",
        )
    },
)
