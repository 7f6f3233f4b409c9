"""Files that are whole or absent."""

import os
import stat
from pathlib import Path

import pytest

from common.system.files import atomic_stream, write_atomic


@pytest.mark.parametrize("durable", [False, True])
@pytest.mark.parametrize("content", ["ä\n", b"\x00\n"])
def test_write_atomic_replaces_a_file_and_leaves_nothing_else(
    tmp_path: Path, content: str | bytes, durable: bool
) -> None:
    file = tmp_path / "file"
    file.write_text("before")

    write_atomic(file, content, durable=durable, mode=0o600)

    assert file.read_bytes() == (content.encode() if isinstance(content, str) else content)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert [*tmp_path.iterdir()] == [file]


def test_write_atomic_keeps_what_is_there_when_it_may_not_overwrite(tmp_path: Path) -> None:
    file = tmp_path / "key"
    write_atomic(file, "first", durable=True, mode=0o600, overwrite=False)

    with pytest.raises(FileExistsError):
        write_atomic(file, "second", durable=True, mode=0o600, overwrite=False)

    assert file.read_text() == "first"
    assert [*tmp_path.iterdir()] == [file]


def test_atomic_stream_leaves_the_old_file_when_its_block_fails(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("before")

    def write_half() -> None:
        with atomic_stream(file, durable=False, mode=0o600) as stream:
            stream.write(b"half")
            raise KeyError

    with pytest.raises(KeyError):
        write_half()

    assert file.read_text() == "before"
    assert [*tmp_path.iterdir()] == [file]


def test_write_atomic_flushes_content_and_folder_only_when_durable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bool] = []
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(stat.S_ISDIR(os.fstat(handle).st_mode)))

    write_atomic(tmp_path / "a", "text", durable=False, mode=0o600)
    assert flushed == []

    write_atomic(tmp_path / "b", "text", durable=True, mode=0o600)
    assert flushed == [False, True]
