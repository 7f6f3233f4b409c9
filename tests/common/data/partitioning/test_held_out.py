"""Held-out images: by content and key, and after the clients' shares of training images.

Drives `common.data.partitioning.partitioners`.
"""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.data.partitioning.partitioners import assign_test, hold_out


def labels_of(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(4, size=count)


def digests_of(count: int) -> np.ndarray:
    rows = [hashlib.sha256(str(number).encode()).digest() for number in range(count)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(count, 32)


def test_assign_test_follows_each_clients_share_of_the_class() -> None:
    train_labels = np.repeat([0, 1], 100)
    owner = np.concatenate([np.repeat([0, 1, 2], [70, 20, 10]), np.repeat([0, 2], 50)]).astype(np.int32)
    test_labels = np.repeat([0, 1], 4000)

    given_to = assign_test(test_labels, train_labels, owner, digests_of(8000), key=b"key")

    assert (given_to.shape, given_to.dtype) == ((8000,), np.int32)
    for label, shares in enumerate(([0.7, 0.2, 0.1], [0.5, 0.0, 0.5])):
        found = np.bincount(given_to[test_labels == label], minlength=3) / 4000
        tolerance = 4.5 * np.sqrt(np.array(shares) * (1 - np.array(shares)) / 4000)
        assert (np.abs(found - shares) <= tolerance).all()


def test_assign_test_spreads_a_class_that_nobody_trains_on() -> None:
    owner = np.array([0, 1, 2, 3], dtype=np.int32)

    given_to = assign_test(np.full(2000, 5), np.zeros(4, dtype=np.int64), owner, digests_of(2000), key=b"key")

    found = np.bincount(given_to, minlength=4) / 2000
    assert np.abs(found - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / 2000)


def test_assign_test_leaves_out_what_nobody_holds_and_knows_the_unknown_class() -> None:
    train_labels, owner = np.array([-1, -1, 0, 0, 1]), np.array([0, -1, 1, -1, 2], dtype=np.int32)

    given_to = assign_test(np.repeat([-1, 0], 50), train_labels, owner, digests_of(100), key=b"key")

    assert given_to.tolist() == [0] * 50 + [1] * 50


def test_assign_test_follows_content_and_key() -> None:
    labels, owner, digests = (
        labels_of(200),
        np.random.default_rng(2).integers(3, size=300).astype(np.int32),
        digests_of(200),
    )
    order = np.random.default_rng(1).permutation(200)

    def assigned(rows: np.ndarray, key: bytes) -> np.ndarray:
        return assign_test(labels[rows], labels_of(300), owner, digests[rows], key=key)

    straight = assigned(np.arange(200), b"one")
    assert np.array_equal(assigned(order, b"one"), straight[order])
    assert not np.array_equal(assigned(np.arange(200), b"two"), straight)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=30)
def test_hold_out_follows_content_and_not_order(seed: int, fraction: float) -> None:
    digests = digests_of(80)
    rows = np.random.default_rng(seed).integers(80, size=120)

    held = hold_out(digests, fraction=fraction, key=b"key")

    assert np.array_equal(hold_out(digests[rows], fraction=fraction, key=b"key"), held[rows])


def test_hold_out_keeps_copies_on_one_side() -> None:
    digests = np.repeat(digests_of(200), 3, axis=0)

    held = hold_out(digests, fraction=0.5, key=b"key").reshape(200, 3)

    assert (held.all(axis=1) | ~held.any(axis=1)).all()
    assert 0 < held[:, 0].sum() < 200


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.9])
def test_hold_out_takes_the_fraction_that_was_asked_for(fraction: float) -> None:
    held = hold_out(digests_of(20_000), fraction=fraction, key=b"key")

    assert held.dtype == np.bool_
    assert abs(held.mean() - fraction) < 4.5 * np.sqrt(fraction * (1 - fraction) / 20_000)


def test_hold_out_grows_with_the_fraction_and_changes_with_the_key() -> None:
    small, large = (hold_out(digests_of(500), fraction=fraction, key=b"key") for fraction in (0.2, 0.5))

    assert (large | ~small).all()
    assert not np.array_equal(small, hold_out(digests_of(500), fraction=0.2, key=b"other"))
