"""Images of a client that has joined, whose faults a server must not learn."""

import hashlib
import logging
from pathlib import Path

import numpy as np

from common.config.sections import DataConfig
from common.data.sources.base_source import Entries, ImageSource, image_rows
from common.data.sources.registry import names_a_place, open_source
from common.errors import DataError

_logger = logging.getLogger("bract")


def open_joined(config: DataConfig) -> ImageSource:
    """Open the images of a joined client.

    Faults of its files leave no images. A server cannot tell that from images of other classes.

    Raises:
        DataError: There is nothing at the place that `data.source` names.
    """
    try:
        return open_source(config, joined=True)
    except DataError as error:
        # A share that is not mounted says nothing of the images on it, and its holder wants to know.
        if not names_a_place(config.source) or not Path(config.source).exists():
            raise
        return without_images(config, error)


def without_images(config: DataConfig, why: DataError) -> ImageSource:
    """Return a source of the run's classes without any image."""
    _logger.error("no image is used: %s", why)
    nothing = Entries(image_rows([]), np.zeros(0, np.int64), 0, config.class_names)
    # Never the fingerprint of the real source: its scan is kept, and would be this one when the fault is mended.
    fingerprint = hashlib.sha256(repr(("no images", config.class_names)).encode()).hexdigest()
    return ImageSource("no images", fingerprint, lambda: nothing)
