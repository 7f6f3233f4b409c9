"""Numbers become words and come back as their exact sum, and what cannot fit is refused.

Drives `common.secagg.primitives.fixed_point` and `common.secagg.primitives.ring`.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.secagg.primitives import fixed_point
from common.secagg.primitives.fixed_point import FixedPoint, choose_scale
from common.secagg.primitives.ring import Ring
from common.secagg.refusals import Refusal, SecureSumError


def point_of(norm: float = 1.0, bits: int = 32) -> FixedPoint:
    return choose_scale(longest=norm, word_bits=bits, largest_step=norm)


def steps_of(point: FixedPoint, values: np.ndarray) -> list[int]:
    return list(map(int, point.ring.signed(point.encode(values))))


@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("num_clients", [3, 100, 1000])
@pytest.mark.parametrize("norm", [1e-3, 0.1, 1.0, 777.7])
def test_the_sum_of_all_extremes_stays_in_the_ring(bits: int, num_clients: int, norm: float) -> None:
    part = point_of(norm, bits=bits).part(Fraction(1, num_clients))
    worst = np.array([part.largest, -part.largest], dtype=np.int64)

    total = part.ring.zeros(2)
    for _ in range(num_clients):
        total += part.ring.words_of(worst)

    expected = num_clients * part.largest
    assert list(map(int, part.ring.signed(total))) == [expected, -expected]


@pytest.mark.parametrize("norm", [1e-3, 0.1, 1.0, 777.7])
def test_no_finer_step_would_fit(norm: float) -> None:
    point = point_of(norm)

    assert point.largest < 2**31 <= Fraction(norm) * Fraction(2) ** (point.scale_bits + 1) + 1


@pytest.mark.parametrize(
    "changes",
    [
        {"largest_step": 2.0**-40},
        {"largest_step": 0.0},
        {"longest": 0.0},
        {"longest": -1.0},
        {"longest": math.nan},
        {"longest": math.inf},
        {"longest": 1e9},
        {"longest": 5e-324, "largest_step": 1e-300},
    ],
    ids=str,
)
def test_choose_scale_refuses_what_cannot_fit(changes: dict[str, float]) -> None:
    asked = {"longest": 1.0, "word_bits": 32, "largest_step": 2.0**-20}

    with pytest.raises(SecureSumError) as refused:
        choose_scale(**(asked | changes))  # type: ignore[arg-type]

    assert refused.value.refusal is Refusal.RANGE


def test_an_encoding_whose_sum_could_wrap_is_refused() -> None:
    largest = 2**31 - 1
    FixedPoint(Ring(32), 0, largest, largest**2)

    for wrong in (largest + 1, -1):
        with pytest.raises(SecureSumError):
            FixedPoint(Ring(32), 0, wrong, largest**2)


@given(
    values=st.lists(st.floats(-2, 2), min_size=1, max_size=20),
    norm=st.sampled_from([0.1, 1.0, 3.3]),
    bits=st.sampled_from([32, 64]),
)
@settings(max_examples=60, deadline=None)
def test_rounded_vectors_keep_the_clip_exactly(values: list[float], norm: float, bits: int) -> None:
    point = point_of(norm, bits=bits)

    steps = steps_of(point, np.array(values))

    bound = (Fraction(norm) * Fraction(2) ** point.scale_bits) ** 2
    assert sum(step * step for step in steps) <= bound


def test_a_vector_that_the_clip_rounded_up_is_shortened() -> None:
    """A float32 clip can leave a norm a little above the bound."""
    point = point_of(norm=0.1)
    values = np.full(64, np.float32(0.1) / 8, dtype=np.float64)

    steps = steps_of(point, values * 1.001)

    norm = math.sqrt(sum(step * step for step in steps)) * point.step
    assert 0.1 * 0.9999 < norm <= 0.1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_vector_with_a_value_that_is_not_finite_becomes_zero(bad: float) -> None:
    assert steps_of(point_of(), np.array([0.5, bad])) == [0, 0]


def test_huge_values_are_clipped_and_tiny_ones_vanish() -> None:
    point = point_of()

    first, second = steps_of(point, np.array([1e300, 5e-324]))

    assert 0 < first <= point.largest
    assert second == 0


@pytest.mark.parametrize("bits", [32, 64])
def test_decoding_returns_the_exact_sum(bits: int) -> None:
    point = point_of(5.0, bits=bits)
    stream = np.random.default_rng(0)
    vectors = [stream.normal(size=8) / 9 for _ in range(5)]

    total = point.ring.zeros(8)
    for vector in vectors:
        total += point.encode(vector)

    steps = [np.trunc(vector * 2.0**point.scale_bits).astype(np.int64) for vector in vectors]
    assert np.array_equal(point.decode(total), np.sum(steps, axis=0).astype(np.float64) * point.step)


@pytest.mark.parametrize("bits", [32, 40, 48, 56, 64])
def test_words_of_a_ring_add_up_modulo_its_size_and_travel_in_its_bytes(bits: int) -> None:
    """Against Python's own whole numbers."""
    ring, half = Ring(bits), 2 ** (bits - 1)
    numbers = [0, 1, -1, half - 1, -half, 5, -7]
    first, second = ring.words_of(np.array(numbers)), ring.words_of(np.array(numbers[::-1]))
    total = ring.checked(ring.reduced(first + second), len(numbers))
    packed = ring.packed(total)

    sums = [(one + other) % (2 * half) for one, other in zip(numbers, reversed(numbers), strict=True)]
    assert total.tolist() == sums
    assert ring.signed(total).tolist() == [each - 2 * half if each >= half else each for each in sums]
    assert packed.tobytes() == b"".join(each.to_bytes(bits // 8, "little") for each in sums)
    assert ring.unpacked(packed).tolist() == sums
    assert Ring.holding(bits) == Ring.holding(bits - 7) == ring
    with pytest.raises(SecureSumError):
        ring.unpacked(packed[:-1])


def test_a_ring_has_whole_bytes_and_its_words_stay_inside() -> None:
    for bits in (24, 31, 33, 72):
        with pytest.raises(SecureSumError):
            Ring(bits)
    with pytest.raises(SecureSumError):
        Ring.holding(65)
    with pytest.raises(SecureSumError):
        Ring(40).checked(np.array([2**40], dtype=np.uint64), 1)
    with pytest.raises(SecureSumError):
        Ring(32).checked(np.zeros(3, dtype=np.uint64), 3)
    with pytest.raises(SecureSumError):
        Ring(32).checked(np.zeros(3, dtype=np.uint32), 4)


def test_parts_of_a_bound_fit_together_and_no_part_exceeds_its_share() -> None:
    whole = choose_scale(longest=1.0, word_bits=40, largest_step=1.0)
    shares = [Fraction(1, 3), Fraction(1, 7), Fraction(11, 21)]
    parts = [whole.part(share).encode(np.array([9.0])) for share in shares]

    assert whole.decode(whole.ring.reduced(np.sum(parts, axis=0)))[0] == pytest.approx(1.0, abs=4 * whole.step)
    for share, part in zip(shares, parts, strict=True):
        assert whole.decode(part)[0] <= share
    for share in (Fraction(-1, 3), Fraction(4, 3)):
        with pytest.raises(SecureSumError):
            whole.part(share)


@pytest.mark.parametrize("most", [3, 2**31, 2**43, 2**63 - 1])
@pytest.mark.parametrize("chunk_size", [1 << 20, 7])
def test_squares_are_summed_exactly(most: int, chunk_size: int) -> None:
    steps = np.concatenate([np.random.default_rng(0).integers(-most, most, 50), np.full(15, most), np.full(3, -most)])

    assert fixed_point._sum_of_squares(steps, chunk_size) == sum(int(step) ** 2 for step in steps.tolist())
    assert fixed_point._sum_of_squares(steps[:0]) == 0
