"""Progress is plain lines where no bar can be drawn.

Drives `common.system.console`, `server.reporting.terminal_progress`.
"""

import pytest

from common.system.console import console_of_caller
from server.reporting import terminal_progress
from server.reporting.terminal_progress import TerminalProgress


@pytest.mark.parametrize("in_notebook", [True, False])
def test_without_a_terminal_long_work_prints_plain_lines(
    in_notebook: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(terminal_progress, "_PATIENCE", 0.0)
    monkeypatch.setattr("rich.console._is_jupyter", lambda: in_notebook)
    if in_notebook:
        # Jupyter sets it.
        monkeypatch.setenv("FORCE_COLOR", "1")
    progress = TerminalProgress(console_of_caller(quiet=False))

    advance = progress.work(3, "Backbone pass")
    advance(1)
    advance(2)
    progress.start(1, 2, 0)
    progress.round_done({"round": 1, "clients": 2, "failures": {}})
    progress.stop()

    output = capsys.readouterr()
    assert output.err == ""
    assert output.out.splitlines() == [
        "Backbone pass: 1 of 3",
        "Backbone pass: 3 done",
        "Training: 1 rounds, 2 clients",
        "round   1/1  2 clients",
    ]


def test_a_quiet_console_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    progress = TerminalProgress(console_of_caller(quiet=True))

    progress.work(1, "Backbone pass")(1)
    progress.stop()

    assert capsys.readouterr().out == ""
