"""Advice on settings by `bract plan --advise`."""

import json
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path

import typer
from rich.console import Console

from common.config.loading import Scalar
from common.errors import ConfigError
from common.system.console import bar_factory
from simulations.advice.federation import group_sizes
from simulations.advice.ranking import advice_as_json, advise
from simulations.commands.advice_view import command_of, reason_of, show_advice

# What advice chooses, and what changes steps or noise so that its trials would be of another run.
_NOT_GIVEN = ("privacy.mechanism", "privacy.aggregation", "privacy.noise-multiplier", "privacy.unit")
_NOT_GIVEN_PARTS = ("training.", "strategy.")


def check_given(given: Mapping[str, Scalar], plot: Path | None) -> None:
    """Refuse settings that advice chooses itself or does not try.

    Raises:
        ConfigError: One of them is given.
    """
    wrong = [key for key in given if key in _NOT_GIVEN or key.startswith(_NOT_GIVEN_PARTS)]
    if wrong:
        raise ConfigError(
            "--advise compares mechanisms, aggregations and rounds under a target epsilon with the default steps: "
            f"leave {', '.join(wrong)} out"
        )
    if plot is not None:
        raise ConfigError("--advise draws no picture: leave --plot out")


def head_shape(num_classes: int, trained: int | None, missing: str, linear: bool) -> tuple[int, int]:
    """Return the number of classes and of features of a linear head.

    `trained` is the number of its values, and `missing` the option for an unknown one.

    Raises:
        ConfigError: The run trains something else, or one of the numbers is missing.
    """
    if not linear:
        raise ConfigError("--advise is for a linear head on stored features: leave model.tuning and model.head empty")
    if not num_classes or trained is None:
        raise ConfigError(f"--advise needs the size of the head: pass {missing or '--classes N'}")
    return num_classes, max(1, trained // num_classes)


def print_advice(
    given: Mapping[str, Scalar],
    sizes: Sequence[int],
    num_clients: int,
    shape: tuple[int, int],
    console: Console,
    *,
    as_json: bool,
) -> None:
    """Rank settings for clients of some sizes and print the ranking.

    `sizes` are repeated where there are fewer than clients. `shape` is that of the head, (classes, features).

    Raises:
        ConfigError: A setting is wrong, or nothing is possible.
    """
    groups = group_sizes(islice(cycle(sizes), num_clients))
    settings = {"num-clients": num_clients, **given}
    with bar_factory(console) as progress:
        advice = advise(settings, groups, num_classes=shape[0], num_features=shape[1], progress=progress)
    command = command_of(settings, advice)
    if as_json:
        typer.echo(json.dumps(advice_as_json(advice, command, reason_of), indent=2))
    else:
        show_advice(advice, command, console)
