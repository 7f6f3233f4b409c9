"""Rounding of an update: free of bias, off by less than a scale, and the same bytes for everybody."""

import hashlib
from collections.abc import Mapping

import numpy as np
import pytest

from common.arrays import Arrays
from common.messages.fields import CODES, SCALES, Releases
from common.messages.rounded_update import (
    leaving_arrays,
    leaving_shapes,
    restore_model,
    round_update,
    update_bytes,
)
from common.privacy.mechanisms.registry import MECHANISMS
from common.randomness import public_stream

# Runs of 256: a whole one and a part of one, a lone value, none at all, and one that is exactly full.
SHAPES: Mapping[str, tuple[int, ...]] = {"w": (3, 100), "scalar": (), "none": (0, 4), "b": (256,)}
START: Arrays = {name: np.full(shape, 0.25, dtype=np.float32) for name, shape in SHAPES.items()}
ROUNDED = Releases(update_bits=8)
LITERAL_CODES = [-127, -33, 61, -102, -7, 87, -76, 18]
LITERAL_DIGEST = "03775638d887151a6112a0779c1594370b2ea9d49357cc636f5c2b65136e45e0"
LARGEST = float(np.finfo(np.float32).max)


def moved(scale: float = 1.0) -> Arrays:
    rng = np.random.default_rng(0)
    return {name: (array + scale * rng.normal(size=array.shape)).astype(np.float32) for name, array in START.items()}


def rounded(trained: Arrays, start: Arrays = START, draw: int = 0) -> Arrays:
    return round_update(trained, start, public_stream(0, "rounding", "00003", draw))


def scale_of(update: Arrays, start: Arrays = START) -> Arrays:
    """The scale of each value, by a model whose codes are all 1."""
    ones = {CODES: np.ones_like(update[CODES]), SCALES: update[SCALES]}
    zero = {name: np.zeros_like(array) for name, array in start.items()}
    return restore_model(ones, zero)


def test_the_mean_over_streams_is_the_update() -> None:
    trained, draws = moved(), 400
    restored = [restore_model(rounded(trained, draw=draw), START) for draw in range(draws)]

    scales = scale_of(rounded(trained))
    for name in ("w", "scalar", "b"):
        errors = np.mean([model[name].astype(np.float64) - trained[name] for model in restored], axis=0)
        # A value between two codes has a deviation of at most half a scale, and of 0.4 of one on average.
        in_scales = errors / scales[name]
        assert np.abs(in_scales).max() < 5 * 0.5 / np.sqrt(draws)
        assert abs(in_scales.mean()) < 5 * 0.5 / np.sqrt(draws * max(1, trained[name].size))


@pytest.mark.parametrize("length", [1e-44, 1e-30, 1e-3, 1.0, 1e20, 1e37])
def test_no_value_is_off_by_a_scale(length: float) -> None:
    start = {name: np.zeros_like(array) for name, array in START.items()}
    trained = {name: array * np.float32(length) for name, array in moved().items()}

    update = rounded(trained, start)

    restored, scales = restore_model(update, start), scale_of(update, start)
    assert update[CODES].min() >= -127
    for name, array in trained.items():
        error = np.abs(restored[name].astype(np.float64) - array)
        # The restored value is rounded to float32 once more.
        assert (error <= scales[name].astype(np.float64) * (1 + 1e-5) + np.spacing(np.abs(array))).all()


def test_what_did_not_change_comes_back_to_the_bit() -> None:
    update = rounded(START)

    assert not update[CODES].any()
    assert not update[SCALES].any()
    restored = restore_model(update, START)
    assert all(restored[name].tobytes() == array.tobytes() for name, array in START.items())
    assert [(name, array.shape, array.dtype) for name, array in restored.items()] == [
        (name, array.shape, np.float32) for name, array in START.items()
    ]


def test_a_large_tensor_does_not_coarsen_its_neighbours() -> None:
    trained = moved(1e-3)
    trained["w"] = trained["w"] + np.float32(1000)

    scales = scale_of(rounded(trained))

    assert scales["w"].min() > 1
    assert max(scales["scalar"].max(), scales["b"].max()) < 1e-4


def test_bytes_are_the_same_on_every_machine_and_in_every_version() -> None:
    # Exact in float32, so that no library for random numbers or powers has a part in it.
    values = (np.arange(557) * 37 % 101 - 50) / np.float32(128)
    parts = np.split(values.astype(np.float32), [300, 301, 301])
    trained = {name: START[name] + part.reshape(SHAPES[name]) for name, part in zip(SHAPES, parts, strict=True)}

    update = leaving_arrays(trained, START, ROUNDED, seed=3, client="00003", server_round=7)

    assert update[CODES][:8].tolist() == LITERAL_CODES
    assert hashlib.sha256(update[CODES].tobytes() + update[SCALES].tobytes()).hexdigest() == LITERAL_DIGEST


@pytest.mark.parametrize("other", [{"seed": 4}, {"client": "00004"}, {"server_round": 8}])
def test_seed_client_and_round_each_have_a_stream_of_their_own(other: dict[str, int | str]) -> None:
    given: dict[str, int | str] = {"seed": 3, "client": "00003", "server_round": 7}
    ours, theirs = (leaving_arrays(moved(), START, ROUNDED, **names) for names in (given, given | other))  # type: ignore[arg-type]

    assert (ours[CODES] != theirs[CODES]).mean() > 0.1
    assert (ours[SCALES] == theirs[SCALES]).all()


def test_32_bits_leave_as_they_are() -> None:
    trained = moved()

    assert leaving_arrays(trained, START, Releases(), seed=3, client="00003", server_round=7) is trained
    assert leaving_shapes(SHAPES, Releases()) == SHAPES
    assert update_bytes(SHAPES, Releases()) == 4 * 557


def test_shapes_and_bytes_follow_from_the_model_alone() -> None:
    update = rounded(moved())

    assert {name: array.shape for name, array in update.items()} == leaving_shapes(SHAPES, ROUNDED)
    assert leaving_shapes(SHAPES, ROUNDED) == {CODES: (557,), SCALES: (4,)}
    assert update_bytes(SHAPES, ROUNDED) == sum(array.nbytes for array in update.values()) == 557 + 4 * 4
    assert leaving_shapes({}, ROUNDED) == {name: array.shape for name, array in rounded({}, {}).items()}


@pytest.mark.parametrize("odd", [np.nan, np.inf, -np.inf])
def test_an_update_that_is_not_finite_shows_or_counts_as_zero_where_the_server_adds_noise(odd: float) -> None:
    trained = moved()
    trained["w"][1, 7] = odd

    for name, mechanism in MECHANISMS.items():
        releases = Releases(mechanism, "none", update_bits=8)
        update = leaving_arrays(trained, START, releases, seed=0, client="00003", server_round=1)
        assert np.isfinite(update[SCALES]).all() == mechanism.noise_at_server, name
        assert mechanism.noise_at_server != update[CODES].any()


def test_the_longest_difference_of_two_float32_models_has_finite_scales() -> None:
    start = {"w": np.array([-LARGEST, LARGEST, 0], dtype=np.float32)}
    trained = {"w": np.array([LARGEST, -LARGEST, 1e38], dtype=np.float32)}

    update = rounded(trained, start)

    assert np.isfinite(update[SCALES]).all()
    assert np.abs(update[CODES][:2].astype(int)).min() >= 126
