"""Scale, independence and grid of the noise; the sampler."""

import os

import numpy as np
import pytest
from scipy import stats

from common.errors import PrivacyError
from common.privacy import noise_error
from common.privacy.noise import SecureStream, add_noise, grid_step, poisson_batch
from common.privacy.plan import SENSITIVITY_SLACK

DIMENSIONS = 12_800


def noise_of(stddev: float, draws: int = 5) -> np.ndarray:
    stream = SecureStream()
    zeros = np.zeros(DIMENSIONS)
    parts = [add_noise(zeros, noise_stddev=stddev, max_grad_norm=1.0, stream=stream) for _ in range(draws)]
    return np.concatenate(parts)


def test_each_stream_takes_a_256_bit_key_from_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[bytes] = []
    real = os.urandom

    def urandom(size: int) -> bytes:
        keys.append(real(size))
        return keys[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    streams = [SecureStream() for _ in range(3)]

    assert [len(key) for key in keys] == [32] * len(streams)
    assert len(set(keys)) == len(streams)


def test_add_noise_has_the_stated_stddev() -> None:
    noise = noise_of(2.5)

    statistic = (noise**2).sum() / 2.5**2

    # Five standard errors; noise that is 2 % off is eight away.
    assert abs(statistic - noise.size) < 5 * np.sqrt(2 * noise.size)


def test_scale_check_rejects_noise_that_is_two_percent_short() -> None:
    noise = 0.975 * noise_of(2.5)

    statistic = (noise**2).sum() / 2.5**2

    assert abs(statistic - noise.size) > 5 * np.sqrt(2 * noise.size)


def test_add_noise_is_normal() -> None:
    sample = add_noise(np.zeros(50_000), noise_stddev=2.5, max_grad_norm=1.0, stream=SecureStream())

    assert stats.kstest(sample / 2.5, "norm").pvalue > 1e-6


def test_add_noise_moves_by_the_rounded_sum_and_by_nothing_else() -> None:
    class Again:
        def random_bytes(self, size: int) -> bytes:
            return np.random.default_rng(size).bytes(size)

    values = np.random.default_rng(0).normal(size=300)
    step = grid_step(1.0, 300, 0.7)

    alone, noised = (
        add_noise(total, noise_stddev=0.7, max_grad_norm=1.0, stream=Again()) for total in (np.zeros(300), values)
    )

    assert np.array_equal(noised - alone, np.rint(values / step) * step)


def test_add_noise_refuses_more_values_than_its_event_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise_error, "MAX_DRAWS", 99)

    with pytest.raises(PrivacyError, match="100 values, and its event charges the error of 99"):
        add_noise(np.zeros(100), noise_stddev=1.0, max_grad_norm=1.0, stream=SecureStream())


def test_add_noise_lands_on_the_grid() -> None:
    stream = SecureStream()
    values = np.random.default_rng(0).normal(size=100)

    noised = add_noise(values, noise_stddev=0.3, max_grad_norm=0.7, stream=stream)

    steps = noised / grid_step(0.7, 100, 0.3)
    assert np.array_equal(steps, np.rint(steps))
    # Half of the steps would be whole on a grid twice as coarse, and almost none on a finer one.
    assert 20 < (steps % 2).sum() < 80


@pytest.mark.parametrize("size", [1, 100, 12_800, 5_000_000])
def test_grid_step_times_root_of_size_is_within_the_slack(size: int) -> None:
    much = 1e9

    assert grid_step(0.1, size, much) * np.sqrt(size) <= 0.5 * SENSITIVITY_SLACK * 0.1
    assert 2 * grid_step(0.1, size, much) * np.sqrt(size) > 0.5 * SENSITIVITY_SLACK * 0.1


@pytest.mark.parametrize("stddev", [1e-12, 0.3, 1.0, 100.0])
def test_the_noise_has_at_least_2_24_steps(stddev: float) -> None:
    assert stddev / grid_step(1.0, 100, stddev) >= 2**24
    assert np.log2(grid_step(1.0, 100, stddev)).is_integer()


def test_add_noise_differs_between_steps_and_between_streams() -> None:
    first, second = SecureStream(), SecureStream()

    one, two, three = (
        add_noise(np.zeros(10_000), noise_stddev=1.0, max_grad_norm=1.0, stream=stream)
        for stream in (first, first, second)
    )

    for a, b in ((one, two), (one, three), (two, three)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
        # Of 10,000 draws of 2^24 steps or more, two or three are equal by chance.
        assert np.isin(a, b).sum() < 20


def test_uniforms_do_not_depend_on_how_they_are_asked_for_length() -> None:
    assert SecureStream().uniforms(0).size == 0
    many = SecureStream().uniforms(100_000)
    assert ((many > 0) & (many < 1)).all()
    assert stats.kstest(many, "uniform").pvalue > 1e-6


def test_poisson_batch_sizes_have_binomial_spread() -> None:
    stream = SecureStream()
    sizes = np.array([len(poisson_batch(300, sample_rate=0.2, stream=stream)) for _ in range(2000)])

    mean_error = (sizes.mean() - 60) / np.sqrt(300 * 0.2 * 0.8 / 2000)
    assert abs(mean_error) < 5
    # Shuffled fixed-size batches would have no spread at all.
    assert abs(sizes.var() / 48 - 1) < 5 * np.sqrt(2 / 2000)


def test_poisson_batch_includes_each_row_at_the_rate() -> None:
    stream = SecureStream()
    hits = np.zeros(50)
    for _ in range(4000):
        hits[poisson_batch(50, sample_rate=0.1, stream=stream)] += 1

    assert (np.abs(hits - 400) < 5 * np.sqrt(4000 * 0.09)).all()


def test_poisson_batch_never_exceeds_the_rate() -> None:
    class Edges:
        def uniforms(self, size: int) -> np.ndarray:
            # Numbers around the rate, half a step of 2^-52 off the multiples, as a stream gives them.
            return 0.25 + (np.arange(size) - size // 2 + 0.5) * 2.0**-52

    # The interval around a number counts only if it ends within the rate.
    assert poisson_batch(8, sample_rate=0.25, stream=Edges()).tolist() == [0, 1, 2, 3]
    assert poisson_batch(8, sample_rate=0.25 + 2.0**-53, stream=Edges()).tolist() == [0, 1, 2, 3]
    assert poisson_batch(8, sample_rate=0.25 + 2.0**-52, stream=Edges()).tolist() == [0, 1, 2, 3, 4]


def test_poisson_batch_takes_all_rows_at_rate_one_and_none_of_none() -> None:
    assert len(poisson_batch(7, sample_rate=1.0, stream=SecureStream())) == 7
    assert len(poisson_batch(0, sample_rate=0.5, stream=SecureStream())) == 0
