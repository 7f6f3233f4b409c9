"""Canaries, the units that an auditor adds to a client's images."""

from typing import Literal

import numpy as np

from common.errors import ConfigError
from simulations.harness.harness_images import Images

CanaryKind = Literal["dirac", "mislabelled", "blank"]
_NORM = 100.0


def with_canary(images: Images, kind: CanaryKind, *, num_classes: int) -> Images:
    """Return images with one canary as the last unit.

    Args:
        images: Images of the client.
        kind: `dirac` is one long feature, the one that others use least, and zeros. `mislabelled` is the client's
            first image with the next class as its label. `blank` is all zeros, of the last class.
        num_classes: Number of classes.

    Raises:
        ConfigError: There is no such canary for these inputs.
    """
    shape = images.inputs.shape[1:]
    if kind == "dirac":
        if len(shape) != 1:
            raise ConfigError("the canary 'dirac' is a row of features, and this run trains on pixels: use 'blank'")
        row = np.zeros((1, *shape), dtype=np.float32)
        row[0, np.abs(images.inputs).sum(axis=0).argmin()] = _NORM
        return images.with_unit(row, np.array([0]))
    if kind == "blank":
        return images.with_unit(np.zeros((1, *shape), images.inputs.dtype), np.array([num_classes - 1]))
    trained = np.flatnonzero(~images.held_out)
    if not len(trained):
        raise ConfigError("the canary 'mislabelled' is one of the client's images, and none is left: keep some")
    first = trained[:1]
    rest = images.only(np.arange(len(images.labels)) != first[0])
    return rest.with_unit(images.inputs[first], (images.labels[first] + 1) % num_classes)
