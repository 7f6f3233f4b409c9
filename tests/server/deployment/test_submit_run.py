"""The command that follows a run shows what the run has left.

Drives `server.deployment.submit_run`.
"""

import threading
from pathlib import Path

import pytest
from rich.console import Console

from server.deployment import submit_run
from server.deployment.server_folder import ServerHome
from server.deployment.submit_run import Follower
from server.reporting.run_page.report import REPORT
from tests.support.server.run_folders import OPEN, RunOnDisk


def test_a_follower_waits_for_the_page_that_the_table_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is written a moment after the summary that says that the run is complete."""
    RunOnDisk(OPEN).write(tmp_path)
    follower = Follower(ServerHome(tmp_path, "127.0.0.1", 1, (), 1), 1, tmp_path, Console(quiet=True))
    monkeypatch.setattr(Follower, "ended", lambda _: False)
    later = threading.Timer(0.5, lambda: (tmp_path / REPORT).write_text("page"))

    later.start()
    follower.follow(4, 2)
    assert (tmp_path / REPORT).is_file()
    later.join()


@pytest.mark.parametrize("ended", [True, False])
def test_a_run_without_a_page_is_not_waited_for_for_ever(
    ended: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RunOnDisk(OPEN).write(tmp_path)
    monkeypatch.setattr(Follower, "ended", lambda _: ended)
    monkeypatch.setattr(submit_run, "_SECONDS_FOR_REPORT", 60.0 if ended else 0.3)

    Follower(ServerHome(tmp_path, "127.0.0.1", 1, (), 1), 1, tmp_path, Console(quiet=True)).follow(4, 2)
