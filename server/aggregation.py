"""Flower's strategies by name, unmodified, with counts that are summed."""

from typing import Any

from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import Strategy

from common.errors import ConfigError
from common.records import sum_counts
from common.sections import RunConfig

# The smallest cohort at which a strategy's default parameters make sense.
_LEAST_COHORT = {"Krum": 3, "MultiKrum": 3, "Bulyan": 3, "FedTrimmedAvg": 5, "FedMedian": 3}


def build_strategy(config: RunConfig) -> Strategy:
    """The strategy that `strategy.name` names, set to use exactly the nodes it is shown.

    Raises:
        ConfigError: The cohort is too small for a robust strategy.
    """
    name = config.strategy.name
    if config.cohort_size < _LEAST_COHORT.get(name, 1):
        raise ConfigError(
            f"strategy.name={name!r} needs at least {_LEAST_COHORT[name]} clients a round, the run has "
            f"{config.cohort_size}: raise num-clients or client-fraction"
        )
    cls: Any = getattr(strategies, name)
    built: Strategy = cls(
        fraction_train=1.0,
        fraction_evaluate=1.0,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        train_metrics_aggr_fn=sum_counts,
        evaluate_metrics_aggr_fn=sum_counts,
    )
    return built
