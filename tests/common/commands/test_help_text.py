"""Every command has the same short option for help, and a text that is wrapped once."""

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from bract import app
from common.commands.help_text import unwrapped

COLUMNS = 60


def _command_at(path: tuple[str, ...]) -> Any:
    node: Any = get_command(app)
    for name in path:
        node = node.commands[name]
    return node


def commands(node: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    children = getattr(node, "commands", {})
    if not children:
        yield path
    for name, child in children.items():
        yield from commands(child, (*path, name))


@pytest.mark.parametrize("path", [(), *commands(get_command(app))], ids=" ".join)
def test_help_is_wrapped_once(path: tuple[str, ...]) -> None:
    short, long = (
        CliRunner().invoke(app, [*path, option], env={"COLUMNS": str(COLUMNS)}) for option in ("-h", "--help")
    )

    assert (short.exit_code, short.output) == (0, long.output)
    text = "\n".join(line.strip() for line in short.output.partition("╭")[0].splitlines())
    for paragraph in filter(None, map(str.strip, text.split("\n\n"))):
        # Tables and examples stand for themselves.
        if "  " in paragraph or paragraph.startswith(("bract ", "Usage")):
            continue
        # A line that ends early, though the first word of the next would have fitted, was wrapped before.
        for line, following in itertools.pairwise(paragraph.split("\n")):
            assert len(line) + 1 + len(following.split()[0]) > COLUMNS - 3, (line, following)


@pytest.mark.parametrize(
    "file",
    [
        *("common/commands/inspect_source.py", "common/commands/partition.py", "common/commands/models/evaluate.py"),
        *("common/commands/models/predict.py", "common/data/partitioning/partitioners.py", "docs/use.md"),
        "docs/settings.md",
    ],
)
def test_every_text_on_tables_names_the_same_kinds(file: str) -> None:
    """`.tsv` and `.xlsx` came later than CSV and Parquet, and some texts did not say so."""
    text = (Path(__file__).parents[3] / file).read_text()

    assert re.findall(r"\S+ \(?CSV\b(?: or |, )[^)]*\)?", text) == ["table (CSV, TSV, Excel or Parquet)"]


def test_help_says_what_each_argument_is() -> None:
    shown = CliRunner().invoke(app, ["simulate", "-h"], env={"COLUMNS": "120"}).output
    silent = [
        (path, parameter.name)
        for path in commands(get_command(app))
        for parameter in _command_at(path).params
        if parameter.param_type_name == "argument" and not parameter.help
    ]

    assert "Folder, manifest or known name, as data.source" in shown
    assert not silent


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One line.", "One line."),
        ("Two\nlines.\n\nAnd\none more.\n", "Two lines.\n\nAnd one more."),
        ("T1  first\nT2  second", "T1  first\nT2  second"),
        ("Examples:\n\n  bract plan\n\n  bract list", "Examples:\n\n  bract plan\n\n  bract list"),
        ("", ""),
    ],
)
def test_unwrapped_keeps_lists_and_examples(text: str, expected: str) -> None:
    assert unwrapped(text) == expected
