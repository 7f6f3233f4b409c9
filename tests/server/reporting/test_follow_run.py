"""A run that another process runs is shown as its files say, each round once.

Drives `server.reporting.trackers`.
"""

import json
from pathlib import Path
from typing import Any

from server.reporting.follow_run import follow_run


class Listener:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, num_rounds: int, num_clients: int, done: int) -> None:
        self.told.append((num_rounds, num_clients, done))

    def round_done(self, line: dict[str, Any]) -> None:
        self.told.append(line["round"])

    def stop(self) -> None:
        self.told.append("stop")


def test_follow_run_shows_each_round_once_and_ends_with_the_run(tmp_path: Path) -> None:
    rounds, listener, looks = tmp_path / "rounds.jsonl", Listener(), 0

    def ended() -> bool:
        nonlocal looks
        looks += 1
        if looks == 1:  # its process has not said anything yet
            assert listener.told == []
            rounds.write_text('{"round": 1}\n{"rou')  # and then is in the middle of a word
        if looks == 2:
            assert listener.told == [(3, 2, 0), 1]
            rounds.write_text('{"round": 1}\n{"round": 2}\n')
            (tmp_path / "summary.json").write_text(json.dumps({"status": "complete"}))
        assert looks < 9
        return False

    follow_run(tmp_path, listener, num_rounds=3, num_clients=2, ended=ended)

    assert listener.told == [(3, 2, 0), 1, 2, "stop"]


def test_follow_run_ends_with_its_process_where_the_run_did_not_get_that_far(tmp_path: Path) -> None:
    listener = Listener()

    follow_run(tmp_path / "nothing", listener, num_rounds=3, num_clients=2, ended=lambda: True)

    assert listener.told == ["stop"]
