"""`bract audit membership`: what a run gives away of who was in it, with and without privacy."""

import json
import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.commands.run_settings import given_settings, set_value
from common.config import loading as settings
from common.errors import ConfigError
from common.system.console import bar_factory, plain_errors
from simulations.commands import audit_options as options

MEMBERSHIP_HELP = """Attack the final model: whose images was it trained on?

Without privacy, and under epsilon 8, 2, 1, on one picture. Many federations
are trained with your own settings, each on a random half of all training
images. An image's score under one of them is compared with its scores under
those that had it and those that had not (LiRA, Carlini et al. 2022). Shown is
how many training images are found while at most 0.1 % or 1 % of the others
are accused, and what (epsilon, delta) leaves to any attack: a true-positive
rate of at most e^epsilon x the false-positive rate + delta.

The folder keeps each model's scores as they come: after Ctrl-C or a crash the
same command goes on, and it may ask for more --models or other epsilons.
Under DP each model takes seconds to minutes, as all its noise is drawn anew.
Epsilons are for the whole run; of dp-sgd, unless privacy.mechanism=client-dp.

Exit code: 0 done, 1 more was found than epsilon allows, 2 a setting is wrong.

Examples:

  bract audit membership

  bract audit membership --compare none,4 --models 64 --set data.source=/path/to/folder

  bract audit membership --compare none --set model.backbone=cnn --set num-rounds=20
"""
_OUT_OF_COMPARE = ("privacy.target-epsilon", "privacy.noise-multiplier")


def membership_command(
    compare: Annotated[
        str, typer.Option(metavar="E,E,...", help="Runs on one picture: none, and target epsilons.")
    ] = "none,8,2,1",
    models: Annotated[int, typer.Option(min=8, help="Federations for each; more make the attack stronger.")] = 32,
    out: options.OutFolder = None,
    workers: options.Workers = None,
    seed: options.Seed = None,
    set_: options.Sets = None,
    config: options.ConfigFile = None,
    as_json_: options.AsJson = False,
) -> None:
    """Attack the final model: whose images was it trained on?"""
    console = Console(stderr=as_json_)
    with plain_errors("Stopped; the same command goes on where it was."):
        from simulations.attacks.membership.curves import curves_of
        from simulations.attacks.membership.run_attack import FIGURES, PICTURE, attack
        from simulations.attacks.membership.view import show_membership

        flat = settings.override(settings.defaults(), _given(set_ or [], config, seed))
        curves = curves_of(flat, compare)
        with bar_factory(console) as progress:
            found = attack(curves, out, models=models, workers=workers or os.cpu_count() or 1, progress=progress)
        if as_json_:
            typer.echo(json.dumps(found.as_json(), indent=2))
        else:
            show_membership(found.results, console)
        said = f"Picture: {found.folder / PICTURE}, figures: {found.folder / FIGURES}"
        console.print(said, markup=False, highlight=False, soft_wrap=True)
    if not all(one.within for one in found.results):
        raise typer.Exit(1)


def _given(pairs: list[str], file: Path | None, seed: int | None) -> dict[str, settings.Scalar]:
    """All settings the user gave, the command line over the file; epsilons come from --compare alone."""
    said = dict(set_value(pair) for pair in pairs)
    for key in _OUT_OF_COMPARE:
        if key in said:
            raise ConfigError(f"--set {key}: here epsilons are named by --compare, such as --compare none,{said[key]}")
    given = given_settings(pairs, file, {"--seed": ("seed", seed)})
    return {key: value for key, value in given.items() if key not in _OUT_OF_COMPARE}
