"""Plans (`common.privacy.counts.counts_plan`), events, noise and policies of counts by subgroup.

Drives `common.privacy.plan`, `common.privacy.calibration`, `client.evaluation.private_counts`.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from client.evaluation.private_counts import noised_subgroups
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.errors import PolicyError, PrivacyError
from common.privacy.accounting import spent_by
from common.privacy.calibration import subgroup_noise
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.counts.discrete_gaussian import sampled_stddev
from common.privacy.events import CountsEvent
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING, Policy
from common.subgroup_counts import SubgroupCounts

MakeConfig = Callable[..., RunConfig]
BY_SEX: dict[str, Scalar] = {"data.subgroup-column": "sex", "data.subgroups": "f,m"}
FULL: dict[str, Scalar] = {"privacy.closing": "full", "data.classes": "a,b,c,d"}


def counts_of(plan: PrivacyPlan) -> CountsPlan:
    assert plan.counts is not None
    return plan.counts


@pytest.mark.parametrize("more", [{}, FULL], ids=["matrix", "full"])
@pytest.mark.parametrize(
    "noises",
    [{}, {"privacy.closing-noise": 0.6}, {"privacy.counts-noise": 2.0, "privacy.closing-noise": 1.0}],
    ids=["by the target", "one set", "both set"],
)
def test_whole_plan_meets_the_target_with_subgroups(
    make_config: MakeConfig, more: dict[str, Scalar], noises: dict[str, Scalar]
) -> None:
    plan = make_config(BY_SEX | more | {"privacy.target-epsilon": 2.0} | noises).plan(300)

    counts = counts_of(plan)
    spent = spent_by(plan.counts_events(), delta=plan.delta, fresh=True).pld
    assert 0.9 * 2.0 < spent <= 2.0
    assert counts.events()[-1] == CountsEvent(counts.subgroups_noise_stddev or 0.0, 1), "a unit has one vote"
    assert len(counts.events()) == 3 + 2 * bool(more)
    assert counts.subgroups_noise_stddev == pytest.approx(math.cbrt(10 / 3) * counts.closing_noise_stddev, rel=4e-3)


def test_noise_follows_from_that_of_the_matrix() -> None:
    assert subgroup_noise(4.0, 10) == pytest.approx(4.0)
    assert subgroup_noise(4.0, 80) == pytest.approx(2.0)
    assert subgroup_noise(0.5, 80) == 0.5, "never below the least noise that can be sampled"


def test_only_a_plan_with_subgroups_stores_them(make_config: MakeConfig) -> None:
    divided, plain = make_config(BY_SEX).plan(300), make_config({}).plan(300)

    added = {"subgroups", "subgroups_noise_stddev"}
    assert not added & plain.as_json()["counts"].keys()
    assert divided.as_json()["counts"]["subgroups"] == ["f", "m", "other"]
    back = PrivacyPlan.from_json(divided.as_json())
    assert (back.counts, back.as_json()) == (divided.counts, divided.as_json())
    assert back.digest == divided.digest != plain.digest
    # The names are what the clients agree on, not their number alone.
    assert make_config(BY_SEX | {"data.subgroups": "m,f"}).plan(300).digest != divided.digest
    without_noise = replace(counts_of(divided), subgroups_noise_stddev=None)
    with pytest.raises(PrivacyError, match="without noise"):
        without_noise.events()


def test_subgroups_leave_as_the_plan_has_them_and_an_empty_one_has_noise_too(
    make_config: MakeConfig,
) -> None:
    plan = counts_of(make_config(BY_SEX | {"privacy.closing-noise": 300.0}).plan(300))
    exact = SubgroupCounts(np.zeros((3, 2), np.int64))
    stream = np.random.default_rng(5)

    class Bytes:
        def random_bytes(self, size: int) -> bytes:
            return stream.bytes(size)

    noised = noised_subgroups(exact, plan, stream=Bytes())

    assert noised.cells.shape == (3, 2)
    assert (noised.cells != 0).all()
    for wrong in (replace(plan, subgroups=("f", "other")), replace(plan, subgroups_noise_stddev=None)):
        with pytest.raises(PrivacyError, match="may leave"):
            noised_subgroups(exact, wrong, stream=Bytes())


def test_noise_is_what_the_sampler_draws(make_config: MakeConfig) -> None:
    noise = counts_of(make_config(BY_SEX).plan(300)).subgroups_noise_stddev or 0.0

    assert float(sampled_stddev(noise)) == noise


def test_policy_allows_a_column_only_where_its_holder_does(make_config: MakeConfig) -> None:
    policy = Policy(max_epsilon=10.0, delta=1e-5)
    config = make_config(BY_SEX)

    with pytest.raises(PolicyError, match=r"data\.subgroup-column='sex' is not allowed, only none"):
        policy.check_run(config)
    other = policy.model_copy(update={"subgroup_columns": ("scanner",)})
    with pytest.raises(PolicyError, match="only scanner"):
        other.check_run(config)
    allowing = policy.model_copy(update={"subgroup_columns": ("scanner", "sex")})
    allowing.check_run(config)
    ANYTHING.check_run(config)
    policy.check_run(make_config({}))
    assert len({policy.digest, other.digest, allowing.digest}) == 3
