"""T1, T2, T3, T5: class weights that follow from labels, beyond what was charged for them.

The faults at the end are noticed by plain tests.
"""

from functools import partial
from typing import Any

import numpy as np
import pytest

import client.training.dp_sgd as head_training
import client.training.trainer as trainer_module
from client.guard import Guard
from client.training import class_weights
from client.training.dp_sgd import FreshStreams
from common.config.loading import Scalar
from common.data.client_dataset import Shard
from common.ledger import registrations
from common.ledger.audit import run_checks
from common.ledger.transactions import LedgerSession
from common.privacy import mechanisms
from common.privacy import plan as plan_module
from common.privacy.plan import PrivacyPlan
from tests.client.training import test_class_weights as weights
from tests.common.ledger import test_releases as releases
from tests.common.ledger.audit import test_integrity_checks as ledgers
from tests.common.privacy import test_plan as plans
from tests.mutants.faults import every_case, planted
from tests.mutants.registry import mutant

_BALANCED: dict[str, Scalar] = {"training.class-weights": "balanced"}
_CHEAP = _BALANCED | {"privacy.noise-multiplier": 8.0}
_EVERY = "head, every image in every step"
_TOO_FAR = "moves a sum by no more than C"


@mutant("T5", "charged in full", mode=_EVERY, settings=_CHEAP | {"privacy.metrics": "none"})
def label_counts_are_free(patch: pytest.MonkeyPatch) -> None:
    """They never leave the client, so that "nothing was released": every weight, and so every step, tells of them."""
    patch.setattr(PrivacyPlan, "training_events", lambda self, num_rounds=None: (self.event(num_rounds),))


@mutant("T5", "label counts are charged once a run", mode=_EVERY, settings=_CHEAP)
def label_counts_are_reserved_for_nothing(patch: pytest.MonkeyPatch) -> None:
    """The plan has them, and the entry of their release charges nothing."""
    real = registrations.events_json

    def events(parts: Any) -> Any:
        return real(parts if parts["evaluation"] else {**parts, "training": ()})

    patch.setattr(registrations, "events_json", events)


@mutant("T5", "label counts are drawn once for each charge", mode=_EVERY, settings=_CHEAP)
def label_counts_are_drawn_anew_each_round(patch: pytest.MonkeyPatch) -> None:
    """Each round counts again under the first round's charge: the mean of thirty draws has a fifth of the noise."""
    real = Guard._label_counts

    def counts(self: Guard, session: Any, agreed: Any, draw: Any) -> Any:
        kept = real(self, session, agreed, draw)
        return kept if kept is None else draw(agreed.plan)

    patch.setattr(Guard, "_label_counts", counts)


@mutant("T2", "noise of the label counts", settings=_BALANCED)
def label_counts_have_no_noise(patch: pytest.MonkeyPatch) -> None:
    """The counts stay at the client, so they are taken as they are."""
    patch.setattr(FreshStreams, "release_labels", lambda self, counts, plan: counts)


@mutant("T2", "noise of the label counts", settings=_BALANCED)
def label_counts_have_the_noise_of_held_out_counts(patch: pytest.MonkeyPatch) -> None:
    """One setting for all counts: the noise of the closing matrix, and the event of the label counts."""
    patch.setattr(
        FreshStreams,
        "release_labels",
        lambda self, counts, plan: (
            counts
            + head_training.discrete_gaussian(
                counts.size, noise_stddev=plan.counts.closing_noise_stddev, stream=self.for_counts()
            )
        ),
    )


@mutant("T3", "one a stream", settings=_BALANCED)
def label_counts_share_the_stream_of_held_out_counts(patch: pytest.MonkeyPatch) -> None:
    """One stream a process for all counts, with one key."""
    kept = head_training.SecureStream()
    patch.setattr(FreshStreams, "for_counts", lambda self: kept)


@mutant("T1", "moves the label counts by 1", mode="head of groups", settings=_BALANCED)
def each_image_of_a_unit_counts_its_label(patch: pytest.MonkeyPatch) -> None:
    """A patient with three images moves the counts by up to three, and the noise is for one."""
    patch.setattr(Shard, "training_votes", property(lambda self: np.arange(len(self.train_labels))))


# With a bound that most gradients do not reach, so that weights matter.
@mutant("T1", _TOO_FAR, settings=_BALANCED | {"privacy.max-grad-norm": 30.0})
def weights_follow_from_the_labels_that_are_there(patch: pytest.MonkeyPatch) -> None:
    """The counts are drawn and charged, and the weights follow from the exact ones all the same."""
    found = [np.zeros(0)]

    def votes(shard: Shard, num_classes: int, *rest: Any) -> np.ndarray:
        found[0] = np.bincount(shard.train_labels, minlength=num_classes)
        return genuine(shard, num_classes, *rest)

    genuine = class_weights.noised_label_counts
    from client import session

    patch.setattr(session, "noised_label_counts", votes)
    patch.setattr(trainer_module, "private_weights", lambda counts, plan: class_weights.balanced_weights(found[0]))


