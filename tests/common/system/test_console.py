"""Errors of commands: what a user sees as one line, and what stays a fault of the program."""

import errno
import os

import pytest
import typer

from common.errors import DataError
from common.system.console import plain_errors


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (DataError("no images"), "DataError: no images"),
        (
            PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/scans"),
            "FileError: /scans cannot be used (permission",
        ),
        (
            PermissionError(errno.EPERM, os.strerror(errno.EPERM), b"/scans"),
            "FileError: /scans cannot be used (operation",
        ),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/scans"), "FileError: /scans cannot be used (no space left"),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "/scans"), "FileError: /scans cannot be used (read-only file"),
        (
            NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), "/a/b"),
            "FileError: /a/b cannot be used (not a",
        ),
        (PermissionError(errno.EACCES, os.strerror(errno.EACCES), "/a[b]\x1b"), r"FileError: /a[b]\x1b cannot be used"),
    ],
)
def test_mistake_of_a_user_is_one_line_and_exit_code_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as caught, plain_errors():
        raise error

    assert caught.value.exit_code == 2
    said = capsys.readouterr().err
    assert said.startswith(line)
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "/scans"),
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE)),
        KeyError("scans"),
    ],
)
def test_fault_of_the_program_keeps_its_traceback(error: Exception) -> None:
    with pytest.raises(type(error)), plain_errors():
        raise error
