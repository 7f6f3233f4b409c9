"""Flower's own strategies, built by name and checked against the run."""

from typing import Any

from flwr.serverapp import strategy as flower_strategies
from flwr.serverapp.strategy import Strategy

from common.config.schema import RunConfig
from common.errors import ConfigError
from common.messages.codec import sum_counts
from common.messages.fields import TRAIN_LOSS
from common.strategies import STRATEGIES


def build_strategy(config: RunConfig) -> Strategy:
    """Return Flower's strategy of the name in `strategy.name`.

    It uses exactly the nodes that its grid lists. A setting that is left open keeps Flower's default.

    Raises:
        ConfigError: The strategy cannot do what the settings ask, see `check_strategy`.
    """
    check_strategy(config)
    info = STRATEGIES[config.strategy.name]
    arguments: dict[str, Any] = {info.parameters[key]: value for key, value in config.strategy.set_values.items()}
    if info.needs_exact_loss:
        arguments |= {"client_learning_rate": config.training.learning_rate, "train_loss_key": TRAIN_LOSS}
    strategy_class: Any = getattr(flower_strategies, info.name)
    # Cohorts are drawn by Bract, so that privacy plans can count rounds. Flower must not sample a second time.
    strategy: Strategy = strategy_class(
        fraction_train=1.0,
        fraction_evaluate=1.0,
        min_train_nodes=1,
        min_evaluate_nodes=1,
        min_available_nodes=1,
        train_metrics_aggr_fn=sum_counts,
        evaluate_metrics_aggr_fn=sum_counts,
        **arguments,
    )
    return strategy


def check_strategy(config: RunConfig) -> None:
    """Refuse a strategy that cannot do what the settings ask.

    Raises:
        ConfigError: A setting belongs to other strategies or is out of its range, or the cohort is too small for the
            strategy's guarantee.
    """
    info, settings = STRATEGIES[config.strategy.name], config.strategy.set_values
    for key, value in settings.items():
        if key not in info.parameters:
            raise ConfigError(_foreign_setting(info.name, key, value))
    trim = settings.get("trim_fraction", 0.0)
    if trim >= 0.5:
        raise ConfigError(f"strategy.trim-fraction={trim} is cut off at both ends and must stay below 0.5")
    smallest, reason = config.strategy.min_cohort
    if config.cohort_size < smallest:
        raise ConfigError(
            f"strategy.name={info.name!r} needs at least {smallest} clients a round ({reason}), the run has "
            f"{config.cohort_size}: raise num-clients or client-fraction"
        )
    honest = config.cohort_size - int(settings.get("num_malicious", 0))
    if settings.get("num_selected", 1) > honest:
        raise ConfigError(
            f"strategy.num-selected={settings['num_selected']} but a round has only {honest} clients that are not "
            "malicious"
        )


def _foreign_setting(name: str, key: str, value: Any) -> str:
    owners = ", ".join(info.name for info in STRATEGIES.values() if key in info.parameters)
    own = ", ".join(f"strategy.{_kebab(own)}" for own in STRATEGIES[name].parameters) or "no settings of its own"
    return (
        f"strategy.{_kebab(key)}={value} does not belong to strategy.name={name!r}, which takes {own}: leave it out, "
        f"or use one of {owners}"
    )


def _kebab(key: str) -> str:
    return key.replace("_", "-")
