"""Dealing entries, bad ones included: every entry to one client and one side, once a machine.

Drives `common.data.client_dataset`, `common.data.partitioning.partition`.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data.client_dataset import shard
from common.data.partitioning.assignment import load_or_make_partition, make_partition
from common.data.partitioning.partition import Partition, class_counts
from common.errors import ConfigError, DataError
from common.system.paths import bract_home

MakeConfig = Callable[..., RunConfig]
COUNT = 600


@dataclass(frozen=True)
class PartitionInput:
    """What dealing reads of a prepared source; `inputs` are the row numbers, so that a test sees who got what."""

    inputs: np.ndarray
    labels: np.ndarray
    digests: np.ndarray
    earlier_digests: np.ndarray
    file_digests: np.ndarray
    usable: np.ndarray
    num_train: int
    classes: tuple[str, ...]
    unit_digests: np.ndarray | None
    owners: np.ndarray | None
    client_names: tuple[str, ...]
    key: str

    @property
    def scan(self) -> "PartitionInput":
        return self


def _digests(names: list[str]) -> np.ndarray:
    joined = b"".join(hashlib.sha256(name.encode()).digest() for name in names)
    return np.frombuffer(joined, dtype=np.uint8).reshape(len(names), 32).copy()


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))


def _content(num_train: int = COUNT, **changed: Any) -> PartitionInput:
    plain = PartitionInput(
        inputs=np.arange(COUNT),
        labels=np.random.default_rng(0).integers(4, size=COUNT),
        digests=_digests([str(row) for row in range(COUNT)]),
        earlier_digests=np.zeros((COUNT, 32), np.uint8),
        file_digests=_digests([f"file {row}" for row in range(COUNT)]),
        usable=np.ones(COUNT, dtype=bool),
        num_train=num_train,
        classes=("a", "b", "c", "d"),
        unit_digests=None,
        owners=None,
        client_names=(),
        key="content",
    )
    return replace(plain, **changed)


def _without(content: PartitionInput, bad: np.ndarray) -> PartitionInput:
    usable, digests = content.usable.copy(), content.digests.copy()
    usable[bad], digests[bad] = False, 0
    return replace(content, usable=usable, digests=digests)


def _with_units(content: PartitionInput, units: list[str]) -> PartitionInput:
    named = np.array([bool(unit) for unit in units])
    digests = np.where(named[:, None], _digests(units), content.digests)
    return replace(content, unit_digests=digests)


def _made(config: RunConfig, content: PartitionInput) -> Partition:
    return make_partition(content, config.data, num_clients=config.num_clients, seed=config.seed)


def _whole(sizes: list[int]) -> Partition:
    """Everything is the first client's, and nothing is held out."""
    owner, held_out = np.zeros(COUNT, dtype=np.int32), np.zeros(COUNT, dtype=bool)
    return Partition(owner, held_out, np.array(sizes), np.array(sizes), 0)


@pytest.mark.parametrize("num_train", [COUNT, 450], ids=["held-out", "own-test-set"])
@pytest.mark.parametrize("partitioner", ["dirichlet", "iid", "size-skew", "pathological", "shards"])
def test_shards_are_disjoint_and_miss_only_what_is_counted(
    make_config: MakeConfig, partitioner: str, num_train: int
) -> None:
    content = _content(num_train)
    partition = load_or_make_partition(
        make_config({"data.partitioner": partitioner, "data.shards-per-client": 7}), content
    )

    shards = [shard(content, partition, client, private=False) for client in range(5)]

    rows = np.concatenate([np.concatenate([part.train_inputs, part.test_inputs]) for part in shards])
    assert len(set(rows.tolist())) == len(rows) == COUNT - partition.images_unused
    if partitioner not in ("pathological", "shards"):
        assert partition.images_unused == 0
    for part in shards:
        assert np.array_equal(part.train_labels, content.labels[part.train_inputs])
        assert np.array_equal(part.test_labels, content.labels[part.test_inputs])
        assert np.array_equal(part.train_digests, content.digests[part.train_inputs])


def test_images_unused_counts_what_shards_leave_over(make_config: MakeConfig) -> None:
    partition = load_or_make_partition(
        make_config({"data.partitioner": "shards", "data.shards-per-client": 7}), _content()
    )

    assert partition.images_unused == COUNT % 35 == (partition.owner == -1).sum()
    assert partition.num_units.sum() == COUNT - COUNT % 35
    assert not (partition.held_out & (partition.owner < 0)).any()


@given(bad=st.sets(st.integers(0, COUNT - 1), max_size=80), num_train=st.sampled_from([COUNT, 450]))
@settings(max_examples=15, deadline=None)
def test_declared_sizes_and_owners_do_not_depend_on_which_files_are_bad(
    make_config: MakeConfig, bad: set[int], num_train: int
) -> None:
    content = _with_units(_content(num_train), [f"p{row // 3}" if row % 4 else "" for row in range(COUNT)])
    assert content.unit_digests is not None
    unit_digests = content.unit_digests.copy()
    unit_digests[[row for row in bad if row % 4 == 0]] = 0  # an image without unit has the digest of its pixels
    damaged = replace(_without(content, np.array(sorted(bad), dtype=int)), unit_digests=unit_digests)

    sound, hurt = (_made(make_config(), one) for one in (content, damaged))

    assert np.array_equal(hurt.num_units, sound.num_units)
    assert np.array_equal(hurt.owner[:num_train], sound.owner[:num_train])


