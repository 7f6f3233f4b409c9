"""`bract list`: every name that a setting may hold is there, with the settings that belong to it.

Drives `common.commands.cli`.
"""

import json
from typing import get_args

import pytest
from typer.testing import CliRunner

from bract import app
from common.commands import listing
from common.config.loading import defaults
from common.config.sections import Partitioner
from common.data.sources.registry import KNOWN_SOURCES
from common.models.names import SHORT_NAMES
from common.strategies import STRATEGIES

LISTS = ("backbones", "sources", "strategies", "partitioners")


def _listed(what: str) -> list[dict[str, object]]:
    done = CliRunner().invoke(app, ["list", what, "--json"])
    assert done.exit_code == 0, done.output
    rows: list[dict[str, object]] = json.loads(done.stdout)
    return rows


@pytest.mark.parametrize("what", LISTS)
def test_list_shows_every_row_of_its_table(what: str) -> None:
    shown = CliRunner().invoke(app, ["list", what], env={"COLUMNS": "200"})

    assert shown.exit_code == 0
    for row in _listed(what):
        assert str(row["name"]) in shown.stdout


def test_list_shows_names_whole_in_a_narrow_terminal() -> None:
    shown = CliRunner().invoke(app, ["list", "strategies"], env={"COLUMNS": "80"})

    assert "strategy.server-learning-rate" in shown.stdout
    assert "FedTrimmedAvg" in shown.stdout


def test_list_strategies_has_each_strategy_with_the_settings_that_it_takes() -> None:
    rows = {row["name"]: row["settings"] for row in _listed("strategies")}

    assert tuple(rows) == tuple(STRATEGIES)
    for name, strategy in STRATEGIES.items():
        assert rows[name] == [f"strategy.{key.replace('_', '-')}" for key in strategy.parameters], name


def test_list_partitioners_has_each_partitioner_with_known_settings() -> None:
    rows = {str(row["name"]): row["settings"] for row in _listed("partitioners")}

    assert set(rows) == set(get_args(Partitioner))
    assert {key for keys in rows.values() for key in keys} <= set(defaults())  # type: ignore[attr-defined]


def test_list_sources_has_every_known_source_and_hub() -> None:
    names = {str(row["name"]) for row in _listed("sources")}

    assert {*KNOWN_SOURCES, "hf:<name>", "torchvision:<name>", "medmnist:<name>"} <= names


def test_list_backbones_has_every_short_name() -> None:
    assert {"cnn", *SHORT_NAMES} <= {str(row["name"]) for row in _listed("backbones")}


def test_lists_have_as_many_cells_as_columns() -> None:
    for make in (listing.list_backbones, listing.list_sources, listing.list_strategies, listing.list_partitioners):
        _, columns, rows = make()
        assert all(len(row) == len(columns) for row in rows)


def test_front_door_offers_every_command() -> None:
    for words in (["list"], ["data"], ["cache"], ["data", "partition"], ["data", "inspect"]):
        done = CliRunner().invoke(app, [*words, "--help"])

        assert done.exit_code == 0, done.output
