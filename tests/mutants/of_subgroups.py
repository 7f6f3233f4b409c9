"""T1, T2, T3, T5: counts by subgroup, beyond what was charged for them.

The faults at the end are noticed by plain tests.
"""

from typing import Any

import numpy as np
import pytest

from client.evaluation import evaluate as evaluation
from client.evaluation import private_counts
from client.training.dp_sgd import FreshStreams, SecureStream
from common import subgroup_counts as counts_module
from common.config.loading import Scalar
from common.data.partitioning import subgroups as subgroups_module
from common.messages import codec, counts_in_sums
from common.messages.codec import Evaluation
from common.messages.secure_words import SecureWords
from common.privacy import calibration
from common.privacy.counts import counts_plan
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.events import CountsEvent
from common.privacy.policy import Policy
from common.subgroup_counts import SubgroupCounts
from tests.common import test_subgroup_counts as plain
from tests.common.data.partitioning import test_subgroups as tables
from tests.common.messages import test_codec as messages
from tests.common.privacy.counts import test_subgroup_plans as plans
from tests.mutants.faults import every_case, planted
from tests.mutants.of_replay import each_image_of_a_unit_votes
from tests.mutants.registry import mutant
from tests.simulations import test_subgroups_in_sums as sums

_BY_SEX: dict[str, Scalar] = {"data.subgroup-column": "sex", "data.subgroups": "f,m"}


@mutant("T5", "the closing matrix is charged each time", settings=_BY_SEX)
def subgroups_are_free(patch: pytest.MonkeyPatch) -> None:
    """They are sums of the matrix's own counts, divided once more."""
    genuine = CountsPlan.closing_events
    patch.setattr(CountsPlan, "closing_events", lambda self: genuine(self)[:-1])


@mutant("T5", "the closing matrix is charged each time", settings=_BY_SEX)
def subgroups_are_accounted_at_a_smaller_sensitivity(patch: pytest.MonkeyPatch) -> None:
    """A unit is in one of three subgroups, "so it moves each by a third"."""

    def events(self: CountsPlan) -> tuple[CountsEvent, ...]:
        *others, last = genuine(self)
        return (*others, CountsEvent(3 * last.noise_stddev, 1))

    genuine = CountsPlan.closing_events
    patch.setattr(CountsPlan, "closing_events", events)


@mutant("T2", "noise of the counts by subgroup", settings=_BY_SEX)
def subgroups_leave_as_they_are(patch: pytest.MonkeyPatch) -> None:
    """Few counts of many units, so that they seem to need no noise."""
    patch.setattr(evaluation, "noised_subgroups", lambda exact, *_, **__: exact)


@mutant("T2", "noise of the counts by subgroup", settings=_BY_SEX)
def subgroup_without_units_has_no_noise(patch: pytest.MonkeyPatch) -> None:
    """A zero says that nobody of this subgroup is there."""

    def noised(exact: SubgroupCounts, *args: Any, **more: Any) -> SubgroupCounts:
        there = exact.cells.sum(axis=1, keepdims=True) > 0
        return SubgroupCounts(np.where(there, genuine(exact, *args, **more).cells, 0))

    genuine = evaluation.noised_subgroups
    patch.setattr(evaluation, "noised_subgroups", noised)


@mutant("T3", "one a stream", settings=_BY_SEX)
def subgroups_share_the_stream_of_the_matrix(patch: pytest.MonkeyPatch) -> None:
    """One key for the whole reply."""
    kept: list[SecureStream] = []

    def evaluate(session: Any, *args: Any, **more: Any) -> Evaluation | None:
        kept[:] = [SecureStream()]
        return genuine(session, *args, **more)

    genuine = evaluation.evaluate_incoming
    patch.setattr(FreshStreams, "for_counts", lambda self: kept[0])
    patch.setattr("client.app.evaluate_incoming", evaluate)


@mutant("T1", "three rows moves the counts of 'subgroups' by", mode="head of groups", settings=_BY_SEX)
def each_image_of_a_unit_votes_in_its_subgroup(patch: pytest.MonkeyPatch) -> None:
    """A patient with three images, taken by three scanners, has a vote in each scanner's counts."""
    each_image_of_a_unit_votes(patch)


