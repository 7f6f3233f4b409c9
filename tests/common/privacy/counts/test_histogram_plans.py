"""Plans, events and policies of histograms of scores and confidence."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.errors import ConfigError, PolicyError, PrivacyError
from common.privacy.accounting import FIGURES, spent_by
from common.privacy.counts.counts_plan import CountsPlan
from common.privacy.events import CountsEvent, as_json, from_json, merged
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING, Policy

MakeConfig = Callable[..., RunConfig]
FULL: dict[str, Scalar] = {"privacy.closing": "full", "data.classes": "a,b,c,d"}
DELTA = 1e-5


def test_sensitivity_is_stored_and_read_back() -> None:
    scores, matrix = CountsEvent(4.0, 1, l2_sensitivity=2.0), CountsEvent(4.0, 1)

    assert as_json(scores)["l2-sensitivity"] == 2.0
    assert "l2-sensitivity" not in as_json(matrix), "events of earlier versions must not seem changed"
    assert from_json(as_json(scores)) == scores
    assert len(merged([scores, matrix])) == 2, "mechanisms of different sensitivity do not add up"


@pytest.mark.parametrize("sensitivity", [0.0, 0.5, -0.5, 1.1, math.nan, math.inf])
def test_sensitivity_that_no_histogram_has_is_refused(sensitivity: float) -> None:
    with pytest.raises(PrivacyError, match="sensitivity"):
        spent_by([CountsEvent(4.0, 1, l2_sensitivity=sensitivity)], delta=DELTA)


def test_votes_in_many_histograms_cost_what_so_many_releases_cost() -> None:
    # What a planted fault has left in memory must not answer.
    FIGURES.clear()
    one = from_discrete_gaussian_mechanism(4.0, sensitivity=1, value_discretization_interval=1e-4)

    spent = spent_by([CountsEvent(4.0, 2, l2_sensitivity=math.sqrt(7))], delta=DELTA, fresh=True)

    assert spent.pld == pytest.approx(one.self_compose(14).get_epsilon_for_delta(DELTA), abs=1e-9)
    assert spent.rdp == pytest.approx(spent_by([CountsEvent(4.0, 14)], delta=DELTA, fresh=True).rdp, abs=1e-12)


def counts_of(plan: PrivacyPlan) -> CountsPlan:
    assert plan.counts is not None
    return plan.counts


@pytest.mark.parametrize(
    "settings",
    [
        {"privacy.target-epsilon": 1.0},
        {"privacy.target-epsilon": 2.0, "privacy.closing-noise": 0.6},
        {"privacy.target-epsilon": 2.0, "privacy.counts-noise": 2.0, "privacy.closing-noise": 1.0},
    ],
)
def test_whole_plan_meets_the_target_with_histograms(make_config: MakeConfig, settings: dict[str, Scalar]) -> None:
    plan = make_config(FULL | {"data.classes": ",".join(map(str, range(40)))} | settings).plan(300)

    counts, target = counts_of(plan), float(settings["privacy.target-epsilon"])
    spent = spent_by(plan.counts_events(), delta=plan.delta, fresh=True).pld
    assert 0.9 * target < spent <= target
    assert [event.l2_sensitivity for event in counts.events()] == [1.0, 1.0, math.sqrt(40), 1.0]
    assert plan.spent().pld <= target


def test_only_a_plan_with_histograms_stores_them(make_config: MakeConfig) -> None:
    full, matrix = make_config(FULL).plan(300), make_config({"data.classes": "a,b,c,d"}).plan(300)

    added = {"num_classes", "scores_noise_stddev", "calibration_noise_stddev"}
    assert added <= full.as_json()["counts"].keys()
    assert not added & matrix.as_json()["counts"].keys()
    assert PrivacyPlan.from_json(full.as_json()).digest == full.digest != matrix.digest
    assert len(full.counts_events(3, closing=False)) == 1
    without_noise = replace(counts_of(full), scores_noise_stddev=None)
    with pytest.raises(PrivacyError, match="histograms without noise"):
        without_noise.events()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"privacy.closing": "full"}, "name the classes in data.classes"),
        (FULL | {"privacy.metrics": "none"}, "lets none leave"),
        ({"privacy.closing": "all"}, "privacy.closing"),
    ],
)
def test_settings_that_allow_no_histograms_are_refused(
    make_config: MakeConfig, settings: dict[str, Scalar], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        make_config(settings)


def test_policy_allows_histograms_only_where_its_holder_does(make_config: MakeConfig) -> None:
    policy = Policy(max_epsilon=10.0, delta=1e-5)
    config = make_config(FULL | {"data.classes": "a,b"})

    with pytest.raises(PolicyError, match=r"privacy\.closing='full' is not allowed, only matrix"):
        policy.check_run(config)
    allowing = policy.model_copy(update={"closing": ("matrix", "full")})
    allowing.check_run(config)
    ANYTHING.check_run(config)
    assert allowing.digest != policy.digest
