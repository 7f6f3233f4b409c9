"""The unit that is in or out: what an auditor plants, and where."""

from typing import Literal, get_args

import numpy as np

from common.errors import ConfigError
from simulations.harness.harness_images import Images

CanaryKind = Literal["dirac", "mislabelled", "blank"]
CANARIES: tuple[str, ...] = get_args(CanaryKind)
_NORM = 100.0


def with_canary(images: Images, kind: CanaryKind, *, num_classes: int) -> Images:
    """These images and one canary behind them.

    Args:
        images: The client's.
        kind: `dirac`, a row that is long in the one feature that others use least, and zero elsewhere;
            `mislabelled`, the client's first image under the next class; `blank`, all zeros, of the last class.
        num_classes: How many classes there are.

    Raises:
        ConfigError: There is no such canary for these inputs.
    """
    shape = images.inputs.shape[1:]
    if kind == "dirac":
        if len(shape) != 1:
            raise ConfigError("the canary 'dirac' is a row of features: this run trains on pixels, use 'blank'")
        row = np.zeros((1, *shape), dtype=np.float32)
        row[0, np.abs(images.inputs).sum(axis=0).argmin()] = _NORM
        return images.with_unit(row, np.array([0]))
    if kind == "blank":
        return images.with_unit(np.zeros((1, *shape), images.inputs.dtype), np.array([num_classes - 1]))
    trained = np.flatnonzero(~images.held_out)
    if not len(trained):
        raise ConfigError("the canary 'mislabelled' is one of the client's images: keep some on the bench")
    first = trained[:1]
    rest = images.only(np.arange(len(images.labels)) != first[0])
    return rest.with_unit(images.inputs[first], (images.labels[first] + 1) % num_classes)
