"""Reading and hashing of a backbone's weights."""

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from common.errors import WeightsError

if TYPE_CHECKING:
    import torch


RANDOM = "random"


def hash_tensors(tensors: "dict[str, torch.Tensor]") -> str:
    """Return the SHA-256 of the tensors' names, shapes and float32 bytes.

    The 64 hex digits do not depend on the file format or the order of the tensors.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().float().numpy()
        digest.update(f"{name}{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_weights_file(weights: str) -> None:
    """Refuse `model.weights` if it names a file that does not exist.

    A run on cached features would not need the file, and is refused all the same.

    Raises:
        WeightsError: The file does not exist.
    """
    if weights and weights != RANDOM and not Path(weights).is_file():
        raise WeightsError(
            f"model.weights: there is no file {weights}\n  put the weights there (.safetensors or .pth), or leave "
            "model.weights empty to use the installed package or the hub"
        )


def read_tensors(file: Path) -> "dict[str, torch.Tensor]":
    """Read all tensors of a file, without running any code in it.

    Raises:
        WeightsError: The file does not hold tensors.
    """
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        import torch

        # A .pth file is a pickle, which can run any code. `weights_only` admits tensors alone.
        loaded: Any = torch.load(file, map_location="cpu", weights_only=True)
        nested = loaded.get("state_dict", loaded.get("model", loaded))
        return {str(key): value.detach() for key, value in nested.items()}
    except Exception as error:
        raise WeightsError(f"model.weights: {file} cannot be read as weights ({type(error).__name__})") from None