@mutant("T1", "moves the counts of 'subgroups' by 1", settings=_BY_SEX)
def subgroups_are_normalised(patch: pytest.MonkeyPatch) -> None:
    """Shares of a thousand in place of votes: another unit changes all of them."""

    def shares(*args: Any) -> SubgroupCounts:
        found = genuine(*args)
        return SubgroupCounts(found.cells * 1000 // max(1, int(found.cells.sum())))

    genuine = evaluation.subgroup_counts
    patch.setattr(evaluation, "subgroup_counts", shares)


planted(
    every_case(plans.test_whole_plan_meets_the_target_with_subgroups),
    calibration.split_counts_noise,
    {"subgroups beside the target": ("if num_subgroups:\n            events", "if False:\n            events")},
)
planted(
    plans.test_only_a_plan_with_subgroups_stores_them,
    CountsPlan.as_json,
    {
        "a plan that does not name its subgroups": ('| {"subgroups": list(self.subgroups)}', '| {"subgroups": []}'),
        "a plan that is not equal when it is read back": ("list(self.subgroups)", "self.subgroups"),
    },
)
planted(
    plans.test_only_a_plan_with_subgroups_stores_them,
    CountsPlan.closing_events,
    {"a plan whose subgroups have no noise": ("if self.subgroups_noise_stddev is None:", "if False:")},
)
planted(
    plans.test_noise_is_what_the_sampler_draws,
    counts_plan.counts_plan,
    {"noise of subgroups that the sampler does not draw": ("float(sampled_stddev(factor * of))", "factor * of")},
)
planted(
    plans.test_subgroups_leave_as_the_plan_has_them_and_an_empty_one_has_noise_too,
    private_counts.noised_subgroups,
    {
        "other subgroups than the plan's": ("if len(plan.subgroups) != len(exact.cells):", "if False:"),
        "a subgroup that is left out when empty": (
            "return SubgroupCounts(",
            "exact = SubgroupCounts(exact.cells[exact.cells.sum(axis=1) > 0])\n    return SubgroupCounts(",
        ),
    },
)
planted(
    plans.test_policy_allows_a_column_only_where_its_holder_does,
    Policy.check_run,
    {"a policy that does not look at the column": ("if column and not", "if False and not")},
)
planted(
    every_case(plain.test_unit_moves_one_count_by_one),
    counts_module.subgroup_counts,
    {
        "a unit that votes right and wrong": (
            "(subgroups, (logits",
            "(subgroups, 0), 1)\n        np.add.at(cells, (subgroups, (logits",
        )
    },
)
planted(
    every_case(messages.test_subgroups_that_cannot_be_are_refused),
    codec._subgroups,
    {
        "another number of subgroups": ("or num_subgroups not in (None, flat.size // 2)", ""),
        "subgroup counts of any size": ("or not _bounded(flat)", ""),
    },
)
planted(
    every_case(messages.test_subgroups_that_cannot_be_are_refused),
    codec.decode_evaluation,
    {"subgroups of other images": ("!= [right, counts.num_examples - right]", "is None")},
)
planted(
    every_case(tables.test_missing_column_is_named_and_a_joined_client_is_silent),
    subgroups_module.subgroups_of,
    {"a joined client that says which columns it has": ("if not joined:\n            raise", "raise")},
)
planted(
    tables.test_table_that_changed_since_it_was_read_is_refused,
    subgroups_module.numbered_values,
    {"subgroups of other rows": ("if len(values) != count:", "if False:")},
)
planted(
    sums.test_each_subgroup_has_the_noise_of_all_shares_an_empty_one_too,
    counts_in_sums.noise_of,
    {
        "subgroups under masks with the noise of the matrix": (
            "NOISED_SUBGROUP_COUNTS: plan.subgroups_noise_stddev",
            "NOISED_SUBGROUP_COUNTS: plan.closing_noise_stddev",
        ),
    },
)
planted(
    sums.test_each_subgroup_has_the_noise_of_all_shares_an_empty_one_too,
    SecureWords._counts_scale,
    {"subgroups under masks with shares for all clients": ("counts_scale(noise, shares", "counts_scale(noise, 5")},
)
planted(
    sums.test_each_subgroup_has_the_noise_of_all_shares_an_empty_one_too,
    SecureWords._noised_words,
    {
        "exact counts by subgroup under the masks": (
            "stream=stream)",
            "stream=stream if 'subgroup' not in key else type('Zeros', (), {'random_bytes': lambda _, n: bytes(n)})())",
        )
    },
)
planted(
    sums.test_each_subgroup_has_the_noise_of_all_shares_an_empty_one_too,
    SecureWords.summed_counts,
    {"subgroups that are read as those of one client": ("replace(divided, num_clients=num_survivors)", "divided")},
)
