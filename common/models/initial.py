"""The weights that a run starts from: the same at every engine and in every baseline."""

import numpy as np

from common.models.head import initial_head
from common.sections import RunConfig
from common.streams import public_stream


def initial_arrays(config: RunConfig, input_shape: tuple[int, ...], num_classes: int) -> dict[str, np.ndarray]:
    """Trainable tensors before round 1.

    Args:
        config: Backbone and seed matter.
        input_shape: (features,) or (side, side, channels).
        num_classes: Length of the output.

    Returns:
        Name -> float32 array; zeros for a head, scaled normals for a network.
    """
    if config.model.tuning == "head":
        return initial_head(input_shape[0], num_classes)
    from common.models.cnn import initial_cnn

    return initial_cnn(input_shape, num_classes, public_stream(config.seed, "weights"))
