"""Every strategy by name, three rounds long, against aggregates worked out here from the papers' formulas.

Drives `common.strategies`.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from common.config.loading import Scalar, defaults, override, parse
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.messages.codec import Declaration, Evaluation, encode_declaration, encode_update, record_to_arrays
from common.messages.fields import Releases
from common.metrics import Counts
from common.strategies import STRATEGIES
from server.aggregation.strategies import build_strategy, check_strategy
from server.rounds.enrollment import enroll_clients
from server.rounds.loop import RoundSettings, run_rounds
from server.rounds.replies import Channel
from simulations.engines.in_process import InProcessGrid

# Seven clients, two parameters; the last two are far from the others.
TARGETS = np.array([[1.0, 2.0], [1.2, 1.7], [0.9, 2.3], [1.4, 2.1], [0.7, 1.8], [9.0, -8.0], [5.0, 7.0]])
SIZES = np.array([10, 20, 30, 40, 50, 60, 70])
START = np.array([0.5, -0.25])
ROUNDS = 3
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none", "num-clients": len(SIZES), "training.learning-rate": 0.25}

# (x, updates (n, 2), losses (n,), state kept from round to round, number of the round) -> new x
Oracle = Callable[[np.ndarray, np.ndarray, np.ndarray, dict[str, Any], int], np.ndarray]


def trained(x: np.ndarray) -> np.ndarray:
    """What the clients make of a model: each goes half-way to its own target."""
    return x + 0.5 * (TARGETS - x)


def losses_of(x: np.ndarray) -> np.ndarray:
    return ((TARGETS - x) ** 2).sum(axis=1)


def toy_app(heard: list[dict[str, Any]], *, with_loss: bool) -> ClientApp:
    app = ClientApp()

    def who(context: Context) -> int:
        return int(context.node_config["partition-id"])

    @app.query()
    def query(message: Message, context: Context) -> Message:
        declared = Declaration(f"{who(context):05d}", int(SIZES[who(context)]), ("a", "b"), (2,), "")
        return Message(encode_declaration(declared), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        heard.append(dict(message.content.config_records["config"]))
        arrays = record_to_arrays(message.content.array_records["arrays"])
        x = np.concatenate([arrays["bias"], arrays["awry"]]).astype(np.float64)
        new = trained(x)[who(context)].astype(np.float32)
        loss = float(losses_of(x)[who(context)]) if with_loss else None
        found = Evaluation(Counts(np.eye(2, dtype=np.int64), 1.0), None, loss)
        reply = encode_update({"bias": new[:1], "awry": new[1:]}, int(SIZES[who(context)]), found)
        return Message(reply, reply_to=message)

    return app


def config_for(name: str, settings: dict[str, Scalar] | None = None) -> RunConfig:
    return parse(override(defaults(), OPEN | {"strategy.name": name} | (settings or {})))


def federate(config: RunConfig, heard: list[dict[str, Any]] | None = None) -> np.ndarray:
    """(rounds, 2) models after each round, by Flower's own strategy object."""
    releases = Releases.of(config)
    grid = InProcessGrid(toy_app([] if heard is None else heard, with_loss=releases.train_loss), len(SIZES), {})
    clients = enroll_clients(grid, len(SIZES), run_id="run").clients
    # "bias" comes before "awry": a strategy that sorted names would mix them up.
    start = {"bias": START[:1].astype(np.float32), "awry": START[1:].astype(np.float32)}
    settings = RoundSettings(clients, [list(clients)] * ROUNDS)
    rounds = run_rounds(Channel(grid, releases, "run"), build_strategy(config), start, settings)
    return np.array([np.concatenate([done.arrays["bias"], done.arrays["awry"]]) for done in rounds])


def by_hand(oracle: Oracle) -> np.ndarray:
    x, state, seen = START, {}, []
    for number in range(1, ROUNDS + 1):
        x = oracle(x, trained(x), losses_of(x), state, number)
        seen.append(x)
    return np.array(seen)


def mean(updates: np.ndarray) -> np.ndarray:
    """McMahan et al. 2017: by size of the data."""
    return (SIZES[:, None] * updates).sum(axis=0) / SIZES.sum()


def fedavg() -> Oracle:
    return lambda x, updates, losses, state, number: mean(updates)


