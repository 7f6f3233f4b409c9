"""Who holds which image: complete, disjoint, seeded, and by content where it is held out."""

import hashlib
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import defaults, override, parse
from common.data.partition import assign_clients, assign_test, hold_out
from common.errors import DataError
from common.sections import DataConfig


def _config(partitioner: str, alpha: float = 1.0) -> DataConfig:
    return parse(override(defaults(), {"data.partitioner": partitioner, "data.alpha": alpha})).data


def _labels(count: int, classes: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(classes, size=count)


def _digests(count: int, salt: str = "") -> np.ndarray:
    rows = [hashlib.sha256(f"{salt}{n}".encode()).digest() for n in range(count)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(count, 32)


def _assign(labels: np.ndarray, config: DataConfig, *, num_clients: int, seed: int = 0) -> np.ndarray:
    """The library warns before each of its retries; that is no concern of these tests."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The specified min_partition_size", category=UserWarning)
        return assign_clients(labels, config, num_clients=num_clients, seed=seed)


@settings(max_examples=15, deadline=None)
@given(
    partitioner=st.sampled_from(["dirichlet", "iid"]),
    count=st.integers(60, 200),
    num_clients=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
)
def test_assign_clients_gives_each_image_one_client_and_leaves_nobody_empty(
    partitioner: str, count: int, num_clients: int, seed: int
) -> None:
    owner = _assign(_labels(count), _config(partitioner), num_clients=num_clients, seed=seed)

    assert (owner.shape, owner.dtype) == ((count,), np.int32)
    assert np.unique(owner).tolist() == list(range(num_clients))


@pytest.mark.parametrize("partitioner", ["dirichlet", "iid"])
def test_assign_clients_is_determined_by_the_seed(partitioner: str) -> None:
    labels, config = _labels(300), _config(partitioner)

    first, again, other = (_assign(labels, config, num_clients=4, seed=seed) for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_dirichlet_draws_other_shares_for_another_seed() -> None:
    labels, config = np.zeros(1000, dtype=np.int64), _config("dirichlet")

    shares = [np.bincount(_assign(labels, config, num_clients=3, seed=seed)).tolist() for seed in range(5)]

    assert len({tuple(share) for share in shares}) == 5


def test_iid_deals_evenly_and_mixes_what_was_sorted() -> None:
    labels = np.repeat(np.arange(4), 250)

    owner = _assign(labels, _config("iid"), num_clients=4)

    assert np.bincount(owner).tolist() == [250] * 4
    held = np.histogram2d(labels, owner, bins=[4, 4])[0]
    standard_error = np.sqrt(250 * 0.25 * 0.75)
    assert np.abs(held - 62.5).max() < 4.5 * standard_error


def test_dirichlet_skews_labels_the_more_the_smaller_alpha_is() -> None:
    labels = _labels(4000)

    def skew(alpha: float) -> float:
        owner = _assign(labels, _config("dirichlet", alpha), num_clients=4)
        held = np.histogram2d(labels, owner, bins=[4, 4])[0]
        return float(np.abs(held / held.sum(axis=1, keepdims=True) - 0.25).mean())

    assert skew(1000.0) < 0.02
    assert skew(0.3) > 0.1


def test_dirichlet_says_what_to_change_when_it_finds_no_split() -> None:
    with pytest.raises(DataError) as caught:
        _assign(_labels(30, classes=2), _config("dirichlet", 1e-3), num_clients=20)

    fragments = ("data.alpha=0.001", "30 images", "num-clients=20", "raise data.alpha or use fewer clients")
    assert all(fragment in str(caught.value) for fragment in fragments)


def test_dirichlet_failure_comes_without_the_warnings_of_the_library() -> None:
    with pytest.raises(DataError, match="found no split"):
        assign_clients(_labels(30, classes=2), _config("dirichlet", 1e-3), num_clients=20, seed=0)


@pytest.mark.parametrize("partitioner", ["dirichlet", "iid"])
def test_assign_clients_refuses_more_clients_than_images(partitioner: str) -> None:
    with pytest.raises(DataError, match="num-clients=11 but there are only 10 training images"):
        _assign(_labels(10), _config(partitioner), num_clients=11)


def test_assign_clients_serves_as_many_clients_as_images() -> None:
    owner = _assign(_labels(10), _config("iid"), num_clients=10)

    assert sorted(owner.tolist()) == list(range(10))


def test_assign_test_follows_each_clients_share_of_the_class() -> None:
    train_labels = np.repeat([0, 1], 100)
    owner = np.concatenate([np.repeat([0, 1, 2], [70, 20, 10]), np.repeat([0, 2], 50)]).astype(np.int32)
    test_labels = np.repeat([0, 1], 4000)

    given_to = assign_test(test_labels, train_labels, owner, _digests(8000), key=b"key")

    assert (given_to.shape, given_to.dtype) == ((8000,), np.int32)
    for label, shares in enumerate(([0.7, 0.2, 0.1], [0.5, 0.0, 0.5])):
        found = np.bincount(given_to[test_labels == label], minlength=3) / 4000
        tolerance = 4.5 * np.sqrt(np.array(shares) * (1 - np.array(shares)) / 4000)
        assert (np.abs(found - shares) <= tolerance).all()


def test_assign_test_spreads_a_class_that_nobody_trains_on() -> None:
    owner = np.array([0, 1, 2, 3], dtype=np.int32)

    given_to = assign_test(np.full(2000, 5), np.zeros(4, dtype=np.int64), owner, _digests(2000), key=b"key")

    found = np.bincount(given_to, minlength=4) / 2000
    assert np.abs(found - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / 2000)


def test_assign_test_follows_content_and_key() -> None:
    labels, owner, digests = _labels(200), _assign(_labels(300), _config("iid"), num_clients=3), _digests(200)
    order = np.random.default_rng(1).permutation(200)

    def assigned(rows: np.ndarray, key: bytes) -> np.ndarray:
        return assign_test(labels[rows], _labels(300), owner, digests[rows], key=key)

    straight = assigned(np.arange(200), b"one")
    assert np.array_equal(assigned(order, b"one"), straight[order])
    assert not np.array_equal(assigned(np.arange(200), b"two"), straight)


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99))
@settings(deadline=None, max_examples=30)
def test_hold_out_follows_content_and_not_order(seed: int, fraction: float) -> None:
    digests = _digests(80)
    rows = np.random.default_rng(seed).integers(80, size=120)

    held = hold_out(digests, fraction=fraction, key=b"key")

    assert np.array_equal(hold_out(digests[rows], fraction=fraction, key=b"key"), held[rows])


def test_hold_out_keeps_copies_on_one_side() -> None:
    digests = np.repeat(_digests(200), 3, axis=0)

    held = hold_out(digests, fraction=0.5, key=b"key").reshape(200, 3)

    assert (held.all(axis=1) | ~held.any(axis=1)).all()
    assert 0 < held[:, 0].sum() < 200


@pytest.mark.parametrize("fraction", [0.05, 0.2, 0.9])
def test_hold_out_takes_the_fraction_that_was_asked_for(fraction: float) -> None:
    held = hold_out(_digests(20_000), fraction=fraction, key=b"key")

    assert held.dtype == np.bool_
    assert abs(held.mean() - fraction) < 4.5 * np.sqrt(fraction * (1 - fraction) / 20_000)


def test_hold_out_grows_with_the_fraction_and_changes_with_the_key() -> None:
    small, large = (hold_out(_digests(500), fraction=fraction, key=b"key") for fraction in (0.2, 0.5))

    assert (large | ~small).all()
    assert not np.array_equal(small, hold_out(_digests(500), fraction=0.2, key=b"other"))
