"""NumPy archives that are written whole or not at all."""

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def save_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays to an .npz file that only its owner can read.

    Guarantee: other processes see the old file or the whole new one.

    Raises:
        OSError: The file cannot be written; the old one is still as it was.
    """
    # mkstemp gives the mode 0600: labels and digests of images are nobody else's business.
    handle, scratch = tempfile.mkstemp(dir=file.parent, suffix=".part")
    try:
        with os.fdopen(handle, "wb") as stream:
            np.savez(stream, **arrays)  # type: ignore[arg-type]
        os.replace(scratch, file)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