def fedavgm(rate: float = 1.0, momentum: float = 0.0) -> Oracle:
    """Hsu et al. 2019: v <- m v + (x - mean), x <- x - rate v."""

    def step(x: np.ndarray, updates: np.ndarray, _: np.ndarray, state: dict[str, Any], number: int) -> np.ndarray:
        state["v"] = momentum * state.get("v", 0.0) + (x - mean(updates))
        return x - rate * state["v"]

    return step


def adaptive(
    second: Callable[[Any, np.ndarray], np.ndarray], *, eta: float, beta_1: float, tau: float, beta_2: float | None
) -> Oracle:
    """Reddi et al. 2021, algorithm 2; Flower's FedAdam also corrects for the bias at t = round + 1 (`beta_2`)."""

    def step(x: np.ndarray, updates: np.ndarray, _: np.ndarray, state: dict[str, Any], number: int) -> np.ndarray:
        delta = mean(updates) - x
        state["m"] = beta_1 * state.get("m", 0.0) + (1 - beta_1) * delta
        state["v"] = second(state.get("v", np.zeros(2)), delta**2)
        rate = eta
        if beta_2 is not None:
            rate *= np.sqrt(1 - beta_2 ** (number + 1)) / (1 - beta_1 ** (number + 1))
        return x + rate * state["m"] / (np.sqrt(state["v"]) + tau)

    return step


def fedadam(eta: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3) -> Oracle:
    return adaptive(
        lambda v, square: beta_2 * v + (1 - beta_2) * square, eta=eta, beta_1=beta_1, tau=tau, beta_2=beta_2
    )


def fedyogi(eta: float = 0.01, beta_1: float = 0.9, beta_2: float = 0.99, tau: float = 1e-3) -> Oracle:
    def second(v: np.ndarray, square: np.ndarray) -> np.ndarray:
        return v - (1 - beta_2) * square * np.sign(v - square)

    return adaptive(second, eta=eta, beta_1=beta_1, tau=tau, beta_2=None)


def fedadagrad(eta: float = 0.1, tau: float = 1e-3) -> Oracle:
    return adaptive(lambda v, square: v + square, eta=eta, beta_1=0.0, tau=tau, beta_2=None)


def fedmedian() -> Oracle:
    """Yin et al. 2018: of each coordinate the middle one of seven."""
    return lambda x, updates, losses, state, number: np.sort(updates, axis=0)[3]


def trimmed(cut: int) -> Oracle:
    """Yin et al. 2018: without the `cut` largest and smallest of each coordinate, unweighted."""
    return lambda x, updates, losses, state, number: np.sort(updates, axis=0)[cut : len(updates) - cut].mean(axis=0)


def by_krum_score(updates: np.ndarray, malicious: int) -> list[int]:
    """Blanchard et al. 2017: squared distances to the n - f - 2 nearest others, best first."""
    scores = []
    for i in range(len(updates)):
        others = sorted(float(((updates[i] - updates[j]) ** 2).sum()) for j in range(len(updates)) if j != i)
        scores.append(sum(others[: len(updates) - malicious - 2]))
    return sorted(range(len(updates)), key=lambda i: scores[i])


def krum(malicious: int = 0, selected: int = 1) -> Oracle:
    """The best, or the mean of the best, which Flower weighs by size."""

    def step(x: np.ndarray, updates: np.ndarray, _: np.ndarray, state: dict[str, Any], number: int) -> np.ndarray:
        best = by_krum_score(updates, malicious)[:selected]
        return np.average(updates[best], axis=0, weights=SIZES[best])

    return step


def bulyan(malicious: int = 0) -> Oracle:
    """El Mhamdi et al. 2018: of n - 2f by Krum's score the n - 4f nearest to the median of each coordinate."""

    def step(x: np.ndarray, updates: np.ndarray, _: np.ndarray, state: dict[str, Any], number: int) -> np.ndarray:
        chosen = updates[by_krum_score(updates, malicious)[: len(updates) - 2 * malicious]]
        new = []
        for column in chosen.T:
            near = sorted(column, key=lambda value: abs(value - np.median(column)))
            new.append(np.mean(near[: len(updates) - 4 * malicious]))
        return np.array(new)

    return step


def qfedavg(q: float = 0.1, rate: float = 0.25) -> Oracle:
    """Li et al. 2020, algorithm 2, with L = 1 / learning rate."""

    def step(x: np.ndarray, updates: np.ndarray, losses: np.ndarray, state: dict[str, Any], number: int) -> np.ndarray:
        logit_gradients = (x - updates) / rate
        deltas = losses[:, None] ** q * logit_gradients
        weights = q * losses ** (q - 1) * (logit_gradients**2).sum(axis=1) + losses**q / rate
        return x - deltas.sum(axis=0) / weights.sum()

    return step


