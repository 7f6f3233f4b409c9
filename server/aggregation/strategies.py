"""Flower's strategies by name, unmodified, with their own parameters and with counts that are summed."""

import math
from typing import Any

from flwr.serverapp import strategy as strategies
from flwr.serverapp.strategy import Strategy

from common.config.schema import RunConfig
from common.errors import ConfigError
from common.messages.codec import sum_counts
from common.messages.fields import TRAIN_LOSS

# Strategy -> setting -> what Flower calls it.
_ADAPTIVE = {"server_learning_rate": "eta", "tau": "tau"}
_MOMENTS = _ADAPTIVE | {"beta_1": "beta_1", "beta_2": "beta_2"}
_MALICIOUS = {"num_malicious": "num_malicious_nodes"}
_PARAMETERS: dict[str, dict[str, str]] = {
    "FedAvg": {},
    "FedAvgM": {"server_learning_rate": "server_learning_rate", "server_momentum": "server_momentum"},
    "FedProx": {"proximal_mu": "proximal_mu"},
    "FedAdam": _MOMENTS,
    "FedYogi": _MOMENTS,
    "FedAdagrad": _ADAPTIVE,
    "FedMedian": {},
    "FedTrimmedAvg": {"trim_fraction": "beta"},
    "Krum": _MALICIOUS,
    "MultiKrum": _MALICIOUS | {"num_selected": "num_nodes_to_select"},
    "Bulyan": _MALICIOUS,
    "QFedAvg": {"q": "q"},
}
_FLOWER_TRIM_FRACTION = 0.2


def build_strategy(config: RunConfig) -> Strategy:
    """The strategy that `strategy.name` names, set to use exactly the nodes it is shown.

    A setting that was left open keeps Flower's own default.

    Args:
        config: The run.

    Raises:
        ConfigError: See `check_strategy`.
    """
    check_strategy(config)
    name = config.strategy.name
    parameters: dict[str, Any] = {_PARAMETERS[name][key]: value for key, value in _given(config).items()}
    if name == "QFedAvg":
        parameters |= {"client_learning_rate": config.training.learning_rate, "train_loss_key": TRAIN_LOSS}
    cls: Any = getattr(strategies, name)
    built: Strategy = cls(
        fraction_train=1.0,
        fraction_evaluate=1.0,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        train_metrics_aggr_fn=sum_counts,
        evaluate_metrics_aggr_fn=sum_counts,
        **parameters,
    )
    return built


def check_strategy(config: RunConfig) -> None:
    """Refuse a strategy that cannot do what was asked, before anything is computed.

    Raises:
        ConfigError: A setting belongs to other strategies, is out of its range, or the
            cohort is too small for the strategy to mean anything.
    """
    name, given = config.strategy.name, _given(config)
    for key in given:
        if key not in _PARAMETERS[name]:
            raise ConfigError(_stranger(name, key, given[key]))
    trim = given.get("trim_fraction", 0.0)
    if trim >= 0.5:
        raise ConfigError(f"strategy.trim-fraction={trim} is cut off at both ends and must stay below 0.5")
    least, why = least_cohort(config)
    if config.cohort_size < least:
        raise ConfigError(
            f"strategy.name={name!r} needs at least {least} clients a round ({why}), the run has "
            f"{config.cohort_size}: raise num-clients or client-fraction"
        )
    most = config.cohort_size - int(given.get("num_malicious", 0))
    if given.get("num_selected", 1) > most:
        raise ConfigError(
            f"strategy.num-selected={given['num_selected']} but a round has only {most} clients that are not malicious"
        )


def _given(config: RunConfig) -> dict[str, Any]:
    return {key: value for key, value in config.strategy if key != "name" and value is not None}


def _stranger(name: str, key: str, value: Any) -> str:
    owners = ", ".join(owner for owner, takes in _PARAMETERS.items() if key in takes)
    takes = ", ".join(f"strategy.{_kebab(own)}" for own in _PARAMETERS[name]) or "no settings of its own"
    return (
        f"strategy.{_kebab(key)}={value} does not belong to strategy.name={name!r}, which takes {takes}: leave it out, "
        f"or use one of {owners}"
    )


def _kebab(key: str) -> str:
    return key.replace("_", "-")


def least_cohort(config: RunConfig) -> tuple[int, str]:
    """The smallest cohort at which a strategy's guarantee can hold, and why.

    Args:
        config: The run.

    Source: Blanchard et al. 2017, arXiv:1703.02757 (Krum, n >= 2f + 3); El Mhamdi et
    al. 2018, arXiv:1802.07927 (Bulyan, n >= 4f + 3).
    """
    settings = config.strategy
    malicious = settings.num_malicious or 0
    if settings.name in ("Krum", "MultiKrum"):
        return 2 * malicious + 3, f"2 x num-malicious + 3 with num-malicious={malicious}"
    if settings.name == "Bulyan":
        return 4 * malicious + 3, f"4 x num-malicious + 3 with num-malicious={malicious}"
    if settings.name == "FedMedian":
        return 3, "a median of two is their mean"
    if settings.name == "FedTrimmedAvg":
        trim = _FLOWER_TRIM_FRACTION if settings.trim_fraction is None else settings.trim_fraction
        return _least_trimmed(trim), f"with fewer, trim-fraction={trim} cuts nobody off"
    return 1, "any will do"


def _least_trimmed(trim: float) -> int:
    """The smallest n with int(trim x n) >= 1, which is how Flower rounds; 1 if nothing is to be cut."""
    if trim == 0:
        return 1
    near = math.ceil(min(1 / trim, 1e9))
    return near + (trim * near < 1)
