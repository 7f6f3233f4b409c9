"""Tensors of a model and their values as one vector."""

import math
from collections.abc import Iterable, Mapping

import numpy as np

# Name of a parameter -> its values, in the order in which they travel.
Arrays = dict[str, np.ndarray]


def shapes_of(arrays: Arrays) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of tensors, in order."""
    return {name: array.shape for name, array in arrays.items()}


def to_vector(arrays: Arrays, names: Iterable[str]) -> np.ndarray:
    """Return all values of the named tensors in the order of `names`, (d,) float64."""
    return np.concatenate([np.asarray(arrays[name], dtype=np.float64).ravel() for name in names])


def from_vector(values: np.ndarray, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return the tensors whose values a vector (d,) holds in the order of `shapes`."""
    parts = np.split(values, np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1])
    return {name: part.reshape(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