CASES: list[tuple[str, dict[str, Scalar], Oracle]] = [
    ("FedAvg", {}, fedavg()),
    ("FedAvgM", {}, fedavgm()),
    ("FedAvgM", {"strategy.server-learning-rate": 0.5, "strategy.server-momentum": 0.7}, fedavgm(0.5, 0.7)),
    ("FedProx", {}, fedavg()),
    ("FedProx", {"strategy.proximal-mu": 0.3}, fedavg()),
    ("FedAdam", {}, fedadam()),
    ("FedAdam", {"strategy.server-learning-rate": 0.3}, fedadam(eta=0.3)),
    ("FedAdam", {"strategy.beta-1": 0.5, "strategy.beta-2": 0.8}, fedadam(beta_1=0.5, beta_2=0.8)),
    ("FedAdam", {"strategy.tau": 0.5}, fedadam(tau=0.5)),
    ("FedYogi", {}, fedyogi()),
    ("FedYogi", {"strategy.server-learning-rate": 0.3, "strategy.tau": 0.5}, fedyogi(eta=0.3, tau=0.5)),
    ("FedYogi", {"strategy.beta-1": 0.5, "strategy.beta-2": 0.8}, fedyogi(beta_1=0.5, beta_2=0.8)),
    ("FedAdagrad", {}, fedadagrad()),
    ("FedAdagrad", {"strategy.server-learning-rate": 0.3, "strategy.tau": 0.5}, fedadagrad(0.3, 0.5)),
    ("FedMedian", {}, fedmedian()),
    ("FedTrimmedAvg", {}, trimmed(1)),
    ("FedTrimmedAvg", {"strategy.trim-fraction": 0.3}, trimmed(2)),
    ("FedTrimmedAvg", {"strategy.trim-fraction": 0}, trimmed(0)),
    ("Krum", {}, krum()),
    ("Krum", {"strategy.num-malicious": 2}, krum(2)),
    ("MultiKrum", {}, krum()),
    ("MultiKrum", {"strategy.num-malicious": 2, "strategy.num-selected": 3}, krum(2, 3)),
    ("Bulyan", {}, bulyan()),
    ("Bulyan", {"strategy.num-malicious": 1}, bulyan(1)),
    ("QFedAvg", {}, qfedavg()),
    ("QFedAvg", {"strategy.q": 2.0, "training.learning-rate": 0.5}, qfedavg(2.0, 0.5)),
    ("QFedAvg", {"strategy.q": 0}, qfedavg(0.0)),
]


@pytest.mark.parametrize(("name", "settings", "oracle"), CASES)
def test_build_strategy_aggregates_three_rounds_as_worked_by_hand(
    name: str, settings: dict[str, Scalar], oracle: Oracle
) -> None:
    models = federate(config_for(name, settings))

    assert np.allclose(models, by_hand(oracle), rtol=1e-5, atol=1e-6)
    assert len({tuple(model) for model in models}) == ROUNDS


def test_cases_cover_every_strategy() -> None:
    assert {name for name, _, _ in CASES} == set(STRATEGIES)


# FedProx changes what clients do, and Krum picks the same client here: both are asked below.
@pytest.mark.parametrize(
    ("name", "settings"), [(name, given) for name, given, _ in CASES if given and name not in {"FedProx", "Krum"}]
)
def test_parameters_that_are_given_change_the_model(name: str, settings: dict[str, Scalar]) -> None:
    assert not np.allclose(federate(config_for(name, settings)), federate(config_for(name)), rtol=1e-3)


def test_krum_is_told_how_many_are_malicious() -> None:
    assert vars(build_strategy(config_for("Krum", {"strategy.num-malicious": 2})))["num_malicious_nodes"] == 2


def test_robust_strategies_stay_with_the_honest_and_the_mean_does_not() -> None:
    f: dict[str, Scalar] = {"strategy.num-malicious": 2}
    honest = by_hand(lambda x, updates, losses, state, number: updates[:5].mean(axis=0))[-1]

    for name, settings in (
        ("Krum", f),
        ("MultiKrum", f),
        ("FedMedian", {}),
        ("FedTrimmedAvg", {"strategy.trim-fraction": 0.3}),
    ):
        assert np.abs(federate(config_for(name, settings))[-1] - honest).max() < 0.7
    assert np.abs(federate(config_for("FedAvg"))[-1] - honest).max() > 2


