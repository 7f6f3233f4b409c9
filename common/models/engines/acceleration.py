"""Networks whose features are computed by their engine."""

import copy

import torch

from common.models.classifier import Network
from common.models.engines.feature_engine import CHUNK, fast_dtype
from common.models.engines.fused_convolutions import fuse_convolutions
from common.system.threads import one_thread


def accelerated(network: Network, device: str) -> tuple[Network, str]:
    """Return a network's copy on its engine with its number format.

    The copy computes the same features, of `CHUNK` images of its backbone's size at once. On devices other than the
    CPU it is the network itself.
    """
    if device != "cpu" or network.body is None:
        return network, fast_dtype(device)
    kind, _, dtype = network.engine.partition("-")
    if kind == "fused":
        side = network.body.preprocessing.image_size
        with one_thread():
            network = copy.deepcopy(network)
            fuse_convolutions(network.body, side, CHUNK, getattr(torch, dtype))  # type: ignore[arg-type]
    return network, dtype
