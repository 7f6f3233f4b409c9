"""A budget becomes a number of rounds before round 1, by public constants.

Drives `common.commands.fitted_defaults`.
"""

from collections.abc import Callable

import pytest

from common.commands.fitted_defaults import fit_to_budget, fit_to_sizes, fit_to_source
from common.config.loading import Scalar, defaults, override, parse
from common.config.schema import RunConfig
from common.data.partitioning.client_sizes import client_sizes
from common.data.sources.registry import open_source
from common.errors import ConfigError
from common.messages.codec import Declaration
from server.late_joining import rejection_reason

MakeConfig = Callable[..., RunConfig]
NOISE: dict[str, Scalar] = {"privacy.noise-multiplier": 8.0, "stopping.max-epsilon": 2.0}
BATCHES: dict[str, Scalar] = NOISE | {
    "training.batch-size": 64,
    "training.local-epochs": 1,
    "privacy.noise-multiplier": 4.0,
}


def fitted(given: dict[str, Scalar], sizes: tuple[int, ...] = (300,)) -> RunConfig:
    return parse(override(defaults(), fit_to_sizes(given, sizes)[0]))


@pytest.mark.parametrize(
    ("given", "sizes"),
    [
        (NOISE, (300,)),
        (NOISE | {"client-fraction": 0.4, "privacy.noise-multiplier": 5.0}, (300,)),
        (NOISE | {"privacy.metrics": "none"}, (300,)),
        (BATCHES, (200, 400)),
        ({"privacy.mechanism": "client-dp", "privacy.delta": 1e-4, "num-clients": 50} | NOISE, (300,)),
    ],
    ids=str,
)
def test_rounds_are_as_many_as_the_budget_allows(given: dict[str, Scalar], sizes: tuple[int, ...]) -> None:
    config = fitted(given, sizes)

    def worst(num_rounds: int) -> float:
        longer = config.model_copy(update={"num_rounds": num_rounds})
        sizes_of_plans = [config.cohort_size] if config.mechanism.noise_at_server else sizes
        return max(longer.plan(size).spent().pld for size in sizes_of_plans)

    assert config.num_rounds < 30
    assert worst(config.num_rounds) <= 2.0
    # One more round for each client; with a fraction, one more for those that take part the most.
    assert worst(config.num_rounds + config.num_clients // config.cohort_size) > 2.0


def test_run_with_a_target_is_calibrated_to_the_budget() -> None:
    steps: dict[str, Scalar] = {"training.local-epochs": 1}
    whole, config = fitted(steps), fitted(steps | {"stopping.max-epsilon": 4.0})

    assert config.privacy.target_epsilon == 4.0
    assert 0 < config.num_rounds < 30
    plan = config.plan(300)
    assert 3.9 < plan.spent().pld <= 4.0
    # The noise that thirty rounds at epsilon 8 would have, or a little less.
    assert plan.noise_multiplier <= whole.plan(300).noise_multiplier
    assert plan.noise_multiplier > 0.8 * whole.plan(300).noise_multiplier


@pytest.mark.parametrize("given", [{"stopping.max-epsilon": 8.0}, {"stopping.max-epsilon": 9.5}, {}], ids=str)
def test_budget_that_is_enough_changes_nothing(given: dict[str, Scalar]) -> None:
    assert fit_to_sizes(given, (300,)) == (given, [])


def test_fitting_again_changes_nothing() -> None:
    once, lines = fit_to_sizes({"stopping.max-epsilon": 4.0}, (300,))

    assert len(lines) == 1
    assert "stopping.max-epsilon=4 allows no more" in lines[0]
    assert fit_to_sizes(once, (300,)) == (once, [])


def test_source_decides_by_its_smallest_client() -> None:
    settings, _ = fit_to_source(BATCHES | {"num-clients": 2, "privacy.metrics": "none"})

    config = parse(override(defaults(), settings))
    sizes, _ = client_sizes(open_source(config.data).entries, config.data, num_clients=2, seed=0, unit="image")
    assert sizes[0] != sizes[1]
    assert max(config.plan(int(size)).spent().pld for size in sizes) <= 2.0


def test_real_clients_of_unknown_size_get_rounds_that_any_size_allows() -> None:
    config = parse(override(defaults(), fit_to_budget(BATCHES | {"data.source": "clients", "data.classes": "a,b"})))

    assert all(config.plan(size).spent().pld <= 2.0 for size in (2, 32, 300, 5000))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"privacy.noise-multiplier": 2.0, "stopping.max-epsilon": 0.1}, "allows not even one round"),
        ({"privacy.mechanism": "none", "stopping.max-epsilon": 1.0}, "limits what a privacy mechanism costs"),
        ({"stopping.max-epsilon": 0.0}, "stopping.max-epsilon"),
        ({"stopping.max-epsilon": float("nan")}, "stopping.max-epsilon"),
    ],
)
def test_impossible_budget_is_refused(given: dict[str, Scalar], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        fitted(given)


@pytest.mark.parametrize(("most", "reason"), [("", ""), (3.0, ""), (1.0, "CONFIG")])
def test_client_whose_plan_exceeds_the_budget_is_not_enrolled(
    make_config: MakeConfig, most: Scalar, reason: str
) -> None:
    config = make_config(NOISE | {"stopping.max-epsilon": most, "num-rounds": 20, "num-clients": 2})

    assert 1.0 < config.plan(300).spent().pld < 3.0
    assert rejection_reason(config, Declaration("x", 300, ("a", "b"), (4,), "")) == reason
