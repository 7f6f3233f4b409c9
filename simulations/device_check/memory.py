"""The memory that PyTorch takes on a device."""

import torch


def forget_peak(device: str) -> None:
    """Begin to look for the peak anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()


def peak_mb(device: str) -> float | None:
    """Return the most memory in use, in MB.

    It is None where PyTorch does not count.
    """
    return torch.cuda.max_memory_allocated() / 1e6 if device == "cuda" else None
