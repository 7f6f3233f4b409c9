"""Repeatable streams, and numbers that follow an item's content."""

import hashlib

import numpy as np
import pytest

from common.randomness import keyed_uniform, public_stream


def _digests(count: int, salt: str = "") -> np.ndarray:
    rows = [hashlib.sha256(f"{salt}{n}".encode()).digest() for n in range(count)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(count, 32)


def test_public_stream_repeats_for_the_same_purpose() -> None:
    first, second = public_stream(7, "batches", "00003", 2), public_stream(7, "batches", "00003", 2)

    assert np.array_equal(first.random(100), second.random(100))


def test_public_stream_values_are_pinned() -> None:
    """Changing them would change every seeded run without anybody noticing."""
    assert public_stream(0, "cohort", 1).integers(1000, size=5).tolist() == [310, 204, 497, 84, 14]


@pytest.mark.parametrize(
    "other",
    [
        (1, "batches", "a", 2),
        (0, "cohort", "a", 2),
        (0, "batches", "b", 2),
        (0, "batches", "a", 3),
        (0, "batches", "a"),
    ],
)
def test_public_stream_differs_when_seed_or_purpose_differ(other: tuple[int, ...]) -> None:
    values = public_stream(0, "batches", "a", 2).random(8)

    assert not np.isin(public_stream(*other).random(8), values).any()


def test_public_stream_keeps_the_parts_of_a_purpose_apart() -> None:
    assert public_stream(0, "ab", "c").random() != public_stream(0, "a", "bc").random()
    assert public_stream(1, "2").random() != public_stream(12).random()


def test_public_stream_is_not_moved_by_other_streams_or_numpys_global_one() -> None:
    expected = public_stream(0, "weights").random()

    public_stream(0, "cohort").random(1000)
    np.random.seed(3)

    assert public_stream(0, "weights").random() == expected


def test_keyed_uniform_follows_content_whatever_the_order() -> None:
    digests = _digests(50)
    order = np.random.default_rng(0).permutation(50)

    assert np.array_equal(keyed_uniform(b"k", digests)[order], keyed_uniform(b"k", digests[order]))
    assert np.array_equal(keyed_uniform(b"k", digests[:5]), keyed_uniform(b"k", digests)[:5])


def test_keyed_uniform_differs_when_the_key_differs() -> None:
    digests = _digests(50)

    assert not np.isin(keyed_uniform(b"one", digests), keyed_uniform(b"two", digests)).any()


def test_keyed_uniform_is_uniform_in_the_half_open_unit_interval() -> None:
    values = keyed_uniform(b"key", _digests(20_000))

    assert values.min() >= 0.0
    assert values.max() < 1.0
    share = np.histogram(values, bins=10, range=(0, 1))[0] / len(values)
    standard_error = np.sqrt(0.1 * 0.9 / len(values))
    assert np.abs(share - 0.1).max() < 4.5 * standard_error


def test_keyed_uniform_is_the_top_53_bits_of_a_keyed_blake2b() -> None:
    digest = _digests(1)

    top = int.from_bytes(hashlib.blake2b(digest.tobytes(), key=b"key", digest_size=8).digest(), "big") // 2**11

    assert keyed_uniform(b"key", digest)[0] == top / 2**53


def test_keyed_uniform_of_nothing_is_empty() -> None:
    assert keyed_uniform(b"key", np.zeros((0, 32), dtype=np.uint8)).shape == (0,)
