"""Sizes of clients from counting alone, without decoding an image."""

import numpy as np

from common.config.sections import DataConfig, Unit
from common.data.partitioning.assignment import count_groups
from common.data.partitioning.partitioners import assign_clients
from common.data.partitioning.privacy_units import group_names, natural_clients
from common.data.sources.base_source import Entries
from common.errors import ConfigError

_MAX_DIGITS = 12


def read_sizes(text: str) -> tuple[int, ...]:
    """Read the sizes that a user writes, one per client.

    They are joined by commas, or by spaces alone.

    >>> read_sizes("300, 800,5000"), read_sizes("300 800")
    ((300, 800, 5000), (300, 800))

    Raises:
        ConfigError: One of them is not a whole number above 0.
    """
    parts = text.split() if "," not in text and text.strip() else text.split(",")
    for part in (words := [part.strip() for part in parts]):
        # Python refuses to read very long numbers, so only the first digits are looked at.
        if not (part.isascii() and part.isdecimal() and int(part[:_MAX_DIGITS]) and len(part) <= _MAX_DIGITS):
            raise ConfigError(
                f"--sizes {text!r}: {part!r} is not a size; give whole numbers above 0, one per client, such as "
                "300,800,5000"
            )
    return tuple(map(int, words))


def client_sizes(
    entries: Entries, data: DataConfig, *, num_clients: int, seed: int, unit: Unit = "image"
) -> tuple[np.ndarray, int]:
    """Count the training units that a run gives to each client.

    Returns (num_clients,) int64, and the number of training images that no client gets. Bad images count: a declared
    size does not depend on them.

    Raises:
        DataError: The images cannot be divided as the settings ask.
    """
    owner = training_owners(entries, data, num_clients=num_clients, seed=seed)
    groups = _training_groups(entries)
    if unit == "image" or groups is None:
        sizes = np.bincount(owner + 1, minlength=num_clients + 1)[1:]
    else:
        sizes = count_groups(owner, groups, num_clients)
    return sizes, int((owner < 0).sum())


def training_owners(entries: Entries, data: DataConfig, *, num_clients: int, seed: int) -> np.ndarray:
    """Return the client of each training image in a run, (entries.num_train,) integers.

    It is -1 for an image that no client gets.

    Raises:
        DataError: The images cannot be divided as the settings ask.
    """
    split = entries.num_train
    names, naturals = natural_clients(entries.clients)
    naturals = None if naturals is None else naturals[:split]
    groups = _training_groups(entries)
    return assign_clients(
        entries.labels[:split], data, num_clients=num_clients, seed=seed, groups=groups, naturals=naturals, names=names
    )


def _training_groups(entries: Entries) -> np.ndarray | None:
    groups = group_names(entries.units)
    return None if groups is None else groups[: entries.num_train]
