"""What a SuperNode logs is told to the operator in plain words, once.

Drives `client.runtime.operator_log`.
"""

from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from client.client_config import Site
from client.runtime.operator_log import operator_log
from client.runtime.supernode_log import NodeLog

SITE = Site(Path("/ward-7"), "ward-7", "", "", 1, 1, 0.2, "", "fl.example.org:9443", "authority.pem")


def told(tmp_path: Path, capsys: pytest.CaptureFixture[str], lines: list[str], code: int | None) -> str:
    shown = StringIO()
    with operator_log(tmp_path, Console(file=shown)) as operator:
        log = NodeLog(operator, SITE)
        log.heard(lines)
        if code is not None:
            log.ended(code)
    return shown.getvalue() + capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("[code: 2004] Failed to activate SuperNode.", "send /ward-7/node.pub to the server's operator"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed", "is not signed by /ward-7/authority.pem"),
        (
            "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: IP address mismatch, certificate is not valid "
            "for '10.0.0.1'.",
            "is for another name or address",
        ),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: certificate has expired", "has expired"),
        ("[SSL: WRONG_VERSION_NUMBER] wrong version number", "does not speak TLS"),
    ],
)
def test_the_end_of_a_supernode_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, hint: str
) -> None:
    said = told(tmp_path, capsys, ["\x1b[91mERROR\x1b[0m : Exit Code: 305", "{not a format}", line], 1)

    assert hint in said
    assert "ended with code 1" in said
    assert "{not a format}" in said
    assert line in said


def test_a_lost_connection_is_told_once_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    retry, again = "Connection attempt failed, retrying in 1.00 seconds", "Connection successful after 3.00 seconds"
    lines = [retry, retry, again, "INFO : SuperNode ID: 7", retry, again, again]

    said = told(tmp_path, capsys, lines, None).splitlines()

    assert [line.split()[0] for line in said] == ["No", "Connected", "Connected", "No", "Connected"]
    assert "retrying in 1.00" in (tmp_path / "client.log").read_text()


def test_what_a_terminal_would_obey_is_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = StringIO()
    with operator_log(tmp_path, Console(file=shown)) as operator:
        operator.say("round 1, \x1b]0;owned\x07train [bold]x[/]")
        operator.log(40, "refused \x1b[2J")

    assert "\x1b" not in shown.getvalue() + capsys.readouterr().err + (tmp_path / "client.log").read_text()
    assert "[bold]x[/]" in shown.getvalue()


@pytest.mark.parametrize(
    ("line", "broken"),
    [
        ("ERROR :      SSL/TLS handshake error detected.", True),
        ("ERROR :      Server error '500 Internal Server Error' for url", True),
        ("ERROR :      Failed to receive message 12: gone", False),
        ("ERROR :      Failed to send message 12: gone", False),
        ("INFO :      an ERROR in the middle", False),
        ("WARNING :   Connection attempt failed, retrying in 1.00 seconds", False),
    ],
)
def test_an_error_after_which_a_supernode_does_nothing_more_is_noticed(tmp_path: Path, line: str, broken: bool) -> None:
    with operator_log(tmp_path, Console(quiet=True)) as operator:
        log = NodeLog(operator, SITE)
        log.heard([f"\x1b[91m{line}"])
        before = log.broken
        log.heard(["INFO : SuperNode ID: 7", line])

    assert (before, log.broken) == (False, broken)
