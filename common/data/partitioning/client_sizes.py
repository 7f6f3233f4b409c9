"""How much each client would hold, from counting alone: nothing is decoded."""

import numpy as np

from common.config.schema import RunConfig
from common.data.partitioning.assignment import count_groups
from common.data.partitioning.partitioners import assign_clients
from common.data.partitioning.privacy_units import group_names, natural_clients
from common.data.sources.base_source import Entries
from common.errors import ConfigError

_MOST_DIGITS = 12


def read_sizes(text: str) -> tuple[int, ...]:
    """Sizes as a user writes them, one a client.

    >>> read_sizes("300, 800,5000")
    (300, 800, 5000)

    Raises:
        ConfigError: One is no whole number above 0.
    """
    for part in (words := [part.strip() for part in text.split(",")]):
        if not (part.isascii() and part.isdecimal() and int(part[:_MOST_DIGITS]) and len(part) <= _MOST_DIGITS):
            raise ConfigError(
                f"--sizes {text!r}: {part!r} is no size; give whole numbers above 0, one a client, such as 300,800,5000"
            )
    return tuple(map(int, words))


def client_sizes(config: RunConfig, entries: Entries) -> tuple[np.ndarray, int]:
    """Training images of each client, and of nobody, as the run will deal them.

    Args:
        config: The run; seed, number of clients and the data section matter.
        entries: Of the run's source. Bad images count: a declared size does not depend on them.

    Returns:
        (num_clients,) int64, and the number of training images that no client gets.

    Raises:
        DataError: The images cannot be dealt as asked.
    """
    owner = _owners(config, entries)
    return np.bincount(owner + 1, minlength=config.num_clients + 1)[1:], int((owner < 0).sum())


def client_units(config: RunConfig, entries: Entries) -> tuple[np.ndarray, int]:
    """The size that each client declares: in images, or in groups of images with `privacy.unit='group'`.

    Args:
        config: The run; `privacy.unit` matters too.
        entries: As for `client_sizes`.

    Returns:
        (num_clients,) int64, and the number of training images that no client gets.

    Raises:
        DataError: The images cannot be dealt as asked.
    """
    groups = group_names(entries.units)
    if config.privacy.unit == "image" or groups is None:
        return client_sizes(config, entries)
    owner = _owners(config, entries)
    return count_groups(owner, groups[: entries.num_train], config.num_clients), int((owner < 0).sum())


def _owners(config: RunConfig, entries: Entries) -> np.ndarray:
    """(num_train,) client of each training entry, -1 where nobody holds it."""
    split, groups = entries.num_train, group_names(entries.units)
    names, naturals = natural_clients(entries.clients)
    return assign_clients(
        entries.labels[:split],
        config.data,
        num_clients=config.num_clients,
        seed=config.seed,
        groups=None if groups is None else groups[:split],
        naturals=None if naturals is None else naturals[:split],
        names=names,
    )
