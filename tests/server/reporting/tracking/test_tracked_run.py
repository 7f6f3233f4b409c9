"""Copies of a run in experiment trackers: complete, only of what is released, and never in the run's way.

Drives `server.reporting.tracking.contract`, `server.reporting.tracking.registry`,
`server.reporting.tracking.released_values`.
"""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from common.config.loading import defaults, nest, override
from common.errors import ConfigError
from server.reporting.tracking import registry, released_values, tracked_run
from server.reporting.tracking.contract import Connection, Experiment

LINE = {"clients": 3, "failures": {"site-a": "lost"}, "seconds": 0.5, "bytes_up": 10.0, "bytes_down": 20.0}
EXACT = {"evaluated_model": 1, "accuracy": 0.9, "loss": 0.2}
PUBLIC = {"public_test": {"accuracy": 0.7, "evaluated_model": 1}, "epsilon_so_far": 0.5, "epsilon_of_plan": 8.0}
PRIVATE = {"private": {"evaluated_model": 0, "accuracy": 0.5, "accuracy_stddev": None}}


class Book:
    """Tracker that writes down what it gets."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.tracked_as, self.place = experiment, experiment.tracked_as or "new id", "here"
        self.rounds: dict[int, Mapping[str, float]] = {}
        self.final: Mapping[str, float] = {}
        self.pictures: Mapping[str, Path] = {}
        self.closed: bool | None = None
        BOOKS.append(self)

    def log(self, figures: Mapping[str, float], step: int) -> None:
        self.rounds[step] = figures

    def finish(self, figures: Mapping[str, float], pictures: Mapping[str, Path]) -> None:
        self.final, self.pictures = figures, pictures

    def close(self, *, complete: bool) -> None:
        self.closed = complete


class Broken(Book):
    """Tracker whose network fails in the second round."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        if step == 2:
            raise ConnectionError("no route to host\nand more")
        super().log(figures, step)


class Slow(Book):
    """Tracker that takes a second for a round."""

    def log(self, figures: Mapping[str, float], step: int) -> None:
        time.sleep(1)
        super().log(figures, step)


BOOKS: list[Book] = []


class Kind(registry.TrackerKind):
    """Kind of tracker that needs no package."""

    def load(self) -> None:
        if self.name == "missing":
            raise ImportError("half installed")

    def connect(self, experiment: Experiment) -> Connection:
        made: Connection = {"book": Book, "broken": Broken, "slow": Slow}[self.name](experiment)
        return made


def kind(name: str) -> Kind:
    return Kind(name, "", "", "")


