"""Who holds which image: complete, disjoint and seeded.

Drives `common.data.partitioning.privacy_units`.
"""

import contextlib
import hashlib
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from flwr_datasets.partitioner import IidPartitioner
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.loading import Scalar, defaults, override, parse
from common.config.sections import DataConfig
from common.data.partitioning.partitioners import _equal_blocks, assign_clients
from common.data.partitioning.privacy_units import group_names, group_rows, most_frequent
from common.errors import DataError


def _config(partitioner: str, alpha: float = 1.0, **given: Scalar) -> DataConfig:
    return parse(override(defaults(), {"data.partitioner": partitioner, "data.alpha": alpha} | given)).data


def _labels(count: int, classes: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(classes, size=count)


def _digests(count: int) -> np.ndarray:
    rows = [hashlib.sha256(str(number).encode()).digest() for number in range(count)]
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(count, 32)


COMPLETE = ("dirichlet", "iid", "size-skew")
DEALT = (*COMPLETE, "pathological", "shards")


@settings(max_examples=40, deadline=None)
@given(
    partitioner=st.sampled_from(DEALT),
    size_skew=st.sampled_from(["linear", "square", "exponential"]),
    count=st.integers(120, 300),
    num_clients=st.integers(1, 4),
    least=st.integers(1, 3),
    unknown=st.booleans(),
    seed=st.integers(0, 2**63 - 1),
)
def test_assign_clients_gives_no_image_two_clients_and_each_client_enough(
    partitioner: str, size_skew: str, count: int, num_clients: int, least: int, unknown: bool, seed: int
) -> None:
    labels = _labels(count) - unknown
    config = _config(partitioner, **{"data.size-skew": size_skew, "data.min-client-size": least})

    owner = assign_clients(labels, config, num_clients=num_clients, seed=seed)

    assert (owner.shape, owner.dtype) == ((count,), np.int32)
    assert owner.min() >= -1
    assert np.bincount(owner[owner >= 0], minlength=num_clients).min() >= least
    assert np.unique(owner[owner >= 0]).tolist() == list(range(num_clients))
    if partitioner in COMPLETE:
        assert (owner >= 0).all()
    assert np.array_equal(assign_clients(labels, config, num_clients=num_clients, seed=seed), owner)


@settings(max_examples=40, deadline=None)
@given(
    partitioner=st.sampled_from(DEALT),
    sizes=st.lists(st.integers(1, 5), min_size=60, max_size=90),
    num_clients=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
)
def test_assign_clients_never_tears_a_unit(partitioner: str, sizes: list[int], num_clients: int, seed: int) -> None:
    groups = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels = _labels(len(groups), seed=seed)

    owner = assign_clients(labels, _config(partitioner), num_clients=num_clients, seed=seed, groups=groups)

    assert all(len(np.unique(owner[groups == group])) == 1 for group in range(len(sizes)))
    assert np.bincount(owner[owner >= 0], minlength=num_clients).min() >= 1
    if partitioner in COMPLETE:
        assert (owner >= 0).all()


@settings(max_examples=20, deadline=None)
@given(naturals=st.permutations([0] * 3 + [1] * 5 + [2] * 40), seed=st.integers(0, 2**32 - 1))
def test_natural_gives_each_image_to_its_own_client_whatever_order_and_seed(naturals: list[int], seed: int) -> None:
    held = np.array(naturals, dtype=np.int32)

    owner = _natural(held, ("b", "a", "c"), num_clients=3, seed=seed)

    assert np.array_equal(owner, held)


def _natural(naturals: np.ndarray | None, names: tuple[str, ...], *, num_clients: int, **given: Any) -> np.ndarray:
    config, labels = _config("natural", **given.pop("settings", {})), _labels(48)
    return assign_clients(
        labels, config, num_clients=num_clients, seed=given.pop("seed", 0), naturals=naturals, names=names, **given
    )


def test_natural_draws_no_bar_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    _natural(np.repeat([0, 1], 24), ("a", "b"), num_clients=2)

    assert capfd.readouterr() == ("", "")


def test_natural_leaves_out_what_names_no_client() -> None:
    naturals = np.repeat([0, -1, 1], 16)

    assert np.array_equal(_natural(naturals, ("a", "b"), num_clients=2), naturals)


def test_natural_refuses_a_source_without_clients() -> None:
    with pytest.raises(DataError, match="needs a source that names the client of each image"):
        _natural(None, (), num_clients=2)


def test_natural_names_the_number_of_clients_that_there_are() -> None:
    with pytest.raises(DataError, match=r"num-clients=5 but the column client names 2.*needs num-clients=2"):
        _natural(np.repeat([0, 1], 24), ("a", "b"), num_clients=5)


@pytest.mark.parametrize("sizes", [[48, 0], [45, 3]], ids=["no-training-image", "too-few"])
def test_natural_names_the_client_that_is_too_small(sizes: list[int]) -> None:
    naturals = np.repeat([0, 1], sizes)

    with pytest.raises(DataError, match=f"client 'ward 2' has {sizes[1]} training images.*data.min-client-size=4"):
        _natural(naturals, ("ward 1", "ward 2"), num_clients=2, settings={"data.min-client-size": 4})


def test_natural_refuses_a_unit_at_two_clients() -> None:
    groups = np.arange(48)
    groups[[0, 47]] = 0

    with pytest.raises(DataError, match=r"units with images at more than one client: 1\."):
        _natural(np.repeat([0, 1], 24), ("a", "b"), num_clients=2, groups=groups)


def test_pathological_gives_each_client_so_many_classes_and_counts_the_rest_out() -> None:
    labels = _labels(400, classes=8)

    owner = assign_clients(labels, _config("pathological", **{"data.classes-per-client": 2}), num_clients=3, seed=0)

    assert all(len(np.unique(labels[owner == client])) == 2 for client in range(3))
    assert (owner < 0).any()
    assert not set(labels[owner < 0]) & set(labels[owner >= 0])


def test_pathological_starts_with_another_class_for_another_seed() -> None:
    labels, config = _labels(400, classes=8), _config("pathological", **{"data.classes-per-client": 1})

    owners = [assign_clients(labels, config, num_clients=1, seed=seed) for seed in range(12)]

    assert len({int(labels[owner == 0][0]) for owner in owners}) > 1


def test_shards_of_sorted_labels_give_each_client_few_classes_and_leave_the_remainder() -> None:
    labels = np.repeat(np.arange(10), 31)

    owner = assign_clients(labels, _config("shards", **{"data.shards-per-client": 2}), num_clients=4, seed=0)

    assert np.bincount(owner[owner >= 0]).tolist() == [2 * (310 // 8)] * 4
    assert (owner < 0).sum() == 310 % 8
    assert max(len(np.unique(labels[owner == client])) for client in range(4)) <= 6


@pytest.mark.parametrize(
    ("size_skew", "sizes"), [("linear", [50, 100, 150]), ("square", [21, 85, 194]), ("exponential", [27, 73, 200])]
)
def test_size_skew_gives_sizes_in_proportion_and_the_remainder_to_the_last(size_skew: str, sizes: list[int]) -> None:
    owner = assign_clients(_labels(300), _config("size-skew", **{"data.size-skew": size_skew}), num_clients=3, seed=0)

    assert np.bincount(owner).tolist() == sizes


FAILURES: dict[str, tuple[dict[str, Scalar], tuple[str, ...]]] = {
    "dirichlet": ({"data.alpha": 0.001}, ("data.alpha=0.001", "raise data.alpha or use fewer clients")),
    "pathological": ({"data.classes-per-client": 5}, ("data.classes-per-client=5 of 4 classes", "lower data.classes")),
    "shards": ({"data.shards-per-client": 7}, ("data.shards-per-client=7", "lower data.shards-per-client")),
    "size-skew": ({"data.size-skew": "exponential"}, ("data.size-skew='exponential'", "a milder data.size-skew")),
    "iid": ({"data.min-client-size": 5}, ("use fewer clients",)),
}


@pytest.mark.parametrize("partitioner", FAILURES)
def test_assign_clients_says_what_to_change_when_it_finds_no_split(partitioner: str, recwarn: Any) -> None:
    given, fragments = FAILURES[partitioner]
    least = given.get("data.min-client-size", 2)
    groups = np.arange(100) // 10 if partitioner == "iid" else None

    with pytest.raises(DataError) as caught:
        assign_clients(
            _labels(100),
            _config(partitioner, **{"data.min-client-size": least} | given),
            num_clients=18,
            seed=0,
            groups=groups,
        )

    said = (f"data.partitioner={partitioner!r}", "100 images", "num-clients=18", f"data.min-client-size={least}")
    assert all(fragment in str(caught.value) for fragment in (*said, *fragments, ", or lower data.min-client-size"))
    assert not [str(warning.message) for warning in recwarn]


@pytest.mark.parametrize(("partitioner", "least"), [("shards", 22), ("size-skew", 11)])
def test_assign_clients_refuses_a_split_that_leaves_a_client_below_the_minimum(partitioner: str, least: int) -> None:
    given: dict[str, Scalar] = {"data.shards-per-client": 7}  # 4 clients of 21 images; linear: 10, 20, 30 and 40

    with pytest.raises(DataError, match=f"data.min-client-size={least} images"):
        assign_clients(
            _labels(100), _config(partitioner, **given | {"data.min-client-size": least}), num_clients=4, seed=0
        )

    enough = _config(partitioner, **given | {"data.min-client-size": least - 1})
    owner = assign_clients(_labels(100), enough, num_clients=4, seed=0)
    assert np.bincount(owner[owner >= 0]).min() == least - 1


def test_assign_clients_tries_further_seeds_before_it_gives_up() -> None:
    labels, config = _labels(60, classes=2), _config("dirichlet", 0.2)
    found = 0
    for seed in range(30):
        with contextlib.suppress(DataError):
            assign_clients(labels, config, num_clients=8, seed=seed)
            found += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("common.data.partitioning.partitioners.TRIES", 1)
        first = 0
        for seed in range(30):
            with contextlib.suppress(DataError):
                assign_clients(labels, config, num_clients=8, seed=seed)
                first += 1

    assert first < found


def test_group_rows_groups_named_units_only() -> None:
    digests = _digests(6).copy()
    digests[[3, 4]] = 0  # unreadable
    digests[5] = digests[0]  # a copy
    units = digests.copy()
    units[[1, 3]] = np.frombuffer(hashlib.sha256(b"patient").digest(), dtype=np.uint8)

    groups = group_rows(units, digests)

    assert groups is not None
    assert groups.tolist() == [0, 1, 2, 1, 3, 4]
    assert np.array_equal(groups, group_names(["", "patient", "", "patient", "", ""]))
    assert group_names(["", ""]) is None
    assert group_rows(digests.copy(), digests) is None
    assert group_rows(None, digests) is None


def test_most_frequent_names_the_class_of_each_unit() -> None:
    assert most_frequent(np.array([3, -1, -1, 2]), np.array([0, 1, 1, 1])).tolist() == [3, -1]


@pytest.mark.parametrize("partitioner", DEALT)
def test_assign_clients_is_determined_by_the_seed(partitioner: str) -> None:
    labels, config = _labels(300), _config(partitioner)

    first, again, other = (assign_clients(labels, config, num_clients=4, seed=seed) for seed in (1, 1, 2))

    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_dirichlet_draws_other_shares_for_another_seed() -> None:
    labels, config = np.zeros(1000, dtype=np.int64), _config("dirichlet")

    shares = [np.bincount(assign_clients(labels, config, num_clients=3, seed=seed)).tolist() for seed in range(5)]

    assert len({tuple(share) for share in shares}) == 5


def test_iid_deals_evenly_and_mixes_what_was_sorted() -> None:
    labels = np.repeat(np.arange(4), 250)

    owner = assign_clients(labels, _config("iid"), num_clients=4, seed=0)

    assert np.bincount(owner).tolist() == [250] * 4
    held = np.histogram2d(labels, owner, bins=[4, 4])[0]
    standard_error = np.sqrt(250 * 0.25 * 0.75)
    assert np.abs(held - 62.5).max() < 4.5 * standard_error


@pytest.mark.parametrize(("units", "clients"), [(12, 5), (12, 12), (13, 1), (100, 33)])
def test_iid_cuts_the_blocks_of_the_library(units: int, clients: int) -> None:
    order = np.random.default_rng(units).permutation(units)
    partitioner = IidPartitioner(num_partitions=clients)
    partitioner.dataset = Dataset.from_dict({"row": order})

    owner = _equal_blocks(order, clients)

    assert owner is not None
    assert owner.dtype == np.int32
    for client in range(clients):
        assert sorted(np.flatnonzero(owner == client)) == sorted(partitioner.load_partition(client)["row"])


def test_dirichlet_skews_labels_the_more_the_smaller_alpha_is() -> None:
    labels = _labels(4000)

    def skew(alpha: float) -> float:
        owner = assign_clients(labels, _config("dirichlet", alpha), num_clients=4, seed=0)
        held = np.histogram2d(labels, owner, bins=[4, 4])[0]
        return float(np.abs(held / held.sum(axis=1, keepdims=True) - 0.25).mean())

    assert skew(1000.0) < 0.02
    assert skew(0.3) > 0.1


@pytest.mark.parametrize("partitioner", DEALT)
def test_assign_clients_refuses_more_clients_than_images(partitioner: str) -> None:
    with pytest.raises(DataError, match="num-clients=11 but there are only 10 training images"):
        assign_clients(_labels(10), _config(partitioner), num_clients=11, seed=0)


def test_assign_clients_serves_as_many_clients_as_images() -> None:
    owner = assign_clients(_labels(10), _config("iid"), num_clients=10, seed=0)

    assert sorted(owner.tolist()) == list(range(10))
