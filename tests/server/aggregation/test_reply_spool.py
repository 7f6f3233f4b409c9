"""Replies that memory has no room for: in a file, to the bit, and readable to nobody else."""

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord

from common.messages.codec import arrays_to_record
from common.messages.held_array import HeldArray
from server.aggregation import reply_spool
from server.aggregation.reply_spool import ReplySpool, SpooledArray

ODD = {
    "floats": np.array([[0.0, -0.0, np.nan], [np.inf, -1e-45, 1.5]], dtype=np.float32),
    "wide": np.linspace(0, 1, 7),
    "words": np.arange(5, dtype=np.uint8),
    "scalar": np.array(3.5, dtype=np.float32),
    "empty": np.zeros((0, 3), dtype=np.float32),
    "turned": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)),
}
SECRET = np.full(1000, 1.2345, dtype=np.float32)


def file_of(spool: ReplySpool) -> bytes:
    assert spool._file is not None
    return os.pread(spool._file.fileno, 1 << 20, 0)


@pytest.mark.parametrize("encoded", [False, True])
def test_what_is_read_is_to_the_bit_what_was_kept(encoded: bool) -> None:
    record = ArrayRecord({name: Array(array) for name, array in ODD.items()}) if encoded else arrays_to_record(ODD)
    spool = ReplySpool(in_memory=0)

    first, second = spool.keep(record), spool.keep(record)

    for kept in (first, second):
        assert list(kept) == list(ODD)
        for name, array in ODD.items():
            found = kept[name].numpy()
            assert (found.dtype, found.shape, found.tobytes()) == (array.dtype, array.shape, array.tobytes())
            assert kept[name].data == HeldArray(array).data


def test_replies_stay_in_memory_up_to_the_bound_and_no_further() -> None:
    spool = ReplySpool(in_memory=2 * SECRET.nbytes)

    kept = [spool.keep(arrays_to_record({"w": SECRET}))["w"] for _ in range(4)]

    assert [type(array) for array in kept] == [HeldArray, HeldArray, SpooledArray, SpooledArray]
    assert not any(isinstance(value, np.ndarray) for value in vars(kept[3]).values())
    spool.empty()
    assert isinstance(spool.keep(arrays_to_record({"w": SECRET}))["w"], HeldArray)


def test_the_file_has_no_name_and_cannot_be_read_without_the_key(tmp_path: Path) -> None:
    spool = ReplySpool(tmp_path, in_memory=0)

    spool.keep(arrays_to_record({"w": SECRET, "v": SECRET}))
    first = file_of(spool)

    assert not list(tmp_path.iterdir())
    assert len(first) == 2 * SECRET.nbytes
    # Equal values look unlike each other, within a tensor, between tensors and between rounds.
    parts = {first[start : start + 16] for start in range(0, len(first), 16)}
    assert len(parts) == len(first) // 16
    spool.empty()
    spool.keep(arrays_to_record({"w": SECRET, "v": SECRET}))
    again = file_of(spool)
    assert len(again) == len(first)
    assert not parts & {again[start : start + 16] for start in range(0, len(again), 16)}


def test_no_two_tensors_share_a_part_of_the_keys_stream() -> None:
    spool = ReplySpool(in_memory=0)
    short = np.full(3, 1.5, dtype=np.float32)

    kept = spool.keep(arrays_to_record({"w": short, "v": short}))

    first, second = (file_of(spool)[vars(array)["_offset"] :][: short.nbytes] for array in kept.values())
    assert first != second


def test_a_record_of_an_earlier_round_is_refused_and_not_read_from_the_new_ones() -> None:
    spool = ReplySpool(in_memory=0)
    old = spool.keep(arrays_to_record({"w": SECRET}))
    spool.empty()
    spool.keep(arrays_to_record({"w": SECRET}))

    with pytest.raises(OSError, match="dropped"):
        old["w"].numpy()


def test_a_full_disk_leaves_replies_in_memory_and_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, logger="bract.server")
    spool = ReplySpool(in_memory=0)
    before = spool.keep(arrays_to_record(ODD))

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reply_spool.os, "pwrite", full)
    kept = [spool.keep(arrays_to_record(ODD)) for _ in range(2)]

    assert all(isinstance(array, HeldArray) for record in kept for array in record.values())
    assert [message for message in caplog.messages if "No space left" in message] == caplog.messages
    assert len(caplog.messages) == 1
    assert before["wide"].numpy().tobytes() == kept[1]["wide"].numpy().tobytes()


def test_bytes_that_the_disk_takes_in_parts_are_written_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    real_write, real_read = os.pwrite, os.pread
    monkeypatch.setattr(reply_spool.os, "pwrite", lambda file, data, place: real_write(file, data[:100], place))
    monkeypatch.setattr(reply_spool.os, "pread", lambda file, size, place: real_read(file, min(size, 77), place))
    spool = ReplySpool(in_memory=0)

    kept = [spool.keep(arrays_to_record({"w": SECRET + n})) for n in range(3)]

    assert all(kept[n]["w"].numpy().tobytes() == (SECRET + n).tobytes() for n in range(3))


def test_some_of_the_disk_stays_free_for_the_runs_own_files(monkeypatch: pytest.MonkeyPatch) -> None:
    spool, size = ReplySpool(in_memory=0), SECRET.nbytes
    spool.keep(arrays_to_record({"w": SECRET}))
    assert spool._file is not None
    disk = os.fstatvfs(spool._file.fileno)
    # Room for half a record more.
    monkeypatch.setattr(reply_spool, "_LEFT_FREE", disk.f_bavail * disk.f_frsize - size // 2)
    monkeypatch.setattr(reply_spool.os, "fstatvfs", lambda _: disk)

    assert isinstance(spool.keep(arrays_to_record({"w": SECRET}))["w"], HeldArray)

    # What is written over needs no room, but after a full disk the file gives back what it took.
    assert len(file_of(spool)) == size
    spool.empty()
    assert len(file_of(spool)) == 0
    for left_free in (disk.f_bavail * disk.f_frsize - size, disk.f_bavail * disk.f_frsize):
        monkeypatch.setattr(reply_spool, "_LEFT_FREE", left_free)
        assert isinstance(spool.keep(arrays_to_record({"w": SECRET}))["w"], SpooledArray)
        spool.empty()
    assert len(file_of(spool)) == size


def test_a_copy_of_a_spooled_array_has_neither_key_nor_file() -> None:
    kept = ReplySpool(in_memory=0).keep(arrays_to_record({"w": SECRET}))["w"]

    copied = pickle.loads(pickle.dumps(kept))  # noqa: S301

    assert type(copied) is Array
    assert copied.numpy().tobytes() == SECRET.tobytes()
    assert kept.deflate() == HeldArray(SECRET).deflate()