class Files:
    """Files of a run that another process writes."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        folder.mkdir(exist_ok=True)
        flat = override(defaults(), {"output-dir": str(folder), **settings})
        (folder / "config.toml").write_text(tomli_w.dumps(nest(flat)))
        (folder / "run-id.txt").write_text("ab" * 16 + "\n")

    def write(self, rounds: int, *, status: str, more: Mapping[str, Any] = EXACT, private: bool = False) -> None:
        lines = [
            json.dumps(LINE | {"round": number + 1, "simulation_only": private} | more) for number in range(rounds)
        ]
        (self.folder / "rounds.jsonl").write_text("\n".join(lines) + "\n")
        summary = {"status": status, "private": private, "simulation_only": private, "rounds": rounds, **more}
        summary["config"] = {"data.source": "digits"}
        (self.folder / "curves.png").write_bytes(b"png")
        (self.folder / "summary.json").write_text(json.dumps(summary))


@pytest.fixture(autouse=True)
def books() -> Iterator[None]:
    BOOKS.clear()
    before = set(threading.enumerate())
    yield
    # A run does not wait for a slow tracker. The next test must, or it would find that tracker's book.
    for thread in set(threading.enumerate()) - before:
        thread.join(10)


def test_tracked_copies_each_round_once_and_the_summary_with_its_pictures(tmp_path: Path) -> None:
    files, told = Files(tmp_path / "run", **{"privacy.mechanism": "none"}), []

    with tracked_run.tracked(files.folder, [kind("book")], told.append):
        files.write(3, status="complete")

    (book,) = BOOKS
    assert sorted(book.rounds) == [1, 2, 3]
    assert book.rounds[2] == {
        "clients": 3.0, "failures": 1.0, "seconds": 0.5, "bytes_up": 10.0, "bytes_down": 20.0, **EXACT,
    }  # fmt: skip
    assert book.final == {"final/rounds": 3.0, "final/evaluated_model": 1.0, "final/accuracy": 0.9, "final/loss": 0.2}
    assert book.pictures == {"curves": files.folder / "curves.png"}
    assert book.closed is True
    assert told == ["Tracked  book: here"]


def test_tracked_of_a_resumed_run_goes_on_in_the_same_place(tmp_path: Path) -> None:
    files = Files(tmp_path / "run")
    with tracked_run.tracked(files.folder, [kind("book")]):
        files.write(2, status="interrupted")

    with tracked_run.tracked(files.folder, [kind("book")]):
        files.write(4, status="complete")

    first, second = BOOKS
    assert (sorted(first.rounds), first.closed, first.experiment.tracked_as) == ([1, 2], False, "")
    assert (sorted(second.rounds), second.closed, second.experiment.tracked_as) == ([3, 4], True, "new id")
    assert first.experiment.run_id == second.experiment.run_id
    assert "ab" * 8 not in first.experiment.run_id, "clients know a run by its id, and nobody else needs it"


def test_a_tracker_that_fails_ends_neither_the_run_nor_another_tracker(tmp_path: Path) -> None:
    files, told = Files(tmp_path / "run"), []

    with tracked_run.tracked(files.folder, [kind("broken"), kind("book")], told.append):
        files.write(3, status="complete")

    assert {type(book).__name__: sorted(book.rounds) for book in BOOKS} == {"Broken": [1], "Book": [1, 2, 3]}
    assert sorted(told) == [
        "--track broken gets no more of this run, which goes on: ConnectionError: no route to host",
        "Tracked  book: here",
    ]


def test_a_slow_tracker_delays_no_round(tmp_path: Path) -> None:
    files = Files(tmp_path / "run")

    with tracked_run.tracked(files.folder, [kind("slow")]):
        started = time.monotonic()
        files.write(2, status="complete")
        assert time.monotonic() - started < 0.9

    assert sorted(BOOKS[0].rounds) == [1, 2]


def test_a_tracker_that_does_not_answer_holds_no_run_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracked_run, "_SECONDS_TO_FINISH", 0.1)
    monkeypatch.setattr(tracked_run, "_SECONDS_OF_SILENCE", 0.1)
    files, told = Files(tmp_path / "run"), []

    with tracked_run.tracked(files.folder, [kind("slow")], told.append):
        files.write(1, status="complete")

    assert told == [
        "Waiting up to 0 s for the rest of the copy: --track slow",
        "--track slow does not answer; the run has ended without the rest of its copy",
    ]


def test_a_package_that_cannot_be_imported_is_said_and_the_run_goes_on(tmp_path: Path) -> None:
    files, told = Files(tmp_path / "run"), []

    with tracked_run.tracked(files.folder, [kind("missing"), kind("book")], told.append):
        assert BOOKS == []
        files.write(1, status="complete")

    assert told[0] == "--track missing cannot be used in this run, which goes on: ImportError: half installed"
    assert [sorted(book.rounds) for book in BOOKS] == [[1]]


def test_a_run_that_stops_before_its_first_round_is_not_tracked(tmp_path: Path) -> None:
    before = set(threading.enumerate())

    with (
        pytest.raises(ConfigError, match="no data"),
        tracked_run.tracked(tmp_path / "run", [kind("book")]),
    ):
        raise ConfigError("no data")

    assert BOOKS == []
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(
    ("simulation_only", "private", "expected"),
    [
        (True, True, {"private/evaluated_model", "private/accuracy"}),
        (False, True, {"private/evaluated_model", "private/accuracy", "evaluated_model", "accuracy", "loss"}),
        (True, False, {"private/evaluated_model", "private/accuracy", "evaluated_model", "accuracy", "loss"}),
    ],
)
def test_round_figures_of_a_private_run_have_nothing_that_only_a_simulation_knows(
    simulation_only: bool, private: bool, expected: set[str]
) -> None:
    line = LINE | EXACT | PRIVATE | {"simulation_only": simulation_only}

    figures = released_values.round_figures(line, private=private)

    assert figures.keys() - LINE.keys() == expected
    assert "site-a" not in repr(figures)


def test_round_figures_have_the_public_test_and_epsilon_so_far() -> None:
    figures = released_values.round_figures(LINE | PUBLIC, private=True)

    assert figures["public_test/accuracy"] == 0.7
    assert (figures["epsilon_so_far"], figures["epsilon_of_plan"]) == (0.5, 8.0)


def test_a_private_simulation_gives_a_tracker_no_exact_figure_and_no_picture(tmp_path: Path) -> None:
    files = Files(tmp_path / "run", **{"privacy.mechanism": "dp-sgd"})

    with tracked_run.tracked(files.folder, [kind("book")]):
        files.write(2, status="complete", more=EXACT | PRIVATE, private=True)

    (book,) = BOOKS
    names = {name for figures in (*book.rounds.values(), book.final) for name in figures}
    assert not {name for name in names if name.split("/")[-1] in ("accuracy", "loss") and "private" not in name}
    assert book.pictures == {}


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("data.source", "/home/anna/scans", False),
        ("data.source", "hf:/home/anna/scans", False),
        ("data.source", "C:\\scans", False),
        ("data.source", "hf:uoft-cs/cifar10", True),
        ("data.source", "digits", True),
        ("data.path", "/data", False),
        ("output-dir", "/home/anna/run", False),
        ("privacy.policy", "/etc/policy.toml", False),
        ("model.initial", "/home/anna/old", False),
        ("model.weights", "random", True),
        ("model.backbone", "timm:resnet18.a1_in1k", True),
        ("model.backbone", "timm:hf-hub:lab/net", True),
        ("model.backbone", "/home/anna/net", False),
        ("privacy.policy", "policy.toml", False),
        ("output-dir", "anna", False),
        ("seed", 3, True),
    ],
)
def test_shown_settings_have_no_path_of_this_machine(key: str, value: str | int, shown: bool) -> None:
    assert released_values.shown_settings({key: value}) == ({key: value} if shown else {})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tensorbord", "--track tensorbord: there is no such tracker; known are tensorboard, mlflow, wandb"),
        ("mlflow", "--track mlflow needs the package mlflow: pip install .*mlflow"),
    ],
)
def test_trackers_refuses_a_name_before_the_run(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "is_installed", lambda _: False)

    with pytest.raises(ConfigError, match=message):
        registry.trackers([name])


def test_trackers_names_each_tracker_once() -> None:
    assert [one.name for one in registry.trackers(["tensorboard", "mlflow", "tensorboard"])] == [
        "tensorboard",
        "mlflow",
    ]
