"""NumPy archives that are written whole or not at all."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from common.system.files import atomic_stream


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an .npz file that only its owner can read.

    Guarantee: other processes see the old file or the whole new one.

    Raises:
        OSError: The file cannot be written, and the old one is still as it was.
    """
    # Labels and digests of images are for the owner's eyes alone.
    with atomic_stream(file, durable=False, mode=0o600) as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
