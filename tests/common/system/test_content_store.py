"""A store keeps rows by content: nothing is lost but what was in hand, nothing damaged is handed out.

Drives `common.system.files`.
"""

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.errors import DataError
from common.system import content_store
from common.system.content_store import ContentStore
from tests.support.paths import ROOT

FLOAT = np.dtype(np.float32)


def digests(*numbers: int) -> list[bytes]:
    return [number.to_bytes(32, "big") for number in numbers]


def asked(*numbers: int) -> np.ndarray:
    return np.frombuffer(b"".join(digests(*numbers)), dtype=np.uint8).reshape(-1, 32)


def rows(*numbers: int) -> np.ndarray:
    return np.array([[number, 10 * number, -number] for number in numbers], dtype=np.float32)


def store(folder: Path) -> ContentStore:
    return ContentStore(folder, (3,), FLOAT)


def test_rows_come_back_in_the_order_asked_for(tmp_path: Path) -> None:
    store(tmp_path).append(digests(1, 2, 3), rows(1, 2, 3))

    found = store(tmp_path).rows_of(asked(3, 1, 1))

    assert found.shape == (3, 3)
    assert np.array_equal(found[np.arange(3)], rows(3, 1, 1))
    assert np.array_equal(found[np.array([False, True, False])], rows(1))


def test_append_leaves_out_what_is_already_there(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.append(digests(1, 2), rows(1, 2))
    one.append(digests(2, 3), rows(99, 3))

    assert len(one) == 3
    assert np.array_equal(one.rows_of(asked(2, 3))[:], rows(2, 3))


def test_a_missing_row_is_told_and_never_read(tmp_path: Path) -> None:
    one = store(tmp_path)
    one.append(digests(1), rows(1))

    assert one.rows_of(asked(1, 5)).absent.tolist() == [False, True]
    with pytest.raises(DataError):
        one.rows_of(asked(1, 5))[np.array([0, 1])]


def test_an_empty_store_misses_everything(tmp_path: Path) -> None:
    assert store(tmp_path).rows_of(asked(1)).absent.tolist() == [True]
    assert store(tmp_path).rows_of(asked()).shape == (0, 3)


@pytest.mark.parametrize(("name", "extra"), [("rows.bin", b"half a row"), ("index.bin", b"half a record")])
def test_what_a_killed_writer_left_is_cut_off(tmp_path: Path, name: str, extra: bytes) -> None:
    store(tmp_path).append(digests(1, 2), rows(1, 2))
    with (tmp_path / name).open("ab") as stream:
        stream.write(extra)

    later = store(tmp_path)
    later.append(digests(7), rows(7))

    assert np.array_equal(store(tmp_path).rows_of(asked(1, 2, 7))[:], rows(1, 2, 7))
    assert (tmp_path / "rows.bin").stat().st_size == 3 * 12
    assert (tmp_path / "index.bin").stat().st_size == 3 * 36


def test_a_damaged_row_counts_as_missing_and_can_be_added_anew(tmp_path: Path) -> None:
    store(tmp_path).append(digests(1, 2), rows(1, 2))
    with (tmp_path / "rows.bin").open("r+b") as stream:
        stream.seek(12)
        stream.write(b"\xff")

    later = store(tmp_path)
    assert later.rows_of(asked(1, 2)).absent.tolist() == [False, True]
    later.append(digests(2), rows(2))

    assert not store(tmp_path).rows_of(asked(1, 2)).absent.any()
    assert np.array_equal(store(tmp_path).rows_of(asked(1, 2))[:], rows(1, 2))


def test_index_without_rows_is_not_trusted_when_the_machine_lost_power(tmp_path: Path) -> None:
    store(tmp_path).append(digests(1, 2), rows(1, 2))
    (tmp_path / "rows.bin").write_bytes(bytes(12))

    assert store(tmp_path).rows_of(asked(1, 2)).absent.all()


def test_files_belong_to_their_owner_only(tmp_path: Path) -> None:
    store(tmp_path / "new").append(digests(1), rows(1))

    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "new").glob("*.bin")}
    assert modes == {"rows.bin": 0o600, "index.bin": 0o600}
    assert stat.S_IMODE((tmp_path / "new").stat().st_mode) == 0o700


_WRITER = """
import sys, numpy as np
from pathlib import Path
from common.system import content_store
from common.system.content_store import ContentStore
store = ContentStore(Path(sys.argv[1]), (3,), np.dtype(np.float32))
for number in range(int(sys.argv[2]), 1000, 2):
    store.append([number.to_bytes(32, "big")], np.array([[number, 10 * number, -number]], dtype=np.float32))
    print(number, flush=True)
"""


def test_two_writers_and_one_kill_lose_nothing_that_was_reported(tmp_path: Path) -> None:
    root = str(ROOT)
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(tmp_path), str(first)],
            stdout=subprocess.PIPE,
            cwd=root,
            env=os.environ | {"PYTHONPATH": root},
            text=True,
        )
        for first in (0, 1)
    ]
    assert writers[1].stdout is not None
    said = [int(writers[1].stdout.readline()) for _ in range(40)]
    writers[1].send_signal(signal.SIGKILL)
    said += [int(line) for line in writers[1].stdout.read().split()]
    writers[1].wait()
    assert writers[0].stdout is not None
    said += [int(line) for line in writers[0].stdout.read().split()]
    assert writers[0].wait() == 0
    writers[0].stdout.close()
    writers[1].stdout.close()

    found = store(tmp_path)

    assert len(said) >= 540
    assert not found.rows_of(asked(*said)).absent.any()
    assert np.array_equal(found.rows_of(asked(*said))[:], rows(*said))


def test_many_rows_are_checked_and_read_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = store(tmp_path)
    one.append(digests(*range(7)), rows(*range(7)))
    content = bytearray((tmp_path / "rows.bin").read_bytes())
    content[5 * 12] ^= 1
    (tmp_path / "rows.bin").write_bytes(content)
    monkeypatch.setattr(content_store, "_MOST_MAPPED", 2 * content_store._NEIGHBOURS)

    found = store(tmp_path).rows_of(asked(*range(7)))

    assert found.absent.tolist() == [False] * 5 + [True, False]
    assert np.array_equal(found[np.array([6, 4, 0, 2, 2])], rows(6, 4, 0, 2, 2))
    assert np.array_equal(found[:5], rows(*range(5)))
    assert found[:5].dtype == FLOAT


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="needs a list of mapped memory")
def test_rows_that_were_read_do_not_stay_in_memory_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide, number = 2**16, 128
    one = ContentStore(tmp_path, (wide,), np.dtype(np.uint8))
    one.append(digests(*range(number)), np.ones((number, wide), np.uint8))
    monkeypatch.setattr(content_store, "_MOST_MAPPED", 16 * wide)

    found = one.rows_of(asked(*range(number)))
    for _ in range(3):
        # In the rows' order, in another one, and a few at a time.
        for part in (slice(None), np.arange(number)[::-1], *np.arange(number).reshape(-1, 4)):
            assert found[part].all()

    lines = Path("/proc/self/smaps").read_text().splitlines()
    place = next(at for at, line in enumerate(lines) if str(tmp_path / "rows.bin") in line)
    resident = next(line for line in lines[place:] if line.startswith("Rss:"))
    assert int(resident.split()[1]) * 1024 <= 17 * wide
