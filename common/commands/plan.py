"""`bract plan`: what a private run costs and how much noise it adds, before anybody trains."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from common.commands.plan_view import curve_rounds, draw_plan, show_plan
from common.commands.run_settings import given_settings
from common.config import loading as settings
from common.config.schema import RunConfig, split_list
from common.errors import ConfigError, WeightsError
from common.privacy.plan_table import as_json, every_round, make_table, milestones
from common.system.console import bar_factory, plain_errors

if TYPE_CHECKING:
    from common.data.sources.base_source import Entries

PLAN_HELP = """Plan privacy before a run: noise, sampling, and what each round costs.

For each size of client: the noise that meets a target epsilon (or the
epsilon of a given noise), epsilon after each round, how long the signal can
be against the noise, and what one more point of epsilon would buy. Sizes are
given, or counted in data.source; no image is decoded and nothing is trained.
All else is as `bract simulate` would set it: epsilon 8, 30 rounds, and so on.
A first time takes seconds for each size; figures are kept for the next one.

Examples:

  bract plan --sizes 300,800,5000 --epsilon 8 --rounds 30 --batch-size 64

  bract plan --sizes 300,800 --noise 2 --classes 10 --plot plan.png

  bract plan --set data.source=photos/ --set num-clients=10 --json

  bract plan --set privacy.mechanism=client-dp --set num-clients=1000
"""


def plan_command(
    sizes: Annotated[
        str | None,
        typer.Option(metavar="N,N,...", help="Training images of each client (or groups, with privacy.unit=group)."),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Target for the whole run: privacy.target-epsilon.")] = None,
    noise: Annotated[
        float | None, typer.Option(help="Instead of a target: privacy.noise-multiplier, stddev over clip bound.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help="privacy.delta, below 1 / the largest size.")] = None,
    rounds: Annotated[int | None, typer.Option(help="num-rounds, of the whole run.")] = None,
    epochs: Annotated[int | None, typer.Option(help="training.local-epochs, in each round.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="training.batch-size, the expected one.")] = None,
    parameters: Annotated[
        int | None, typer.Option(min=1, help="How many values are trained; else worked out where torch is not needed.")
    ] = None,
    classes: Annotated[
        int | None, typer.Option(min=2, help="Number of classes, to work out the parameters of a linear head.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of `bract simulate`; may be repeated."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; options win over it.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Also draw epsilon over the rounds.")] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON with every round, nothing else.")] = False,
) -> None:
    """Plan privacy before a run: noise, sampling, and what each round costs."""
    options = {
        "--epsilon": ("privacy.target-epsilon", epsilon),
        "--noise": ("privacy.noise-multiplier", noise),
        "--delta": ("privacy.delta", delta),
        "--rounds": ("num-rounds", rounds),
        "--epochs": ("training.local-epochs", epochs),
        "--batch-size": ("training.batch-size", batch_size),
    }
    console = Console(stderr=as_json_)
    with plain_errors():
        _check_picture(plot)
        run, known, entries = _run_and_sizes(given_settings(set_ or [], config, options), sizes)
        trained, why_not = (parameters, "") if parameters else _count_parameters(run, entries, classes)
        moments = every_round if as_json_ else milestones if plot is None else curve_rounds
        with bar_factory(console) as progress:
            table = make_table(run, known, num_parameters=trained, rounds=moments, progress=progress)
        if plot is not None:
            draw_plan(plot, table)
        if as_json_:
            typer.echo(json.dumps(as_json(table), indent=2))
        else:
            show_plan(table, console, why_not)
        if plot is not None:
            console.print(f"Picture: {plot}", markup=False, highlight=False, soft_wrap=True)


def _check_picture(file: Path | None) -> None:
    """Say before the work that the picture could not be written after it."""
    if file is not None and (file.suffix.lower() != ".png" or not file.parent.is_dir()):
        raise ConfigError(f"--plot {file}: give a file ending in .png in a folder that exists")


def _run_and_sizes(
    given: dict[str, settings.Scalar], text: str | None
) -> tuple[RunConfig, tuple[int, ...], "Entries | None"]:
    """The run, the sizes that are known, and the entries of its source where it was opened.

    Where the server adds the noise no client's size matters, and nothing is dealt.
    """
    from common.data.partitioning.assignment import check_batch
    from common.data.partitioning.client_sizes import client_units, read_sizes
    from common.data.sources.registry import open_source

    sizes = () if text is None else read_sizes(text)
    if sizes:
        given.setdefault("num-clients", len(sizes))
    run = settings.parse(settings.override(settings.defaults(), given))
    if not sizes:
        entries = open_source(run.data).entries
        check_batch(run, entries.num_train)
        dealt = tuple(client_units(run, entries)[0].tolist()) if run.is_local_dp else ()
        return run, dealt, entries
    if len(sizes) > run.num_clients:
        raise ConfigError(
            f"--sizes names {len(sizes)} clients, but num-clients={run.num_clients}: leave one of them out"
        )
    if len(sizes) == run.num_clients:
        check_batch(run, sum(sizes))
    return run, sizes, None


def _count_parameters(run: RunConfig, entries: "Entries | None", classes: int | None) -> tuple[int | None, str]:
    """How many values are trained, or None and what would tell: nothing is loaded to find out."""
    if not run.needs_no_torch:
        return None, "--parameters N (`bract simulate --dry-run` counts them)"
    number = classes or len(split_list(run.data.classes)) or (len(entries.classes) if entries else 0)
    if not number:
        return None, "--classes N (or --parameters N)"
    from common.models.backbone_info import backbone_info

    try:
        return backbone_info(run).num_features * number, ""
    except WeightsError:
        return None, f"--parameters N: the weights of {run.model.backbone} are not on this machine"
