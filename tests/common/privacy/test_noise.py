"""Scale, independence and grid of the noise; the sampler."""

import os

import numpy as np
import pytest
from scipy import stats

from common.privacy.noise import SecureStream, add_noise, grid_step, poisson_batch, standard_normals

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


def test_standard_normals_are_normal() -> None:
    sample = standard_normals(50_000, SecureStream())

    assert stats.kstest(sample, "norm").pvalue > 1e-6


def test_add_noise_lands_on_the_grid() -> None:
    stream = SecureStream()
    values = np.random.default_rng(0).normal(size=100)

    noised = add_noise(values, noise_stddev=0.3, max_grad_norm=0.7, stream=stream)

    steps = noised / grid_step(0.7, 100)
    assert np.array_equal(steps, np.rint(steps))


@pytest.mark.parametrize("size", [1, 100, 12_800, 5_000_000])
def test_grid_step_times_root_of_size_is_within_the_slack(size: int) -> None:
    assert grid_step(0.1, size) * np.sqrt(size) <= 1e-4 * 0.1
    assert 2 * grid_step(0.1, size) * np.sqrt(size) > 1e-4 * 0.1


def test_add_noise_differs_between_steps_and_between_streams() -> None:
    first, second = SecureStream(), SecureStream()

    one, two, three = (standard_normals(10_000, stream) for stream in (first, first, second))

    for a, b in ((one, two), (one, three), (two, three)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
        assert not np.isin(a, b).any()


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


def test_poisson_batch_takes_all_rows_at_rate_one_and_none_of_none() -> None:
    assert len(poisson_batch(7, sample_rate=1.0, stream=SecureStream())) == 7
    assert len(poisson_batch(0, sample_rate=0.5, stream=SecureStream())) == 0
