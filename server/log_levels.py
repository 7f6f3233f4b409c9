"""What a command lets its terminal show of the log."""

import importlib
import logging
import sys


def set_log_levels(*, verbose: bool) -> None:
    """Let the terminal show what the user wants to see; Flower sets its own when it is first imported.

    Args:
        verbose: Whether that is everything.
    """
    importlib.import_module("flwr.app")
    logging.getLogger("flwr").setLevel(logging.INFO if verbose else logging.ERROR)
    logging.getLogger("flwr").propagate = False
    logging.getLogger("absl").setLevel(logging.ERROR)
    logger = logging.getLogger("bract")
    logger.setLevel(logging.INFO if verbose else logging.ERROR)
    if not logger.handlers:
        logger.addHandler(logging.StreamHandler(sys.stderr))
