"""Weights of a backbone: found, read as data only, checked by hash."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import WeightsError

if TYPE_CHECKING:
    import torch


RANDOM = "random"


def hash_tensors(tensors: "dict[str, torch.Tensor]") -> str:
    """SHA-256 over the tensors' names, shapes and float32 bytes, in name order.

    Returns:
        64 hex digits; equal for equal weights, whatever file they came in.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().float().numpy()
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_weights_file(weights: str) -> None:
    """Refuse a weights file that does not exist, also where cached features make it unneeded.

    Raises:
        WeightsError: `weights` names no file.
    """
    if weights and weights != RANDOM and not Path(weights).is_file():
        raise WeightsError(
            f"model.weights: there is no file {weights}\n  put the weights there (.safetensors or .pth), or leave "
            "model.weights empty to use the installed package or the hub"
        )


def read_tensors(file: Path) -> "dict[str, torch.Tensor]":
    """All tensors of a file, read as data only: no code in it is ever run.

    Raises:
        WeightsError: The file is not a file of tensors.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        import torch

        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
        nested = loaded.get("state_dict", loaded.get("model", loaded))
        return {str(key): value.detach() for key, value in nested.items()}
    except Exception as error:
        raise WeightsError(f"model.weights: {file} cannot be read as weights ({type(error).__name__})") from None
