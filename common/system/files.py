"""Files that are written whole or not at all."""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_stream(file: Path, *, durable: bool, mode: int, overwrite: bool = True) -> Iterator[BinaryIO]:
    """Open a stream whose content becomes `file` when the block ends without an error.

    Guarantee: other processes see the old file or the whole new one, also after a crash. A block that fails leaves
    nothing behind. A durable file is on the disk, with its name, before the block is left, so that a power failure
    cannot lose it. The process's umask applies to `mode`.

    Raises:
        FileExistsError: The file exists, and `overwrite` is false.
        OSError: The file cannot be written.
    """
    # A random name, because several processes may write the same file at once.
    scratch = file.with_name(f".{file.name}.{secrets.token_hex(4)}.part")
    try:
        with open(scratch, "xb", opener=lambda path, flags: os.open(path, flags, mode)) as stream:
            yield stream
            if durable:
                stream.flush()
                os.fsync(stream.fileno())
        # A link fails where the name exists, so that of two processes the first one wins.
        (os.replace if overwrite else os.link)(scratch, file)
    finally:
        scratch.unlink(missing_ok=True)
    if durable:
        sync_folder(file.parent)


def write_atomic(file: Path, content: str | bytes, *, durable: bool, mode: int, overwrite: bool = True) -> None:
    """Write a whole file as `atomic_stream` does, text as UTF-8."""
    with atomic_stream(file, durable=durable, mode=mode, overwrite=overwrite) as stream:
        stream.write(content.encode() if isinstance(content, str) else content)


def make_folder(folder: Path, *, mode: int = 0o777) -> None:
    """Make a folder that a setting or the environment names.

    Missing folders above it are made, too. A folder that is there already stays as it is.

    Raises:
        OSError: The folder cannot be made. It is a PermissionError where none can be made at all.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=mode)
    except FileNotFoundError:
        # Below /proc nothing can be made, and the system calls the new folder missing. Commands take a missing file
        # for a fault of the program, and this is the user's.
        raise PermissionError(errno.EPERM, "no folder can be made there", str(folder)) from None


def sync_folder(folder: Path) -> None:
    """Write the names in a folder to the disk."""
    # Windows cannot open a folder, and keeps names on the disk by itself.
    if os.name != "nt":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def file_state(file: Path) -> tuple[int, int] | None:
    """Return a file's time of change and size, None without one."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