def test_shard_holds_usable_rows_only(make_config: MakeConfig) -> None:
    bad = np.arange(0, COUNT, 7)
    content = _without(_content(450), bad)
    partition = load_or_make_partition(make_config(), content)

    shards = [shard(content, partition, client, private=True) for client in range(5)]

    rows = np.concatenate([np.concatenate([part.train_inputs, part.test_inputs]) for part in shards])
    assert sorted(rows.tolist()) == sorted(set(range(COUNT)) - set(bad.tolist()))
    assert not (partition.held_out & ~content.usable).any()
    assert partition.num_units.sum() == 450


def test_an_unknown_class_is_dealt_and_counted_but_never_shown(make_config: MakeConfig) -> None:
    labels = _content().labels.copy()
    labels[:60] = -1
    content = _without(_content(labels=labels), np.arange(60))
    partition = load_or_make_partition(make_config(), content)

    counts = class_counts(content, partition)

    assert partition.num_units.sum() == COUNT
    assert counts.sum() == COUNT - 60
    assert np.array_equal(counts.sum(axis=1), np.bincount(labels[60:]))


def test_units_stay_at_one_client_and_on_one_side(make_config: MakeConfig) -> None:
    units = [f"patient {number}" if number % 2 else "" for number in np.random.default_rng(1).integers(60, size=COUNT)]
    content = _with_units(_content(), units)

    partition = load_or_make_partition(make_config(), content)

    for name in set(units) - {""}:
        rows = [row for row, unit in enumerate(units) if unit == name]
        assert len(set(partition.owner[rows])) == 1
        assert len(set(partition.held_out[rows])) == 1
    assert 0.1 < partition.held_out.mean() < 0.3


def test_test_images_of_a_unit_go_where_its_training_images_are(make_config: MakeConfig) -> None:
    units = [f"patient {number}" for number in np.random.default_rng(1).integers(150, size=COUNT)]
    content = _with_units(_content(450), units)

    partition = load_or_make_partition(make_config(), content)

    for name in set(units):
        assert len({partition.owner[row] for row, unit in enumerate(units) if unit == name}) == 1


def test_natural_test_images_stay_at_their_own_client(make_config: MakeConfig) -> None:
    owners = np.random.default_rng(2).integers(3, size=COUNT).astype(np.int32)
    content = _content(450, owners=owners, client_names=("x", "y", "z"))

    partition = load_or_make_partition(make_config({"data.partitioner": "natural", "num-clients": 3}), content)

    assert np.array_equal(partition.owner, owners)
    assert partition.images_unused == 0


def test_natural_counts_an_image_without_client_as_unused(make_config: MakeConfig) -> None:
    owners = np.random.default_rng(2).integers(3, size=COUNT).astype(np.int32)
    owners[:9] = -1
    content = _content(owners=owners, client_names=("x", "y", "z"))

    partition = load_or_make_partition(make_config({"data.partitioner": "natural", "num-clients": 3}), content)

    assert partition.images_unused == 9
    assert class_counts(content, partition).sum() == COUNT - 9


def test_natural_names_the_right_number_of_clients(make_config: MakeConfig) -> None:
    content = _content(owners=np.zeros(COUNT, dtype=np.int32), client_names=("x",))

    with pytest.raises(DataError, match="needs num-clients=1"):
        load_or_make_partition(make_config({"data.partitioner": "natural"}), content)


def test_num_units_is_the_training_pool_before_anything_is_held_out(make_config: MakeConfig) -> None:
    some, more = (
        load_or_make_partition(make_config({"data.test-fraction": share}), _content()) for share in (0.2, 0.5)
    )

    assert some.num_units.tolist() == more.num_units.tolist() == np.bincount(some.owner).tolist()
    assert np.array_equal(some.owner, more.owner)
    assert 0 < some.held_out.sum() < more.held_out.sum()


def test_num_units_leaves_out_the_sources_own_test_set(make_config: MakeConfig) -> None:
    partition = load_or_make_partition(make_config(), _content(450))

    assert partition.num_units.tolist() == np.bincount(partition.owner[:450], minlength=5).tolist()
    assert np.array_equal(partition.held_out, np.arange(COUNT) >= 450)


def test_deal_refuses_a_batch_larger_than_all_images(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match=r"training\.batch-size=451 but there are only 450 training images"):
        load_or_make_partition(make_config({"training.batch-size": 451}), _content(450))

    assert load_or_make_partition(make_config({"training.batch-size": 450}), _content(450)).num_units.sum() == 450


