"""T2: the noise is not as strong as it is declared, or not normal."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

import client.training.dp_sgd as head_training
from client.evaluation import private_counts
from client.training.optimizer import ArrayOptimizer
from common.metrics import Counts, NoisedCounts
from common.privacy import gaussian_table, noise
from common.privacy.counts.discrete_gaussian import ByteStream
from common.privacy.gaussian_table import AliasTable
from simulations.privacy_tests import noise_scale
from tests.mutants.registry import mutant

_ALL = "noise of all tensors has the declared scale"


def _scaled(patch: pytest.MonkeyPatch, factor: float) -> None:
    real = head_training.add_noise

    def add(total: np.ndarray, *, noise_stddev: float, **more: Any) -> np.ndarray:
        return real(total, noise_stddev=noise_stddev * factor, **more)

    patch.setattr(head_training, "add_noise", add)


@mutant("T2", _ALL, listed="noise x 0.9")
def noise_is_a_tenth_too_weak(patch: pytest.MonkeyPatch) -> None:
    """A factor of 0.9 somewhere between plan and noise."""
    _scaled(patch, 0.9)


@mutant("T2", _ALL)
def noise_is_for_the_next_bound_of_an_example(patch: pytest.MonkeyPatch) -> None:
    """A bound that adapts has moved on when the noise is drawn: here by exp(-0.2 / 2), one step of Andrew et al.

    Source: as `noise_is_for_the_next_bound` at the server; the step is that of arXiv:1905.03871.
    """
    _scaled(patch, float(np.exp(-0.2 * 0.5)))


@mutant("T2", _ALL)
def noise_forgets_the_batch_size(patch: pytest.MonkeyPatch) -> None:
    """The sum's noise is scaled for the mean: too weak by the batch size, as the sensitivity of a mean was taken.

    Source: Tramer et al. 2022, arXiv:2202.12219 (a factor of the batch size in Backpropagation Clipping); the other
    way round: google-deepmind/jax_privacy issue 383.
    """
    _scaled(patch, 1 / 20)


@mutant("T2", _ALL, settings={"privacy.max-grad-norm": 2.0})
def noise_forgets_the_bound(patch: pytest.MonkeyPatch) -> None:
    """The noise multiplier is taken for the standard deviation: with a bound above 1, noise is too weak."""
    _scaled(patch, 1 / 2)


@mutant("T2", _ALL)
def noise_of_parts_is_averaged(patch: pytest.MonkeyPatch) -> None:
    """Four parts of a batch get noise each, and their mean is taken: a half of the noise is left.

    Source: the suspicion of tensorflow/privacy issue 88 about microbatches, here made true.
    """
    _scaled(patch, 1 / 2)


@mutant("T2", "noise of head.output.weight", mode="mlp head")
def only_the_first_tensor_is_noised(patch: pytest.MonkeyPatch) -> None:
    """A loop over tensors ends after the first one."""
    real, size = head_training.add_noise, 96

    def add(total: np.ndarray, **more: Any) -> np.ndarray:
        return np.concatenate([real(total, **more)[:size], total[size:]])

    patch.setattr(head_training, "add_noise", add)


@mutant("T2", _ALL)
def some_values_go_without_noise(patch: pytest.MonkeyPatch) -> None:
    """One value in five is clipped, but has no noise.

    Source: NVIDIA/NVFlare issue 343 (SVTPrivacy: values neither accepted nor candidates passed un-noised).
    """
    real = head_training.add_noise

    def add(total: np.ndarray, **more: Any) -> np.ndarray:
        noised = real(total, **more)
        noised[::5] = total[::5]
        return noised

    patch.setattr(head_training, "add_noise", add)


@mutant("T2", "shape of a normal")
def noise_has_another_law(patch: pytest.MonkeyPatch) -> None:
    """Laplace noise of the same variance, under an accountant for Gaussian noise."""

    def laplace(size: int, *, stddev: Fraction, stream: ByteStream) -> np.ndarray:
        words = np.frombuffer(stream.random_bytes(16 * size), dtype="<u8") + 0.5
        return np.asarray(np.rint(np.log(words[:size] / words[size:]) * np.sqrt(0.5) * float(stddev)))

    patch.setattr(noise, "gaussian_integers", laplace)


@mutant("T2", "shape of a normal")
def noise_has_no_tails(patch: pytest.MonkeyPatch) -> None:
    """Noise is cut off at one and a half standard deviations and scaled up again: beyond the cut, delta is 1.

    Source: a bounded Gaussian mechanism is offered in IBM/differential-privacy-library issue 104.
    """
    real = noise.gaussian_integers

    def bounded(size: int, *, stddev: Fraction, stream: ByteStream) -> np.ndarray:
        end = 1.5 * float(stddev)
        return np.rint(real(size, stddev=stddev, stream=stream).clip(-end, end) / 0.8823)

    patch.setattr(noise, "gaussian_integers", bounded)


@mutant("T2", "the noise table has a normal's law")
def the_table_ends_at_four_deviations(patch: pytest.MonkeyPatch) -> None:
    """Chances below 2^-16 are rounded to zero: no sample of this size shows it, and beyond the end delta is 1."""

    def short() -> list[int]:
        weights = real()
        cut = range(4 * gaussian_table.TABLE_STDDEV, len(weights) - 4 * gaussian_table.TABLE_STDDEV)
        for column in cut:
            weights[0] += weights[column]
            weights[column] = 0
        return weights

    real = gaussian_table._weights
    patch.setattr(gaussian_table, "_weights", short)
    _with_new_table(patch)


@mutant("T2", "the noise table has a normal's law")
def the_table_is_a_little_narrow(patch: pytest.MonkeyPatch) -> None:
    """The table is made for a standard deviation of 1023 and used as one of 1024: 0.1 % less noise."""
    table, patched = gaussian_table._weights.__globals__, gaussian_table.TABLE_STDDEV - 1
    real = gaussian_table._weights

    def narrow() -> list[int]:
        with patch.context() as inner:
            inner.setitem(table, "TABLE_STDDEV", patched)
            return real()

    patch.setattr(gaussian_table, "_weights", narrow)
    _with_new_table(patch)


@mutant("T2", _ALL)
def the_coin_of_the_table_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """Each column is taken for its own value: the noise is uniform over the table."""

    def draw(self: AliasTable, size: int, stream: ByteStream) -> np.ndarray:
        return np.frombuffer(stream.random_bytes(4 * size), dtype="<u2")[:size].view(np.int16)

    patch.setattr(AliasTable, "draw", draw)


@mutant("T2", "has all low digits")
def the_low_digits_are_dropped(patch: pytest.MonkeyPatch) -> None:
    """Only the widest table draw is used: the standard deviation is right to 0.01 %, and the sum shows through."""
    real = gaussian_table.factors
    patch.setattr(gaussian_table, "factors", lambda stddev: real(stddev)[-1:])


@mutant("T2", "takes all values of the grid")
def all_digits_come_from_one_draw(patch: pytest.MonkeyPatch) -> None:
    """The digits share their random bytes: the noise has the right scale, and a few thousand values."""

    def draw(self: AliasTable, size: int, stream: ByteStream) -> np.ndarray:
        return np.tile(real(self, size // 3, stream), 3)

    real = AliasTable.draw
    patch.setattr(AliasTable, "draw", draw)


@mutant("T2", "lies on the grid")
def noise_is_not_rounded(patch: pytest.MonkeyPatch) -> None:
    """Floating-point normals take the place of the table: their low bits tell what they were added to.

    Source: Mironov 2012, doi:10.1145/2382196.2382264.
    """

    def normals(size: int, *, stddev: Fraction, stream: ByteStream) -> np.ndarray:
        seed = int.from_bytes(stream.random_bytes(32), "big")
        return np.random.default_rng(seed).standard_normal(size) * float(stddev)

    patch.setattr(noise, "gaussian_integers", normals)


@mutant("T2", "has all low digits")
def the_grid_is_as_coarse_as_one_values_slack(patch: pytest.MonkeyPatch) -> None:
    """The square root of the number of values is forgotten: rounding moves a sum by more than the slack."""
    real = noise.grid_step
    patch.setattr(noise, "grid_step", lambda bound, size, stddev: real(bound, 1, 1e9))


def _with_new_table(patch: pytest.MonkeyPatch) -> None:
    made = gaussian_table.alias_table.__wrapped__()
    patch.setattr(gaussian_table, "alias_table", lambda: made)
    patch.setattr(noise_scale, "alias_table", lambda: made)


@mutant("T2", _ALL)
def what_is_clipped_last_is_the_noise(patch: pytest.MonkeyPatch) -> None:
    """The noised sum is clipped once more before it is applied, to "stabilise" training: its scale is a secret's.

    Source: NVIDIA/NVFlare issue 462 (noising inside of the clipping).
    """
    real = ArrayOptimizer.step

    def step(self: ArrayOptimizer, weights: np.ndarray, gradient: np.ndarray) -> None:
        real(self, weights, gradient * min(1.0, 0.5 / float(np.linalg.norm(gradient))))

    patch.setattr(ArrayOptimizer, "step", step)


@mutant("T2", "noise of the pair of counts")
def a_variance_is_taken_for_a_deviation(patch: pytest.MonkeyPatch) -> None:
    """The discrete Gaussian's sampler wants the variance and gets the standard deviation.

    Source: the published code of Canonne, Kamath and Steinke 2020, arXiv:2004.00010, has `sample_dgauss(sigma2)`.
    """
    real = private_counts.discrete_gaussian

    def sample(size: int, *, noise_stddev: float, **more: Any) -> np.ndarray:
        return real(size, noise_stddev=float(np.sqrt(noise_stddev)), **more)

    patch.setattr(private_counts, "discrete_gaussian", sample)


@mutant("T2", "noise of the closing matrix")
def the_closing_matrix_is_exact(patch: pytest.MonkeyPatch) -> None:
    """The pair of each round is noised, the matrix at the end is not: it goes by the noised name."""
    from client.evaluation import evaluate as evaluation

    def exact(counts: Counts, **_: Any) -> NoisedCounts:
        return NoisedCounts(counts.confusion.astype(np.int64))

    patch.setattr(evaluation, "noised_matrix", exact)
