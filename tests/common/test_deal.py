"""Dealing the digits: every row to one client and one side, once a machine."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.config import Scalar
from common.data.deal import Partition, class_counts, deal, shard
from common.data.prepared import Prepared
from common.errors import ConfigError
from common.sections import RunConfig

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def own_digits(digits: Prepared, tmp_path: Path) -> Prepared:
    """The digits, with a folder of this test's own to keep partitions in."""
    return replace(digits, folder=tmp_path)


@pytest.fixture
def with_test_set(own_digits: Prepared) -> Prepared:
    """The digits as if the last 297 were the source's own test set."""
    return replace(own_digits, num_train=1500)


@pytest.mark.parametrize("num_train", [1797, 1500], ids=["held-out", "own-test-set"])
@pytest.mark.parametrize("partitioner", ["dirichlet", "iid"])
def test_shards_are_disjoint_and_complete(
    make_config: MakeConfig, own_digits: Prepared, partitioner: str, num_train: int
) -> None:
    prepared = replace(own_digits, inputs=np.arange(1797), labels=np.asarray(own_digits.labels), num_train=num_train)
    partition = deal(make_config({"data.partitioner": partitioner}), prepared)

    shards = [shard(prepared, partition, client, private=False) for client in range(5)]

    rows = np.concatenate([np.concatenate([part.train_inputs, part.test_inputs]) for part in shards])
    assert sorted(rows.tolist()) == list(range(1797))
    assert all(np.array_equal(part.train_labels, prepared.labels[part.train_inputs]) for part in shards)
    assert all(np.array_equal(part.test_labels, prepared.labels[part.test_inputs]) for part in shards)


def test_shard_holds_real_rows_in_memory(make_config: MakeConfig, own_digits: Prepared) -> None:
    partition = deal(make_config(), own_digits)

    part = shard(own_digits, partition, 2, private=False)

    mine = np.flatnonzero((partition.owner == 2) & partition.held_out)
    assert np.array_equal(part.test_inputs, own_digits.inputs[mine])
    assert not isinstance(part.train_inputs, np.memmap)
    assert part.train_inputs.flags.c_contiguous


def test_num_units_is_the_training_pool_before_anything_is_held_out(
    make_config: MakeConfig, own_digits: Prepared
) -> None:
    partition = deal(make_config(), own_digits)

    shards = [shard(own_digits, partition, client, private=False) for client in range(5)]

    assert partition.num_units.sum() == 1797
    assert [part.num_units for part in shards] == [len(p.train_labels) + len(p.test_labels) for p in shards]
    assert 0.1 < partition.held_out.mean() < 0.3


def test_num_units_does_not_depend_on_what_is_held_out(make_config: MakeConfig, own_digits: Prepared) -> None:
    some, more = (deal(make_config({"data.test-fraction": share}), own_digits) for share in (0.2, 0.5))

    assert np.array_equal(some.num_units, more.num_units)
    assert np.array_equal(some.owner, more.owner)
    assert some.held_out.sum() < more.held_out.sum()


def test_num_units_leaves_out_the_sources_own_test_set(make_config: MakeConfig, with_test_set: Prepared) -> None:
    partition = deal(make_config(), with_test_set)

    assert partition.num_units.tolist() == np.bincount(partition.owner[:1500], minlength=5).tolist()
    assert np.array_equal(partition.held_out, np.arange(1797) >= 1500)


def test_deal_refuses_a_batch_larger_than_all_images(make_config: MakeConfig, with_test_set: Prepared) -> None:
    with pytest.raises(ConfigError, match=r"training\.batch-size=1501 but there are only 1500 training images"):
        deal(make_config({"training.batch-size": 1501}), with_test_set)

    assert deal(make_config({"training.batch-size": 1500}), with_test_set).num_units.sum() == 1500


def _same(one: Partition, other: Partition) -> bool:
    return all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("owner", "held_out", "num_units"))


def test_deal_is_read_the_second_time(
    make_config: MakeConfig, own_digits: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = deal(make_config(), own_digits)
    monkeypatch.setattr("common.data.deal._deal", lambda *_: pytest.fail("dealt again"))

    assert _same(deal(make_config(), own_digits), first)
    assert len(os.listdir(own_digits.folder)) == 1


def test_deal_gives_the_same_when_computed_again(make_config: MakeConfig, own_digits: Prepared, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    assert _same(deal(make_config(), own_digits), deal(make_config(), replace(own_digits, folder=elsewhere)))


@pytest.mark.parametrize(
    "changed",
    [{"seed": 1}, {"num-clients": 6}, {"data.partitioner": "iid"}, {"data.alpha": 2.0}, {"data.test-fraction": 0.3}],
)
def test_deal_is_computed_anew_when_a_setting_that_matters_changes(
    make_config: MakeConfig, own_digits: Prepared, changed: dict[str, Scalar]
) -> None:
    first = deal(make_config(), own_digits)

    assert not _same(deal(make_config(changed), own_digits), first)


def test_deal_writes_a_file_for_its_owner_only(make_config: MakeConfig, own_digits: Prepared) -> None:
    deal(make_config(), own_digits)

    assert [file.stat().st_mode & 0o777 for file in own_digits.folder.iterdir()] == [0o600]


def test_class_counts_add_up_to_the_classes_and_the_clients(make_config: MakeConfig, own_digits: Prepared) -> None:
    partition = deal(make_config(), own_digits)

    counts = class_counts(own_digits, partition)

    assert counts.shape == (10, 5)
    assert np.array_equal(counts.sum(axis=0), partition.num_units)
    assert np.array_equal(counts.sum(axis=1), np.bincount(own_digits.labels))


def test_shard_of_a_private_client_keeps_one_copy_of_equal_images(own_digits: Prepared) -> None:
    digests = np.array(own_digits.digests)
    digests[:40] = digests[0]
    copied = replace(own_digits, digests=digests)
    everything = Partition(
        np.zeros(len(digests), dtype=np.int32), np.zeros(len(digests), dtype=bool), np.array([len(digests)])
    )

    private, plain = (shard(copied, everything, 0, private=wanted) for wanted in (True, False))

    assert len(plain.train_labels) - len(private.train_labels) == 39
    assert private.num_units == plain.num_units == len(digests)
