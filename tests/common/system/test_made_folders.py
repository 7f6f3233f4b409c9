"""Folders that settings and the environment name, made by `common/system/files.py`."""

import ast
from pathlib import Path

import pytest
from typer.testing import CliRunner

import bract
from common.system.files import make_folder
from common.system.paths import cache_folder
from tests.support.house import name_of, nodes_of, product_files

# Folders below one that the program itself has just made.
_BELOW_OWN = {"common/data/partitioning/export.py", "simulations/benchmarks/measuring/runner.py"}
# Programs of other projects and functions in fresh processes, which get a scratch folder.
_IN_SCRATCH = {"simulations/benchmarks/peers/small_images.py", "simulations/benchmarks/features.py"}


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A place in which nothing can be made and whose new folders the system calls missing, as below /proc."""
    place, make = tmp_path / "proc", Path.mkdir

    def mkdir(self: Path, *args: object, **more: object) -> None:
        if place in self.parents:
            raise FileNotFoundError(2, "No such file or directory", str(self))
        make(self, *args, **more)  # type: ignore[arg-type]

    place.mkdir()
    monkeypatch.setattr(Path, "mkdir", mkdir)
    return place / "nope"


def test_a_folder_that_cannot_be_made_is_never_called_missing(nowhere: Path) -> None:
    with pytest.raises(PermissionError, match="no folder can be made there") as caught:
        make_folder(nowhere / "deeper")

    assert str(nowhere) in str(caught.value.filename)


def test_a_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    make_folder(tmp_path / "a" / "b", mode=0o700)
    (tmp_path / "a" / "b" / "file").touch()

    make_folder(tmp_path / "a" / "b")

    assert (tmp_path / "a" / "b" / "file").is_file()


@pytest.mark.parametrize(
    "command",
    [
        "simulate --set num-clients=2 --out {out}",
        "simulate --dry-run",
        "plan --set data.source=digits --epsilon 2",
        "audit layers",
        "data inspect digits",
        "client init {out} --name ward --data digits --server 127.0.0.1:1",
    ],
)
def test_a_home_that_cannot_be_made_is_one_line(
    command: str, nowhere: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BRACT_HOME", str(nowhere))

    result = CliRunner().invoke(bract.app, command.format(out=tmp_path / "out").split())

    assert result.exit_code == 2, result.exception
    assert f"{nowhere} cannot be used (no folder can be made there)" in result.output.replace("\n", "")


def test_a_cache_in_such_a_home_is_refused_as_a_file_error(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(nowhere))

    # Whoever can do without a cache, such as that of figures, goes on after an OSError.
    with pytest.raises(OSError, match="no folder can be made there"):
        cache_folder("accounting")


def test_folders_with_those_above_are_made_in_one_place() -> None:
    calls = [(name_of(file), node) for file in product_files() for node in nodes_of(file) if isinstance(node, ast.Call)]
    makers = {
        name
        for name, call in calls
        if getattr(call.func, "attr", "") in ("mkdir", "makedirs") and "parents" in {word.arg for word in call.keywords}
    }

    assert makers == {"common/system/files.py"} | _BELOW_OWN | _IN_SCRATCH
