"""T4: batches that are no Poisson samples, or steps that are not charged as they are made."""

from typing import Any

import numpy as np
import pytest

import client.training.dp_sgd as head_training
from client.training.optimizer import ArrayOptimizer
from common.privacy.noise import UniformStream
from tests.mutants.registry import mutant

_ONE, _SIZES = "how often one unit joins", "batch sizes vary"


@mutant("T4", _ONE, listed="shuffled batches")
def batches_are_shuffled(patch: pytest.MonkeyPatch) -> None:
    """Each unit is in one batch of each pass over a shuffled list, accounted as Poisson sampling.

    Source: Chua et al. 2024, arXiv:2403.17673, and Annamalai et al. 2024, arXiv:2411.10614, who find up to 4 times the
    stated leakage; google-deepmind/jax_privacy issue 84; meta-pytorch/opacus issue 80.
    """
    state: dict[str, Any] = {"stream": None}

    def batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
        size = int(np.ceil(num_rows * sample_rate))
        if state["stream"] is not stream or not len(state["left"]):
            state.update(stream=stream, left=np.argsort(stream.uniforms(num_rows)))
        found, state["left"] = state["left"][:size], state["left"][size:]
        return np.sort(found)

    patch.setattr(head_training, "poisson_batch", batch)


@mutant("T4", _SIZES)
def batches_are_of_one_size(patch: pytest.MonkeyPatch) -> None:
    """As many units as expected, drawn without replacement.

    Source: tensorflow/privacy issue 483; what it does to the analysis: meta-pytorch/opacus pull request 128.
    """

    def batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
        return np.sort(np.argsort(stream.uniforms(num_rows))[: round(num_rows * sample_rate)])

    patch.setattr(head_training, "poisson_batch", batch)


@mutant("T4", _ONE)
def batches_are_drawn_with_replacement(patch: pytest.MonkeyPatch) -> None:
    """A unit may be in a batch several times.

    Source: what Opacus' `UniformWithReplacementSampler` says that it does (it does not: meta-pytorch/opacus issue 161).
    """

    def batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
        return np.sort((stream.uniforms(round(num_rows * sample_rate)) * num_rows).astype(np.int64))

    patch.setattr(head_training, "poisson_batch", batch)


@mutant("T4", _SIZES)
def batches_are_cut_off(patch: pytest.MonkeyPatch) -> None:
    """A batch that is larger than there is memory for loses its last units, and the accountant does not know.

    Source: Chua et al. 2024, arXiv:2411.04205, truncate batches too, and pay for it.
    """
    real = head_training.poisson_batch

    def batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
        return real(num_rows, sample_rate=sample_rate, stream=stream)[: round(0.8 * num_rows * sample_rate)]

    patch.setattr(head_training, "poisson_batch", batch)


@mutant("T4", _ONE)
def a_batch_is_drawn_once_a_round(patch: pytest.MonkeyPatch) -> None:
    """All steps of a round take the same batch: who joins, joins all of them."""
    real, kept = head_training.poisson_batch, dict[str, Any](stream=None)

    def batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
        if kept["stream"] is not stream:
            kept.update(stream=stream, batch=real(num_rows, sample_rate=sample_rate, stream=stream))
        return np.asarray(kept["batch"])

    patch.setattr(head_training, "poisson_batch", batch)


@mutant("T4", "declared rate")
def the_rate_follows_from_the_units_that_were_found(patch: pytest.MonkeyPatch) -> None:
    """Expected batch over the number of images that are there: after bad files went, more than was declared."""
    real = head_training.poisson_batch

    def batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
        return real(num_rows, sample_rate=min(1.0, 40 * sample_rate / max(1, num_rows)), stream=stream)

    patch.setattr(head_training, "poisson_batch", batch)


@mutant("T4", _SIZES)
def units_join_in_blocks(patch: pytest.MonkeyPatch) -> None:
    """Blocks of four neighbours are drawn, as from files of records: each unit at the right rate, but not alone."""

    def batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
        return np.flatnonzero(np.repeat(stream.uniforms(-(-num_rows // 4)), 4)[:num_rows] < sample_rate)

    patch.setattr(head_training, "poisson_batch", batch)


@mutant("T4", "each drawing noise", listed="empty batches skipped")
def empty_batches_are_skipped(patch: pytest.MonkeyPatch) -> None:
    """A step without examples is left out: no noise is drawn for it, but it is charged, and its absence seen.

    Source: meta-pytorch/opacus pull request 164 ("skipping empty batches in the sampler"), for issue 161.
    """
    real_batch, real_noise, real_step = head_training.poisson_batch, head_training.add_noise, ArrayOptimizer.step
    empty = [False]

    def batch(*args: Any, **more: Any) -> np.ndarray:
        found = real_batch(*args, **more)
        empty[0] = not len(found)
        return found

    def step(self: ArrayOptimizer, weights: np.ndarray, gradient: np.ndarray) -> None:
        if not empty[0]:
            real_step(self, weights, gradient)

    patch.setattr(head_training, "poisson_batch", batch)
    patch.setattr(head_training, "add_noise", lambda total, **more: total if empty[0] else real_noise(total, **more))
    patch.setattr(ArrayOptimizer, "step", step)


@mutant("T4", "each drawing sampling")
def a_full_pass_ends_a_round_early(patch: pytest.MonkeyPatch) -> None:
    """Sampling goes on until the expected number of units was seen, however many steps that takes: data decides."""
    real, steps = head_training.poisson_batch, dict[str, Any](stream=None)

    def batch(num_rows: int, *, sample_rate: float, stream: UniformStream) -> np.ndarray:
        if steps["stream"] is not stream:
            steps.update(stream=stream, seen=0)
        if steps["seen"] >= num_rows:
            return np.zeros(0, dtype=np.int64)
        found = real(num_rows, sample_rate=sample_rate, stream=stream)
        steps["seen"] += len(found)
        return found

    patch.setattr(head_training, "poisson_batch", batch)
