"""Every mechanism keeps the contract that all other code relies on.

Tests `common.privacy.mechanisms.registry`, `common.privacy.mechanisms.contract`,
`common.privacy.mechanisms.client_noise`, `common.privacy.mechanisms.dp_sgd`,
`common.privacy.mechanisms.dp_statistics` and `common.privacy.mechanisms.client_dp`.
"""

from collections.abc import Callable
from dataclasses import replace

import pytest

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.errors import ConfigError, PrivacyError
from common.privacy.events import DpSgdEvent
from common.privacy.mechanisms.registry import DEFAULT_MECHANISM, MECHANISMS, NO_PRIVACY, mechanism_named, names_where
from common.privacy.noise_error import CURRENT_SAMPLER, MAX_DRAWS

MakeConfig = Callable[..., RunConfig]
PRIVATE = tuple(name for name, mechanism in MECHANISMS.items() if mechanism.private)


def config_of(make_config: MakeConfig, name: str) -> RunConfig:
    noise = {} if name == NO_PRIVACY else {"privacy.noise-multiplier": 2.0}
    return make_config({"privacy.mechanism": name, "num-clients": 6, "num-rounds": 4, "privacy.delta": 1e-3} | noise)


def test_names_are_those_that_ledgers_and_statements_hold() -> None:
    assert list(MECHANISMS) == ["none", "dp-sgd", "client-dp", "dp-statistics"]
    assert (NO_PRIVACY, DEFAULT_MECHANISM) == ("none", "dp-sgd")
    assert (names_where("noise_at_client"), names_where("noise_at_server")) == (
        ("dp-sgd", "dp-statistics"),
        ("client-dp",),
    )


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match="'dp' is not a privacy mechanism; there are none, dp-sgd, client-dp, dp-stat"
    ):
        mechanism_named("dp")


@pytest.mark.parametrize("name", MECHANISMS)
def test_noise_is_added_in_one_place_at_most(name: str) -> None:
    mechanism = MECHANISMS[name]

    assert mechanism.noise_at_client + mechanism.noise_at_server == (name != NO_PRIVACY)
    assert mechanism.private == (name != NO_PRIVACY)
    assert mechanism.releases_losses == (name == NO_PRIVACY)


def test_a_run_without_a_mechanism_has_no_plan(make_config: MakeConfig) -> None:
    config = config_of(make_config, NO_PRIVACY)

    with pytest.raises(PrivacyError, match="adds no noise and has no plan"):
        config.plan(100)
    with pytest.raises(PrivacyError, match="adds no noise"):
        config.mechanism.plans(config.public_constants, {"a": 100})


@pytest.mark.parametrize("name", PRIVATE)
def test_plans_by_name_are_the_plan_of_each_size(make_config: MakeConfig, name: str) -> None:
    config = config_of(make_config, name)

    plans = config.mechanism.plans(config.public_constants, {"a": 40, "b": 300})

    assert plans == {"a": config.plan(40), "b": config.plan(300)}
    assert {plan.mechanism for plan in plans.values()} == {name}


def test_only_clients_that_add_noise_themselves_have_plans_of_their_size(make_config: MakeConfig) -> None:
    at_client, at_server = config_of(make_config, "dp-sgd"), config_of(make_config, "client-dp")

    assert at_client.plan(40).num_units == 40
    assert at_server.plan(40) == at_server.plan(300)
    assert at_server.plan(40).num_units == at_server.cohort_size


@pytest.mark.parametrize("name", PRIVATE)
def test_a_delta_that_allows_publishing_a_unit_is_refused(make_config: MakeConfig, name: str) -> None:
    config = config_of(make_config, name)
    constants = replace(config.public_constants, delta=0.2)

    with pytest.raises(ConfigError, match=r"privacy\.delta=0\.2 must be below"):
        config.mechanism.plan(constants, 6)


@pytest.mark.parametrize("name", PRIVATE)
def test_charged_events_are_those_of_the_rounds_that_are_charged(make_config: MakeConfig, name: str) -> None:
    config = config_of(make_config, name)
    plan = config.plan(50)

    two = config.mechanism.charged_events(plan, 2, 1, closing=False)
    whole = config.mechanism.charged_events(plan, plan.num_rounds, plan.num_rounds, closing=plan.counts is not None)

    assert two["training"] == (plan.event(2),)
    assert two.get("evaluation", ()) == plan.counts_events(1, closing=False)
    assert whole["training"] == (plan.event(),)
    assert whole.get("evaluation", ()) == plan.counts_events()


def test_not_protected_names_code_that_nobody_pinned() -> None:
    mechanism = MECHANISMS["dp-sgd"]

    pinned = mechanism.not_protected(num_clients=5, num_unpinned=0)
    loose = mechanism.not_protected(num_clients=5, num_unpinned=2)

    assert set(loose) - set(pinned) == {
        "anything, against a server that changes the code clients run: 2 of 5 clients have not pinned it, and trust "
        "the server's code"
    }


@pytest.mark.parametrize(("metrics", "fits"), [("private", ("dp-sgd", "dp-statistics")), ("exact", tuple(MECHANISMS))])
def test_metrics_go_with_the_mechanisms_that_say_so(metrics: str, fits: tuple[str, ...]) -> None:
    assert tuple(name for name, mechanism in MECHANISMS.items() if not mechanism.why_not_metrics(metrics)) == fits


@pytest.mark.parametrize("settings", [{}, {"num-rounds": 7, "client-fraction": 0.5}])
def test_sums_are_released_once_by_one_gaussian_that_meets_the_target(
    make_config: MakeConfig, settings: dict[str, Scalar]
) -> None:
    config = make_config({"privacy.mechanism": "dp-statistics", "privacy.target-epsilon": 2.0} | settings)

    plan = config.plan(300)

    assert (plan.sample_rate, plan.steps_per_round, plan.num_rounds, plan.max_grad_norm) == (1.0, 1, 1, 1.0)
    assert plan.training_events() == (DpSgdEvent(1.0, plan.noise_multiplier, 1, 1, CURRENT_SAMPLER, MAX_DRAWS),)
    assert 1.99 < plan.spent().pld <= 2.0
    # The closed form of one Gaussian, Balle and Wang 2018.
    assert plan.noise_multiplier == pytest.approx(1.9929, rel=2e-3)