@pytest.mark.parametrize(
    ("name", "settings", "mu"), [("FedProx", {"strategy.proximal-mu": 0.3}, 0.3), ("FedProx", {}, 0.0)]
)
def test_fedprox_tells_its_factor_to_the_clients(name: str, settings: dict[str, Scalar], mu: float) -> None:
    heard: list[dict[str, Any]] = []

    federate(config_for(name, settings), heard)

    assert {message["proximal-mu"] for message in heard} == {mu}
    assert {message["server-round"] for message in heard} == {1, 2, 3}


_PRIVATE: dict[str, Scalar] = {"privacy.mechanism": "dp-sgd"}


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "QFedAvg"])
def test_build_strategy_takes_every_other_strategy_under_dp(name: str) -> None:
    assert type(build_strategy(config_for(name, _PRIVATE))).__name__ == name


def test_qfedavg_under_dp_is_refused_before_anything_is_built() -> None:
    with pytest.raises(ConfigError, match="QFedAvg"):
        config_for("QFedAvg", _PRIVATE)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("FedAvg", {"strategy.q": 0.2}, r"strategy\.q=0\.2 does not belong.*'FedAvg'.*no settings.*use one of QFedAvg"),
        ("FedProx", {"strategy.tau": 0.2}, r"takes strategy\.proximal-mu.*FedAdam, FedYogi, FedAdagrad"),
        ("FedAdagrad", {"strategy.beta-1": 0.9}, "one of FedAdam, FedYogi"),
        ("Krum", {"strategy.num-selected": 2}, "one of MultiKrum"),
        ("FedMedian", {"strategy.trim-fraction": 0.0}, "one of FedTrimmedAvg"),
        ("FedAvg", {"strategy.server-learning-rate": 1.0}, "one of FedAvgM, FedAdam, FedYogi, FedAdagrad"),
        ("FedTrimmedAvg", {"strategy.trim-fraction": 0.5}, "below 0.5"),
        ("FedTrimmedAvg", {"strategy.trim-fraction": 0.14}, "at least 8 clients"),
        ("FedTrimmedAvg", {"strategy.trim-fraction": 5e-324}, "removes no client's value"),
        ("Krum", {"strategy.num-malicious": 3}, "at least 9 clients a round.*has 7"),
        ("MultiKrum", {"strategy.num-malicious": 3}, "at least 9"),
        ("MultiKrum", {"strategy.num-malicious": 2, "strategy.num-selected": 6}, "only 5 clients"),
        ("Bulyan", {"strategy.num-malicious": 2}, "at least 11"),
        ("FedMedian", {"client-fraction": 0.29}, "at least 3"),
        ("FedTrimmedAvg", {"client-fraction": 0.6}, "at least 5"),
    ],
)
def test_check_strategy_refuses_what_the_strategy_cannot_do(name: str, settings: dict[str, Scalar], said: str) -> None:
    config = config_for(name, settings)

    with pytest.raises(ConfigError, match=said):
        check_strategy(config)
    with pytest.raises(ConfigError, match=said):
        build_strategy(config)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Krum", {"strategy.num-malicious": 2}),
        ("Bulyan", {"strategy.num-malicious": 1}),
        ("MultiKrum", {"strategy.num-malicious": 2, "strategy.num-selected": 5}),
        ("FedTrimmedAvg", {"strategy.trim-fraction": 1 / 7}),
        ("FedTrimmedAvg", {"strategy.trim-fraction": 0.49}),
    ],
)
def test_check_strategy_takes_the_smallest_cohort(name: str, settings: dict[str, Scalar]) -> None:
    check_strategy(config_for(name, settings))


def test_least_trimmed_cohort_really_cuts_as_flower_rounds() -> None:
    for clients in range(3, 80):
        for trim in (1 / clients, float(np.nextafter(1 / clients, 0)), 0.13, 0.2, 0.37):
            config = config_for("FedTrimmedAvg", {"num-clients": clients, "strategy.trim-fraction": trim})
            if int(trim * clients) >= 1:
                check_strategy(config)
            else:
                with pytest.raises(ConfigError, match="removes no client's value"):
                    check_strategy(config)
