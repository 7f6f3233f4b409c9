"""Figures on disk save time; whatever happens to them, they are never wrong and never stop anything."""

import json
import os
import shutil
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from common.system import figure_cache as module
from common.system.figure_cache import FigureCache

Forget = Callable[[], None]
FIGURES = FigureCache()
cached_figure = FIGURES.get_or_compute


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "cache" / "accounting" / "figures.jsonl"


@pytest.fixture
def forget() -> Forget:
    """As if another process asked: only what is on disk is known."""
    return FIGURES.clear


class Counted:
    """A computation that knows how often it was done."""

    def __init__(self, value: float) -> None:
        self.value, self.times = value, 0

    def __call__(self) -> float:
        self.times += 1
        return self.value


def test_remembered_computes_once_also_for_other_processes(file: Path, forget: Forget) -> None:
    compute = Counted(0.1 + 0.2)

    first, second = (cached_figure("pld", (1, 0.5), compute) for _ in range(2))
    forget()
    third = cached_figure("pld", (1, 0.5), compute)

    assert first == second == third == 0.1 + 0.2  # to the last bit
    assert compute.times == 1
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700


@pytest.mark.parametrize(("kind", "key"), [("rdp", (1, 0.5)), ("pld", (1, 0.25)), ("pld", (2, 0.5)), ("pld", "1, 0.5")])
def test_remembered_tells_keys_apart(file: Path, kind: str, key: object) -> None:
    cached_figure("pld", (1, 0.5), Counted(3.0))

    assert cached_figure(kind, key, Counted(4.0)) == 4.0


def test_remembered_computes_anew_with_other_libraries(
    file: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_figure("pld", 1, Counted(3.0))
    monkeypatch.setattr(module, "_versions", lambda: ("other", "versions"))
    forget()

    assert cached_figure("pld", 1, Counted(4.0)) == 4.0


def test_remembered_bypass_neither_believes_nor_keeps(file: Path, forget: Forget) -> None:
    cached_figure("pld", 1, Counted(3.0))
    before = file.read_bytes()

    assert cached_figure("pld", 1, Counted(4.0), bypass=True) == 4.0
    assert cached_figure("pld", 2, Counted(5.0), bypass=True) == 5.0

    assert file.read_bytes() == before
    forget()
    assert cached_figure("pld", 1, Counted(9.0)) == 3.0
    assert cached_figure("pld", 2, Counted(6.0)) == 6.0


def test_remembered_keeps_nothing_of_a_computation_that_failed(file: Path) -> None:
    def fail() -> float:
        raise ValueError("no figure")

    with pytest.raises(ValueError, match="no figure"):
        cached_figure("pld", 1, fail)

    assert cached_figure("pld", 1, Counted(2.0)) == 2.0


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut short": lambda found: found[:-9],
    "zeros": lambda found: b"\0" * len(found),
    "binary": lambda _: b"\xff\xfe\n\x80\n",
    "other JSON": lambda _: b'3\nnull\n{"a": 1, "b": 2}\n[1]\n[[1], 2]\n["a", "b"]\n["a", null]\n["a", 1, 2]\n',
    "a number beyond floats": lambda _: b'["a", 1' + b"0" * 400 + b"]\n",
    "nested without end": lambda _: b"[" * 100_000 + b"\n",
}


@pytest.mark.parametrize("case", list(DAMAGE))
def test_remembered_goes_on_with_a_damaged_file(file: Path, forget: Forget, case: str) -> None:
    cached_figure("pld", 1, Counted(3.0))
    file.write_bytes(DAMAGE[case](file.read_bytes()))
    forget()

    assert cached_figure("pld", 1, Counted(4.0)) == 4.0  # what was lost is computed anew

    forget()
    assert cached_figure("pld", 1, Counted(5.0)) == 4.0  # and can be read again behind the damage


def test_remembered_reads_what_is_whole_around_half_a_line(file: Path, forget: Forget) -> None:
    cached_figure("pld", 1, Counted(3.0))
    with file.open("ab") as stream:
        stream.write(b'\n["0123456789abcdef0123456789abcdef", 1')  # a killed process
    forget()
    cached_figure("pld", 2, Counted(4.0))
    forget()

    assert [cached_figure("pld", key, Counted(9.0)) for key in (1, 2)] == [3.0, 4.0]


