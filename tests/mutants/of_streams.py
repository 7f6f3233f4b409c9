"""T3: noise, or a batch, that was there before."""

import os
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

import client.training.dp_sgd as head_training
from client.training.dp_sgd import PrivateStreams
from client.training.trainer import Trainer
from common.privacy import noise
from tests.mutants.registry import mutant


class Seeded:
    """A stream that can be had again."""

    def __init__(self, *seed: int) -> None:
        self._rng = np.random.default_rng(seed)

    def uniforms(self, size: int) -> np.ndarray:
        return self._rng.uniform(2.0**-53, 1.0, size)

    def random_bytes(self, size: int) -> bytes:
        return self._rng.bytes(size)


def asked(patch: pytest.MonkeyPatch) -> dict[str, Any]:
    """`name` and `round` of what is being trained."""
    known: dict[str, Any] = {}
    real = Trainer.train

    def train(self: Trainer, *args: Any, **more: Any) -> Any:
        known.update(name=more["name"], round=more["server_round"], seed=self.config.seed)
        return real(self, *args, **more)

    patch.setattr(Trainer, "train", train)
    return known


def _with_noise_of(patch: pytest.MonkeyPatch, make: Any) -> None:
    real = PrivateStreams.fresh
    patch.setattr(PrivateStreams, "fresh", classmethod(lambda _: replace(real(), noise=make())))


@mutant("T3", "noise of the same round and of the next round", listed="same noise each round")
def each_round_has_the_same_noise(patch: pytest.MonkeyPatch) -> None:
    """A client seeds its noise by its own name: the difference of two rounds has none.

    Source: seeds for noise are asked for and given, see IBM/differential-privacy-library pull request 72.
    """
    known = asked(patch)
    _with_noise_of(patch, lambda: Seeded(*str(known["name"]).encode()))


@mutant("T3", "noise of the same round and of another client", listed="equal seed at two clients")
def two_clients_have_the_same_noise(patch: pytest.MonkeyPatch) -> None:
    """Seeds depend on the round and on how often a client was asked, but not on who it is."""
    known, times = asked(patch), Counter[tuple[str, int]]()

    def make() -> Seeded:
        times[known["name"], known["round"]] += 1
        return Seeded(known["round"], times[known["name"], known["round"]])

    _with_noise_of(patch, make)


@mutant("T3", "steps adds up")
def each_step_has_the_same_noise(patch: pytest.MonkeyPatch) -> None:
    """The cipher starts at counter 0 in each call: the noise of T steps adds up to T times one of them."""

    class Restarting:
        def __init__(self) -> None:
            self._key = os.urandom(32)

        def random_bytes(self, size: int) -> bytes:
            return Cipher(algorithms.AES(self._key), modes.CTR(bytes(16))).encryptor().update(bytes(size))

    _with_noise_of(patch, Restarting)


@mutant("T3", "draws new batches", listed="sampling stream restored on resume")
def a_round_that_is_asked_again_draws_the_same_batch(patch: pytest.MonkeyPatch) -> None:
    """The sampler comes back from a checkpoint: a round is trained twice on one batch, under new noise."""
    real, known = PrivateStreams.fresh, asked(patch)
    patch.setattr(PrivateStreams, "fresh", classmethod(lambda _: replace(real(), sampling=Seeded(known["round"]))))


@mutant("T3", "one a stream")
def sampling_and_noise_share_a_key(patch: pytest.MonkeyPatch) -> None:
    """One stream for both: whoever learns a batch learns what came before the noise."""

    def fresh(_: object) -> PrivateStreams:
        both = head_training.SecureStream()
        return PrivateStreams(both, both)

    patch.setattr(PrivateStreams, "fresh", classmethod(fresh))


@mutant("T3", "one a stream")
def a_key_lasts_for_a_process(patch: pytest.MonkeyPatch) -> None:
    """A key is drawn when the module is loaded; messages go on in its stream."""
    kept = noise.SecureStream()
    patch.setattr(head_training, "SecureStream", lambda: kept)


@mutant("T3", "one a stream")
def a_key_is_four_bytes(patch: pytest.MonkeyPatch) -> None:
    """A 32-bit seed, stretched: the noise is one of four thousand million, and can be searched for.

    Source: Fed-BioMed's `torch.rand_like`, see fedbiomed/fedbiomed issue 1443; Flower's `np.random`, see
    flwrlabs/flower pull request 7225.
    """
    patch.setattr(
        head_training,
        "SecureStream",
        lambda: Seeded(int.from_bytes(noise.os.urandom(4), "big")),  # type: ignore[attr-defined]
    )


@mutant("T3", "in one message are independent", mode="mlp head")
def tensors_share_their_noise(patch: pytest.MonkeyPatch) -> None:
    """One key for all tensors: each begins with the same noise.

    Source: jax-ml/jax pull request 3646 (its example of DP-SGD used one PRNG key for all parameters).
    """
    real, size = noise.gaussian_integers, 96

    def integers(count: int, **more: Any) -> np.ndarray:
        return np.resize(real(min(count, size), **more), count)

    patch.setattr(noise, "gaussian_integers", integers)


@mutant("T3", "noise of forked process 0 and of forked process 1")
def forked_processes_repeat_each_other(patch: pytest.MonkeyPatch) -> None:
    """A generator in memory: processes that begin as copies of one another go on in the same way."""
    inherited = np.random.default_rng()
    patch.setattr(head_training, "SecureStream", lambda: Seeded(int(inherited.integers(2**63))))


@mutant("T3", "adds up as independent noise does", mode="head, every image in every step")
def all_steps_of_full_batches_have_the_same_noise(patch: pytest.MonkeyPatch) -> None:
    """Noise is drawn once a round and added in each of its steps: T steps have T times its energy."""
    real = head_training.private_steps

    def steps(*args: Any) -> np.ndarray:
        kept: list[bytes] = []

        class Once:
            def __init__(self, stream: Any) -> None:
                self._stream = stream

            def random_bytes(self, size: int) -> bytes:
                # A tie of the noise table asks for a few bytes more.
                if size < 100:
                    return bytes(self._stream.random_bytes(size))
                if not kept:
                    kept.append(self._stream.random_bytes(size))
                return kept[0]

        *first, streams = args
        return real(*first, replace(streams, noise=Once(streams.noise)))

    patch.setattr(head_training, "private_steps", steps)
