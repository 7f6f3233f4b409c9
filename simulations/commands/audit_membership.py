"""The command `bract audit membership` that attacks the final model."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.commands.run_settings import given_settings, set_value
from common.config import loading as settings
from common.errors import ConfigError
from common.system.console import bar_factory, plain_errors
from common.system.paths import check_output
from common.system.threads import num_cores
from simulations.commands import audit_options as options

MEMBERSHIP_HELP = """Attack the final model: whose images was it trained on?

Without privacy, and under epsilon 8, 2, 1, on one picture. Many federations
are trained with your own settings, each on a random half of all training
images. An image's score under one model is compared with its scores under
models trained with it and without it (LiRA, Carlini et al. 2022). The result
is the share of training images that are found while at most 0.1 % or 1 % of
the others are accused. Beside it is the limit of any attack under (epsilon,
delta): a true-positive rate of at most e^epsilon x the false-positive rate +
delta.

The folder keeps the scores of each model: after Ctrl-C or a crash, repeat the
same command to continue, also with more --models or other epsilons. Under DP
each model takes seconds to minutes, because all its noise is drawn anew.
Epsilons are of the whole run, by dp-sgd unless privacy.mechanism is another one.

Exit code: 0 done, 1 more was found than epsilon allows, 2 a setting is wrong.

Examples:

  bract audit membership

  bract audit membership --compare none,4 --models 64 --set data.source=/path/to/folder

  bract audit membership --compare none --set model.backbone=cnn --set num-rounds=20
"""
_SET_BY_COMPARE = ("privacy.target-epsilon", "privacy.noise-multiplier")


def membership_command(
    compare: Annotated[
        str, typer.Option(metavar="E,E,...", help="Runs to compare: none, and target epsilons.")
    ] = "none,8,2,1",
    models: Annotated[int, typer.Option(min=8, help="Models of each; more models make the attack stronger.")] = 32,
    out: options.OutFolder = None,
    workers: options.Workers = None,
    seed: options.Seed = None,
    set_: options.Sets = None,
    config: options.ConfigFile = None,
    as_json_: options.AsJson = False,
) -> None:
    """Search the final model for the images that it was trained on."""
    console = Console(stderr=as_json_)
    with plain_errors("Stopped; repeat the same command to continue."):
        # Before images are prepared and models are trained for it, which takes hours.
        check_output(out or Path("runs"))
        from simulations.attacks.membership.curves import curves_of
        from simulations.attacks.membership.run_attack import FIGURES, PICTURE, attack
        from simulations.attacks.membership.view import show_membership

        flat = settings.override(settings.defaults(), _chosen(set_ or [], config, seed))
        curves = curves_of(flat, compare)
        with bar_factory(console) as progress:
            result = attack(curves, out, models=models, workers=workers or num_cores(), progress=progress)
        if as_json_:
            typer.echo(json.dumps(result.as_json(), indent=2))
        else:
            show_membership(result.results, console)
        files = f"Picture: {result.folder / PICTURE}, figures: {result.folder / FIGURES}"
        console.print(files, markup=False, highlight=False, soft_wrap=True)
    if not all(curve.within for curve in result.results):
        raise typer.Exit(1)


def _chosen(pairs: list[str], file: Path | None, seed: int | None) -> dict[str, settings.Scalar]:
    """Return the user's settings without epsilons.

    Only `--compare` sets these.
    """
    line = dict(set_value(pair) for pair in pairs)
    for key in _SET_BY_COMPARE:
        if key in line:
            raise ConfigError(f"--set {key}: --compare names the epsilons here, such as --compare none,{line[key]}")
    chosen = given_settings(pairs, file, {"--seed": ("seed", seed)})
    options.refuse_sums(settings.override(settings.defaults(), chosen))
    return {key: value for key, value in chosen.items() if key not in _SET_BY_COMPARE}
