"""Attributes of a Flower strategy that a checkpoint stores and a resumed run restores."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord
from flwr.serverapp.strategy import Strategy

from common.arrays import Arrays
from common.errors import ConfigError
from common.strategies import STRATEGIES

# Between an attribute's name and a tensor's: a character that neither can hold.
_SEPARATOR = "\x1f"


def read_state(strategy: Strategy) -> tuple[Arrays, dict[str, Any]]:
    """Return all that a strategy of the same name needs to continue.

    Return arrays by name, and for each attribute how they make it up, in plain values.

    Raises:
        ConfigError: An attribute has a type that cannot be stored.
    """
    tensors: Arrays = {}
    layout: dict[str, Any] = {}
    for attribute in _attributes(strategy):
        value = getattr(strategy, attribute)
        if value is None:
            layout[attribute] = {"kind": "none"}
            continue
        named = _named(attribute, value)
        layout[attribute] = {"kind": type(value).__name__, "names": list(named)}
        tensors |= {f"{attribute}{_SEPARATOR}{name}": array for name, array in named.items()}
    return tensors, layout


def write_state(strategy: Strategy, tensors: Mapping[str, np.ndarray], layout: Mapping[str, Any]) -> None:
    """Set the attributes of a fresh strategy to what `read_state` returned.

    Raises:
        ConfigError: The state belongs to another strategy.
    """
    if set(layout) != set(_attributes(strategy)):
        raise ConfigError(f"the checkpoint's strategy is not {type(strategy).__name__}")
    for attribute, stored in layout.items():
        named = {name: tensors[f"{attribute}{_SEPARATOR}{name}"] for name in stored.get("names", ())}
        values: dict[str, Any] = {
            "none": None,
            "ArrayRecord": ArrayRecord({name: Array(array) for name, array in named.items()}),
            "dict": named,
            "list": list(named.values()),
        }
        setattr(strategy, attribute, values[stored["kind"]])


def _attributes(strategy: Strategy) -> tuple[str, ...]:
    return STRATEGIES[type(strategy).__name__].state


def _named(attribute: str, value: Any) -> Arrays:
    if isinstance(value, ArrayRecord):
        return {name: array.numpy() for name, array in value.items()}
    if isinstance(value, dict):
        return dict(value)
    if isinstance(value, list):
        return {str(number): array for number, array in enumerate(value)}
    raise ConfigError(f"the strategy's {attribute} cannot be stored: it is a {type(value).__name__}")
