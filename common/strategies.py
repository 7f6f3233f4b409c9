"""Table of the aggregation strategies with all that Bract must know of each.

All of them are Flower's own.
"""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# A strategy's settings by name -> smallest cohort that works, and the reason for an error text.
MinCohort = Callable[[Mapping[str, Any]], tuple[int, str]]
FLOWER_TRIM_FRACTION = 0.2


def _any_cohort(_: Mapping[str, Any]) -> tuple[int, str]:
    return 1, "any number works"


def _median_cohort(_: Mapping[str, Any]) -> tuple[int, str]:
    return 3, "a median of two is their mean"


def _malicious_cohort(factor: int) -> MinCohort:
    """Return the rule n >= factor * f + 3 for f malicious clients."""

    def rule(settings: Mapping[str, Any]) -> tuple[int, str]:
        malicious = settings.get("num_malicious", 0)
        return factor * malicious + 3, f"{factor} x num-malicious + 3 with num-malicious={malicious}"

    return rule


def _trimmed_cohort(settings: Mapping[str, Any]) -> tuple[int, str]:
    """Return the smallest n with int(trim * n) >= 1, as Flower rounds down."""
    trim = settings.get("trim_fraction", FLOWER_TRIM_FRACTION)
    smallest = 1
    if trim:
        # A tiny fraction would overflow an integer. No run has this many clients.
        smallest = math.ceil(min(1 / trim, 1e9))
        smallest += trim * smallest < 1
    return smallest, f"with fewer, trim-fraction={trim} removes no client's value"


@dataclass(frozen=True)
class StrategyInfo:
    """Row of the table.

    Attributes:
        name: Name of Flower's class, and the value of `strategy.name`.
        summary: What it does, for `bract list`.
        parameters: Setting of `[strategy]` -> the argument of Flower's class that it becomes.
        min_cohort: Smallest cohort at which the strategy's guarantee can hold.
        uniform: Whether it averages uniformly, or only reshapes an average. Noise at the server needs this.
        needs_exact_loss: Whether clients must send their exact training loss, which no mechanism releases.
        state: Attributes of Flower's object that a later round reads. A resumed run restores them.
    """

    name: str
    summary: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    min_cohort: MinCohort = _any_cohort
    uniform: bool = False
    needs_exact_loss: bool = False
    state: tuple[str, ...] = ()


_ADAPTIVE = {"server_learning_rate": "eta", "tau": "tau"}
_MOMENTS = _ADAPTIVE | {"beta_1": "beta_1", "beta_2": "beta_2"}
_MOMENTUM = {"server_learning_rate": "server_learning_rate", "server_momentum": "server_momentum"}
_PROXIMAL = {"proximal_mu": "proximal_mu"}
_MALICIOUS = {"num_malicious": "num_malicious_nodes"}
_SELECTED = _MALICIOUS | {"num_selected": "num_nodes_to_select"}
_M_V, _MOMENTUM_STATE = ("m_t", "v_t"), ("current_arrays", "momentum_vector")
# Source of the cohort rules: Blanchard et al. 2017, arXiv:1703.02757 (Krum, n >= 2f + 3);
# El Mhamdi et al. 2018, arXiv:1802.07927 (Bulyan, n >= 4f + 3).
_KRUM, _BULYAN = _malicious_cohort(2), _malicious_cohort(4)
_Q_SUMMARY = "clients with a higher loss weigh more; privacy.mechanism=none only"
_Row = StrategyInfo
_ROWS = (
    _Row("FedAvg", "the average of the clients' models", uniform=True),
    _Row("FedAvgM", "averaging with momentum at the server", _MOMENTUM, uniform=True, state=_MOMENTUM_STATE),
    _Row("FedProx", "averaging; a term holds clients near the global model", _PROXIMAL, uniform=True),
    _Row("FedAdam", "Adam at the server on the averaged update", _MOMENTS, uniform=True, state=_M_V),
    _Row("FedYogi", "Yogi at the server on the averaged update", _MOMENTS, uniform=True, state=_M_V),
    _Row("FedAdagrad", "Adagrad at the server on the averaged update", _ADAPTIVE, uniform=True, state=_M_V),
    _Row("FedMedian", "the median of each value over clients", min_cohort=_median_cohort),
    _Row("FedTrimmedAvg", "the average of each value without its extremes", {"trim_fraction": "beta"}, _trimmed_cohort),
    _Row("Krum", "the one model nearest to its neighbours", _MALICIOUS, _KRUM),
    _Row("MultiKrum", "the average of the models Krum likes best", _SELECTED, _KRUM),
    _Row("Bulyan", "Krum's choice, then trimmed value by value", _MALICIOUS, _BULYAN),
    _Row("QFedAvg", _Q_SUMMARY, {"q": "q"}, needs_exact_loss=True),
)
STRATEGIES: Mapping[str, StrategyInfo] = {row.name: row for row in _ROWS}
UNIFORM_STRATEGIES = tuple(row.name for row in _ROWS if row.uniform)


def known_strategy(name: str) -> str:
    """Return the name of a strategy in the table.

    Raises:
        ValueError: The name is unknown. The text names the nearest known one.
    """
    if name not in STRATEGIES:
        nearest = difflib.get_close_matches(name, STRATEGIES, n=1, cutoff=0.0)[0]
        raise ValueError(f"not a strategy, the nearest is {nearest!r} (known: {', '.join(STRATEGIES)})")
    return name
