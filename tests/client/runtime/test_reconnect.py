"""Which ends of a SuperNode are worth another try."""

from pathlib import Path

import pytest
from rich.console import Console

from client.client_config import Site
from client.runtime import reconnect
from client.runtime.operator_log import operator_log
from client.runtime.reconnect import Next, Reconnecting
from client.runtime.supernode_log import NodeLog

SITE = Site(Path("/ward-7"), "ward-7", "", "", 1, 1, 0.2, "", "fl.example.org:9443", "authority.pem")
LET_IN = "INFO :      SuperNode ID: 7"
REFUSED = "[code: 2004] Failed to activate SuperNode."
EXPIRED = "certificate verify failed: certificate has expired"


def log_of(tmp_path: Path, *lines: str) -> NodeLog:
    with operator_log(tmp_path, Console(quiet=True)) as operator:
        log = NodeLog(operator, SITE)
        log.heard(lines)
    return log


class Hands:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture(name="hands")
def hands_fixture(monkeypatch: pytest.MonkeyPatch) -> Hands:
    hands = Hands()
    monkeypatch.setattr(reconnect, "time", hands)
    return hands


@pytest.mark.parametrize(
    ("lines", "code", "expected"),
    [
        ([LET_IN], 0, Next.STOP),  # its key was revoked
        ([LET_IN], None, Next.AGAIN),
        ([LET_IN], -9, Next.AGAIN),
        ([LET_IN], 1, Next.AGAIN),
        ([EXPIRED], 1, Next.STOP),
        ([REFUSED], 1, Next.STOP),
        ([], 2, Next.STOP),
    ],
)
def test_what_follows_an_end(tmp_path: Path, lines: list[str], code: int | None, expected: Next) -> None:
    assert Reconnecting(tmp_path / "connected").after(log_of(tmp_path, *lines), code) is expected


def test_a_key_that_was_connected_when_its_client_was_killed_is_tried_until_the_server_forgets(
    tmp_path: Path, hands: Hands
) -> None:
    killed = Reconnecting(tmp_path / "connected")
    killed.connected()  # and never left

    again, refused = Reconnecting(tmp_path / "connected"), log_of(tmp_path, REFUSED)

    assert again.after(refused, 1) is Next.AGAIN
    hands.now += 90
    assert again.after(refused, 1) is Next.AGAIN
    hands.now += 20
    assert again.after(refused, 1) is Next.STOP


def test_a_client_that_took_its_leave_is_told_at_once_that_its_key_is_refused(tmp_path: Path) -> None:
    before = Reconnecting(tmp_path / "connected")
    before.connected()
    before.left()

    assert Reconnecting(tmp_path / "connected").after(log_of(tmp_path, REFUSED), 1) is Next.STOP


def test_pauses_grow_and_are_short_again_after_a_connection(tmp_path: Path) -> None:
    tries, pauses = Reconnecting(tmp_path / "connected"), []
    for _ in range(6):
        tries.after(log_of(tmp_path, LET_IN), None)
        pauses.append(tries.pause)
    tries.connected()

    assert pauses == [10, 20, 40, 60, 60, 60]
    assert tries.pause == 5
