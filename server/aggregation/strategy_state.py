"""What a Flower strategy carries from round to round: a table, because strategies cannot say it themselves."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from common.arrays import Arrays
from common.errors import ConfigError

# Strategy -> attributes that a later round reads; a test compares it with what Flower's strategies change.
CARRIED: dict[str, tuple[str, ...]] = {
    "FedAvgM": ("current_arrays", "momentum_vector"),
    "FedAdam": ("m_t", "v_t"),
    "FedYogi": ("m_t", "v_t"),
    "FedAdagrad": ("m_t", "v_t"),
}


def read_state(strategy: Strategy) -> tuple[Arrays, dict[str, Any]]:
    """What a strategy must get back to go on as if nothing had happened.

    Returns:
        Tensors by name, and how they make up each attribute, in plain values.

    Raises:
        ConfigError: An attribute is of a kind that cannot be kept.
    """
    tensors: Arrays = {}
    kinds: dict[str, Any] = {}
    for attribute in CARRIED.get(type(strategy).__name__, ()):
        value = getattr(strategy, attribute)
        if value is None:
            kinds[attribute] = {"kind": "none"}
            continue
        named = _named(attribute, value)
        kinds[attribute] = {"kind": type(value).__name__, "names": list(named)}
        tensors |= {f"{attribute}\x1f{name}": array for name, array in named.items()}
    return tensors, kinds


def _named(attribute: str, value: Any) -> Arrays:
    if isinstance(value, ArrayRecord):
        return {name: array.numpy() for name, array in value.items()}
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return {str(number): array for number, array in enumerate(value)}
    raise ConfigError(f"the strategy's {attribute} cannot be kept: it is a {type(value).__name__}")


def write_state(strategy: Strategy, tensors: Mapping[str, np.ndarray], kinds: Mapping[str, Any]) -> None:
    """Give a fresh strategy what `read_state` has read from another.

    Raises:
        ConfigError: The state belongs to another strategy.
    """
    if set(kinds) != set(CARRIED.get(type(strategy).__name__, ())):
        raise ConfigError(f"the checkpoint's strategy is not {type(strategy).__name__}")
    for attribute, found in kinds.items():
        named = {name: tensors[f"{attribute}\x1f{name}"] for name in found.get("names", ())}
        values: dict[str, Any] = {
            "none": None,
            "ArrayRecord": ArrayRecord({name: Array(array) for name, array in named.items()}),
            "dict": named,
            "list": list(named.values()),
        }
        setattr(strategy, attribute, values[found["kind"]])