def _same(one: Partition, other: Partition) -> bool:
    return all(np.array_equal(value, getattr(other, name)) for name, value in vars(one).items())


def test_deal_is_read_the_second_time(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_or_make_partition(make_config(), _content())
    monkeypatch.setattr(
        "common.data.partitioning.assignment.make_partition", lambda *_, **__: pytest.fail("dealt again")
    )

    assert _same(load_or_make_partition(make_config(), _content()), first)


def test_deal_gives_the_same_when_computed_again(make_config: MakeConfig) -> None:
    assert _same(load_or_make_partition(make_config(), _content()), _made(make_config(), _content()))


@pytest.mark.parametrize(
    ("before", "changed"),
    [
        ({}, {"seed": 1}),
        ({}, {"num-clients": 6}),
        ({}, {"data.partitioner": "iid"}),
        ({}, {"data.alpha": 2.0}),
        ({}, {"data.test-fraction": 0.3}),
        ({"data.partitioner": "pathological"}, {"data.classes-per-client": 3}),
        ({"data.partitioner": "shards"}, {"data.shards-per-client": 3}),
        ({"data.partitioner": "size-skew"}, {"data.size-skew": "square"}),
        ({"data.alpha": 0.3}, {"data.min-client-size": 80}),
    ],
)
def test_deal_is_computed_anew_when_a_setting_that_matters_changes(
    make_config: MakeConfig, before: dict[str, Scalar], changed: dict[str, Scalar]
) -> None:
    first = load_or_make_partition(make_config(before), _content())

    assert not _same(load_or_make_partition(make_config(before | changed), _content()), first)


def test_deal_is_computed_anew_for_other_content(make_config: MakeConfig) -> None:
    first = load_or_make_partition(make_config(), _content())

    assert not _same(
        load_or_make_partition(make_config(), _content(labels=_content().labels[::-1], key="other")), first
    )


def test_deal_is_computed_anew_when_another_image_turns_out_bad(make_config: MakeConfig) -> None:
    first = load_or_make_partition(make_config(), _content())
    held = np.flatnonzero(first.held_out)[:1]

    assert not load_or_make_partition(make_config(), _without(_content(), held)).held_out[held].any()


def test_deal_keeps_its_cache_to_its_owner(make_config: MakeConfig) -> None:
    load_or_make_partition(make_config(), _content())

    folder = bract_home() / "cache" / "partitions"
    assert [file.stat().st_mode & 0o777 for file in folder.iterdir()] == [0o600]
    assert [part.stat().st_mode & 0o777 for part in (folder, folder.parent)] == [0o700] * 2


def test_deal_leaves_no_half_written_file(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("common.data.partitioning.assignment.np.savez", stop)
    with pytest.raises(KeyboardInterrupt):
        load_or_make_partition(make_config(), _content())

    assert list((bract_home() / "cache" / "partitions").iterdir()) == []


@pytest.mark.parametrize("partitioner", ["dirichlet", "pathological"])
def test_class_counts_add_up_to_the_classes_and_the_clients(make_config: MakeConfig, partitioner: str) -> None:
    content = _content()
    partition = load_or_make_partition(
        make_config({"data.partitioner": partitioner, "data.classes-per-client": 1}), content
    )

    counts = class_counts(content, partition)

    assert counts.shape == (4, 5)
    assert np.array_equal(counts.sum(axis=0), partition.num_units)
    assert np.array_equal(counts.sum(axis=1), np.bincount(content.labels[partition.owner >= 0], minlength=4))


def test_shard_of_a_private_client_keeps_one_copy_of_equal_images() -> None:
    digests = _content().digests.copy()
    digests[:40] = digests[0]
    content = _content(digests=digests)
    everything = _whole([COUNT])

    private, plain = (shard(content, everything, 0, private=wanted) for wanted in (True, False))

    assert private.train_inputs.tolist() == [0, *range(40, COUNT)]
    assert len(plain.train_labels) == COUNT
    assert private.num_units == plain.num_units == COUNT


def test_shard_never_trains_on_the_sources_own_test_set() -> None:
    nothing_held = _whole([450])

    assert shard(_content(450), nothing_held, 0, private=False).train_inputs.tolist() == list(range(450))


def test_shard_of_a_client_without_rows_is_empty() -> None:
    nobody = _whole([COUNT, 0])

    part = shard(_content(), nobody, 1, private=True)

    assert (len(part.train_inputs), len(part.test_labels), part.num_units) == (0, 0, 0)
    assert part.train_digests.shape == (0, 32)


def test_rows_of_a_client_are_its_entries_in_order() -> None:
    owner = np.array([2, -1, 0, 2, 0, 2], dtype=np.int32)
    partition = Partition(owner, np.zeros(6, dtype=bool), np.array([2, 0, 3]), np.array([2, 0, 3]), 1)

    assert [partition.rows_of(client).tolist() for client in range(3)] == [[2, 4], [], [0, 3, 5]]
