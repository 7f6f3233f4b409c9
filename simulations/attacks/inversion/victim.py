"""Victim of the inversion demo.

It is a client that holds one real image of a source and no other.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from client.training.class_weights import label_counts_of
from client.training.round_settings import LocalSettings, settings_of
from client.training.trainer import Trainer
from common.arrays import Arrays
from common.config.schema import RunConfig
from common.data.client_dataset import Shard
from common.data.image_digests import ImageDigests
from common.data.preprocessing import Prepared
from common.errors import ConfigError, DataError
from common.models.initialization import initial_arrays
from common.privacy.plan import PrivacyPlan

_CHUNK = 4096
_NAME = "victim"


@dataclass(frozen=True)
class Victim:
    """Client with one image in round 1 of a run.

    Attributes:
        config: Settings with mechanism `dp-sgd`; those without privacy are derived from it.
        prepared: The source that holds the image.
        image: Number of the entry in the source.
    """

    config: RunConfig
    prepared: Prepared
    image: int

    @property
    def pixels(self) -> np.ndarray:
        """(side, side, channels) uint8, as the network sees it."""
        return np.asarray(self.prepared.inputs[np.array([self.image])][0])

    @property
    def label(self) -> int:
        """Its class."""
        return int(self.prepared.scan.labels[self.image])

    @cached_property
    def plan(self) -> PrivacyPlan:
        """Privacy plan that the run agrees on with a client of one image."""
        return self.config.plan(1)

    @property
    def settings(self) -> LocalSettings:
        """Public settings of the client's training in round 1."""
        return settings_of(self.config, server_round=1)

    @cached_property
    def start(self) -> Arrays:
        """The weights that the server sends in round 1."""
        return initial_arrays(self.config, self.pixels.shape, self.prepared.scan.classes)

    def reply(self, *, private: bool) -> Arrays:
        """Return the float32 weights that the real client code sends back.

        With privacy its noise comes from the operating system and is fresh in each call.
        """
        privacy = self.config.privacy.model_copy(update={"mechanism": "none"})
        config = self.config if private else self.config.model_copy(update={"privacy": privacy})
        trainer = Trainer(config, self.pixels.shape, self.prepared.scan.classes)
        plan, shard = self.plan if private else None, self._shard()
        counts = label_counts_of(shard, len(trainer.classes), plan)
        return trainer.train(dict(self.start), shard, name=_NAME, server_round=1, plan=plan, label_counts=counts)

    def _shard(self) -> Shard:
        row, none = np.array([self.image]), np.zeros(0, dtype=np.int64)
        own, other = (
            ImageDigests(self.prepared.scan.file_digests[rows], self.prepared.scan.digests[rows], np.arange(len(rows)))
            for rows in (row, none)
        )
        images = self.prepared.inputs[row]
        return Shard(
            train_inputs=images,
            train_labels=self.prepared.scan.labels[row],
            test_inputs=images[:0],
            test_labels=none,
            num_units=1,
            train_digests=self.prepared.scan.digests[row],
            train_units=np.arange(1),
            evaluation_units=none,
            train_holdings=own,
            test_holdings=other,
        )


def victim_of(config: RunConfig, prepared: Prepared, image: int) -> Victim:
    """Return a client that holds one image alone.

    Raises:
        ConfigError: The source has no such number.
        DataError: That image cannot be used, or there is no other one.
    """
    number = len(prepared.scan.labels)
    if not 0 <= image < number:
        raise ConfigError(f"--image {image}: {config.data.source} has images 0 to {number - 1}")
    if not prepared.scan.usable[image]:
        raise DataError(f"--image {image}: it cannot be read, or its class is not in the list; choose another number")
    victim = Victim(config, prepared, image)
    if not len(_others(victim)):
        raise DataError("the demo compares an image with others, and this source has no other one")
    return victim


def mean_image(victim: Victim) -> np.ndarray:
    """Return the average of the source's other images.

    It is (side, side, channels), float64, and the best guess without the update.

    There are others: `victim_of` has seen to it.
    """
    total, rows = np.zeros(victim.pixels.shape), _others(victim)
    for at in range(0, len(rows), _CHUNK):
        total += victim.prepared.inputs[rows[at : at + _CHUNK]].sum(axis=0, dtype=np.float64)
    return np.asarray(total / len(rows))


def rank_of(victim: Victim, guess: np.ndarray) -> int:
    """Return the rank of the true image by similarity to a guess.

    The true one is counted.

    Likeness is correlation of pixels: brightness and contrast do not matter. 1 says that the guess picks out
    the victim's image among all; noise gives any number with equal chance.

    Args:
        victim: Client and image that are attacked.
        guess: (side, side, channels) pixels of any type.
    """
    wanted = _centred(guess[None])[0]
    truth = float(_centred(victim.pixels[None])[0] @ wanted)
    rows, better = _others(victim), 0
    for at in range(0, len(rows), _CHUNK):
        better += int((_centred(victim.prepared.inputs[rows[at : at + _CHUNK]]) @ wanted >= truth).sum())
    return 1 + better


def _others(victim: Victim) -> np.ndarray:
    """Return the rows of usable images with other pixels than the victim's."""
    same = (victim.prepared.scan.digests == victim.prepared.scan.digests[victim.image]).all(axis=1)
    return np.flatnonzero(victim.prepared.scan.usable & ~same)


def _centred(images: np.ndarray) -> np.ndarray:
    """Return images with mean 0 and length 1, shape (n, pixels), float32.

    An image of one colour becomes zeros.
    """
    rows = images.reshape(len(images), -1).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1.0)