def test_remembered_sees_what_another_process_adds(file: Path, forget: Forget) -> None:
    cached_figure("pld", 1, Counted(3.0))
    name = json.loads(file.read_text())[0]
    file.write_text("")
    cached_figure("pld", 2, Counted(1.0))
    other = json.loads(file.read_text())[0]
    forget()
    file.write_text("")
    assert cached_figure("pld", 3, Counted(1.0)) == 1.0

    with file.open("a") as stream:
        stream.write(f"\n{json.dumps([name, 7.0])}\n\n{json.dumps([other, 8.0])}\n")

    assert [cached_figure("pld", key, Counted(9.0)) for key in (1, 2)] == [7.0, 8.0]


def test_remembered_goes_on_when_the_file_is_deleted(file: Path) -> None:
    compute = Counted(3.0)
    cached_figure("pld", 1, compute)
    file.unlink()

    assert cached_figure("pld", 1, compute) == 3.0
    assert cached_figure("pld", 2, Counted(4.0)) == 4.0
    assert file.is_file()


@pytest.mark.parametrize("what", ["home is a file", "folder is a file", "file is a folder"])
def test_remembered_goes_on_where_nothing_can_be_kept(file: Path, forget: Forget, what: str) -> None:
    home = file.parents[2]
    if what == "home is a file":
        home.write_text("")
    elif what == "folder is a file":
        file.parents[1].mkdir(parents=True)
        file.parent.write_text("")
    else:
        file.mkdir(parents=True)
    forget()
    compute = Counted(3.0)

    assert cached_figure("pld", 1, compute) == 3.0
    assert cached_figure("pld", 1, compute) == 3.0


def test_remembered_goes_on_in_a_read_only_folder(file: Path, forget: Forget, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_figure("pld", 1, Counted(3.0))
    forget()
    refused = []

    def no_writing(path: object, flags: int, *_: int) -> int:
        refused.append(path)
        raise PermissionError(13, "Permission denied", str(path))  # also for root, who may write anywhere

    monkeypatch.setattr(os, "open", no_writing)

    assert cached_figure("pld", 1, Counted(9.0)) == 3.0  # what is there is still read
    assert cached_figure("pld", 2, Counted(4.0)) == 4.0
    assert refused == [file]


def test_remembered_lets_threads_write_whole_lines(file: Path, forget: Forget) -> None:
    def work(name: int) -> None:
        for number in range(30):
            cached_figure("pld", (name, number), Counted(float(number)))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    forget()
    assert [cached_figure("pld", (3, number), Counted(-1.0)) for number in range(30)] == list(map(float, range(30)))
    assert len([line for line in file.read_text().splitlines() if line]) == 120


def test_results_in_memory_are_kept_until_the_cache_is_cleared() -> None:
    figures, compute = FigureCache(), Counted(3.0)
    square = figures.in_memory(2)(lambda number: number * compute())

    assert (square(2.0), square(2.0), compute.times) == (6.0, 6.0, 1)
    figures.clear()
    assert (square(2.0), compute.times) == (6.0, 2)


def test_a_known_figure_leaves_the_disk_alone(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cached_figure("pld", 1, Counted(3.0))

    def no_folder(*_: str) -> Path:
        raise AssertionError("a thousand clients would make the folder a thousand times")

    monkeypatch.setattr(module, "cache_folder", no_folder)

    assert cached_figure("pld", 1, Counted(9.0)) == 3.0


def test_a_figure_is_kept_in_a_folder_that_was_deleted_and_of_the_home_of_now(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cached_figure("pld", 1, Counted(3.0))
    shutil.rmtree(file.parents[2])

    cached_figure("pld", 2, Counted(4.0))
    assert file.is_file()

    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "other"))
    assert cached_figure("pld", 1, Counted(5.0)) == 5.0
    assert (tmp_path / "other" / "cache" / "accounting" / "figures.jsonl").is_file()