@mutant("T1", _TOO_FAR, settings=_BALANCED)
def the_divisor_is_the_sum_of_weights(patch: pytest.MonkeyPatch) -> None:
    """A weighted mean, as torch's `CrossEntropyLoss(weight=...)` gives it: the batch's weights are a secret."""
    real_residuals, real_noise, total = head_training.residuals, head_training.add_noise, [20.0]

    def residuals(drawn: np.ndarray, labels: np.ndarray, *rest: Any, **more: Any) -> np.ndarray:
        total[0] = max(1e-3, float(np.asarray(more["class_weights"])[labels].sum()))
        return real_residuals(drawn, labels, *rest, **more)

    patch.setattr(head_training, "residuals", residuals)
    patch.setattr(head_training, "add_noise", lambda *args, **more: real_noise(*args, **more) * 20 / total[0])


@mutant("T1", _TOO_FAR, settings=_BALANCED)
def weights_come_after_the_clip(patch: pytest.MonkeyPatch) -> None:
    """A clipped gradient is multiplied by its weight: the unit of a rare class moves a sum by ten times the bound."""
    real_sum, real_residuals, weights = head_training.clipped_head_sum, head_training.residuals, [np.ones(0)]

    def residuals(drawn: np.ndarray, labels: np.ndarray, *rest: Any, **more: Any) -> np.ndarray:
        weights[0] = np.asarray(more.pop("class_weights"))[labels]
        return real_residuals(drawn, labels, *rest, **more)

    def clipped(drawn: np.ndarray, logits: np.ndarray, **more: Any) -> np.ndarray:
        norms = more.pop("feature_norms")
        parts = [
            weight * real_sum(drawn[row : row + 1], logits[row : row + 1], feature_norms=norms[row : row + 1], **more)
            for row, weight in enumerate(weights[0])
        ]
        return np.asarray(sum(parts, np.zeros((logits.shape[1], drawn.shape[1]))))

    patch.setattr(head_training, "residuals", residuals)
    patch.setattr(head_training, "clipped_head_sum", clipped)


planted(
    weights.test_balanced_weights_stay_in_a_public_range,
    class_weights.balanced_weights,
    {
        "weights outside of the public range": (
            "np.clip(known.sum() / there * shares, _SMALLEST, _LARGEST)",
            "(known.sum() / there * shares)",
        ),
    },
)
planted(
    weights.test_noise_around_zero_is_not_taken_for_a_rare_class,
    class_weights.balanced_weights,
    {
        "weights of a negative count": ("np.maximum(counts, 0)", "np.asarray(counts)"),
        "noise that is taken for a rare class": ("np.maximum(known, smallest_count)", "np.maximum(known, 1.0)"),
    },
)
planted(
    every_case(weights.test_balanced_weights_never_follow_from_exact_or_free_counts_under_dp),
    class_weights.private_weights,
    {
        "weights from counts that nobody charges": (" or plan.label_noise_stddev is None", ""),
    },
)
planted(
    weights.test_label_counts_have_the_noise_of_the_plan_and_none_without_a_plan_for_it,
    FreshStreams.release_labels,
    {
        "label counts with half their noise": (
            "noise_stddev=plan.label_noise_stddev",
            "noise_stddev=plan.label_noise_stddev / 2",
        ),
    },
)
planted(
    every_case(weights.test_each_unit_votes_once_and_by_its_content),
    class_weights.noised_label_counts,
    {
        "a label count of all images": ("shard.train_labels[shard.training_votes]", "shard.train_labels"),
    },
)
planted(
    partial(plans.test_label_counts_and_steps_meet_the_target_together, target=1.0, settings={}),
    mechanisms.calibrated_noise,
    {
        "steps that take the whole target": ("(CountsEvent(of_labels, 1),)", "()"),
    },
)
planted(
    plans.test_label_counts_are_charged_from_the_first_round_on_and_once,
    PrivacyPlan.training_events,
    {
        "label counts that are free until the whole plan": ("() if num_rounds == 0", "() if num_rounds is not None"),
    },
)
planted(
    partial(plans.test_only_a_plan_that_counts_labels_stores_their_noise, settings={}),
    plan_module._digest_of,
    {
        "a plan's digest without the noise of its label counts": (
            "plan.as_json()",
            "{name: value for name, value in plan.as_json().items() if name != 'label_noise_stddev'}",
        ),
    },
)
_ONCE = releases.test_label_counts_are_charged_once_and_kept_beside_the_newest_replies
planted(
    _ONCE,
    LedgerSession.commit,
    {
        "label counts that are forgotten with old replies": (', spare=agreed.request(0, "labels")', ""),
    },
)
planted(
    ledgers.test_audit_charges_label_counts_once,
    registrations.release_event,
    {
        "label counts that are reserved for nothing": ("plan.label_events()", "()"),
    },
)
planted(
    _ONCE,
    registrations.released_events,
    {
        "a closed run whose label counts were free": ("plan.label_events() if any", "() if any"),
    },
)
planted(
    releases.test_a_plan_without_label_counts_refuses_them,
    LedgerSession._check_room,
    {
        "label counts that the plan does not have": ("len(plan.label_events())", "1"),
    },
)
planted(
    partial(ledgers.test_audit_finds_a_change_of_label_counts_under_a_new_chain, what="not committed"),
    run_checks._check_labels,
    {
        "a round before its label counts": ("trained < counted", "False"),
    },
)
planted(
    partial(ledgers.test_audit_finds_a_change_of_label_counts_under_a_new_chain, what="twice"),
    run_checks._check_run,
    {
        "label counts twice in a ledger": ("len(agreed.plan.label_events())", "9"),
    },
)
