"""Tensors of a model and their values as one vector."""

import math
from collections.abc import Mapping

import numpy as np

# Name of a parameter -> its values, in the order in which they travel.
Arrays = dict[str, np.ndarray]


def to_vector(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Return all values of some tensors in the order of `shapes`, (d,) float64."""
    return np.concatenate([np.asarray(arrays[name], dtype=np.float64).ravel() for name in shapes])


def from_vector(values: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the tensors whose values a vector (d,) holds in the order of `shapes`."""
    parts = np.split(values, np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
