"""The command `bract plan`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from common.commands.early_checks import check_packages, policy_of
from common.commands.fitted_defaults import fit_to_sizes, fit_to_source, show_changes
from common.commands.plan_view import curve_rounds, draw_plan, show_plan
from common.commands.run_settings import check_picture, given_settings
from common.config import loading as settings
from common.config.schema import RunConfig
from common.errors import ConfigError, WeightsError
from common.privacy.plan_table import PlanTable, as_json, every_round, make_table, milestones
from common.statistics.sums import statistic_shapes
from common.system.console import bar_factory, plain_errors
from simulations.commands.advise import check_given, head_shape, print_advice

if TYPE_CHECKING:
    from common.data.sources.base_source import Entries

PLAN_HELP = """Plan privacy before a run: noise, sampling, and what each round costs.

For each size of client: the noise that meets a target epsilon (or the
epsilon of a fixed noise), epsilon after each round, the largest ratio of
signal to noise, and the effect of one more point of epsilon. Sizes come
from --sizes or from data.source; no image is decoded, nothing is trained.
All other settings are those of `bract simulate`, such as 30 rounds.
The first time takes seconds for each size; results are kept for later.

Examples:

  bract plan --sizes 300,800,5000 --epsilon 8 --rounds 30 --batch-size 64

  bract plan --sizes 300,800 --noise 2 --classes 10 --plot plan.png

  bract plan --set data.source=photos/ --set num-clients=10 --json

  bract plan --set privacy.mechanism=client-dp --set num-clients=1000

  bract plan --sizes 300,300,500,500,900 --epsilon 2 --aggregation secure

With --advise: which mechanism, aggregation and number of rounds leads to the
smallest error, by trials on synthetic features, with the command to run it.

  bract plan --advise --sizes 500,500,500,500,500 --classes 10 --epsilon 2
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
    batch_size: Annotated[int | None, typer.Option(help="training.batch-size, expected; `all` by --set.")] = None,
    aggregation: Annotated[str | None, typer.Option(help="privacy.aggregation; `secure`: noise in shares.")] = None,
    parameters: Annotated[
        int | None, typer.Option(min=1, help="How many values carry noise; else worked out where torch is not needed.")
    ] = None,
    classes: Annotated[int | None, typer.Option(min=2, help="Number of classes, where the head is linear.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of `bract simulate`; repeatable.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; options win over it.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Also draw epsilon over the rounds.")] = None,
    advice: Annotated[
        bool, typer.Option("--advise", help="Rank mechanisms, aggregations and rounds by their expected error.")
    ] = False,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON with every round, nothing else.")] = False,
) -> None:
    """Show noise, sampling and cost of a private run before it starts."""
    options = {
        "--epsilon": ("privacy.target-epsilon", epsilon),
        "--noise": ("privacy.noise-multiplier", noise),
        "--delta": ("privacy.delta", delta),
        "--rounds": ("num-rounds", rounds),
        "--epochs": ("training.local-epochs", epochs),
        "--batch-size": ("training.batch-size", batch_size),
        "--aggregation": ("privacy.aggregation", aggregation),
    }
    console = Console(stderr=as_json_)
    with plain_errors():
        given = given_settings(set_ or [], config, options)
        run, known, entries = _run_and_sizes(dict(given), sizes, console)
        # Before the weights: a backbone whose package is missing cannot say which there are.
        check_packages(run.model)
        trained, missing = (parameters, "") if parameters else _count_parameters(run, entries, classes)
        if advice:
            check_given(given, plot)
            shape = head_shape(
                _num_classes(run.data.class_names, entries, classes), trained, missing, run.needs_no_torch
            )
            print_advice(given, known, run.num_clients, shape, console, as_json=as_json_)
            return
        check_picture("--plot", plot, run.data)
        policy_of(run.privacy).check_run(run)
        moments = every_round if as_json_ else milestones if plot is None else curve_rounds
        with bar_factory(console) as progress:
            table = make_table(run, known, num_parameters=trained, rounds=moments, progress=progress)
        _check_policy(table)
        _print_table(table, console, missing, plot, in_json=as_json_)


def _print_table(table: PlanTable, console: Console, missing: str, plot: Path | None, *, in_json: bool) -> None:
    if plot is not None:
        draw_plan(plot, table)
    if in_json:
        typer.echo(json.dumps(as_json(table), indent=2))
    else:
        show_plan(table, console, missing)
    if plot is not None:
        console.print(f"Picture: {plot}", markup=False, highlight=False, soft_wrap=True)


def _check_policy(table: PlanTable) -> None:
    """Refuse a plan beyond the policy of simulated clients.

    Raises:
        PolicyError: A plan is beyond it.
    """
    policy = policy_of(table.config.privacy)
    for row in table.rows if table.config.is_local_dp else ():
        policy.check_plan(row.plan)
        policy.check_spent(row.spent, row.alone)


def _run_and_sizes(
    given: dict[str, settings.Scalar], text: str | None, console: Console
) -> tuple[RunConfig, tuple[int, ...], "Entries | None"]:
    """Return the run, its known sizes of clients and its opened source."""
    from common.data.partitioning.assignment import check_batch
    from common.data.partitioning.client_sizes import client_sizes, read_sizes
    from common.data.partitioning.privacy_units import check_unit
    from common.data.sources.registry import OpenOnce

    sizes, opener = () if text is None else read_sizes(text), OpenOnce()
    if sizes:
        given.setdefault("num-clients", len(sizes))
    changes = show_changes(fit_to_sizes(given, sizes) if sizes else fit_to_source(given, opener), console)
    run = settings.parse(settings.override(settings.defaults(), changes))
    if not sizes:
        entries = opener(run.data).entries
        check_batch(run.training, entries.num_train)
        check_unit(run.privacy.unit, has_groups=entries.units is not None)
        if not run.mechanism.clips_units:
            return run, (), entries
        units, _ = client_sizes(entries, run.data, num_clients=run.num_clients, seed=run.seed, unit=run.privacy.unit)
        return run, tuple(units.tolist()), entries
    if len(sizes) > run.num_clients:
        raise ConfigError(
            f"--sizes names {len(sizes)} clients, but num-clients={run.num_clients}: leave one of them out"
        )
    if len(sizes) == run.num_clients:
        check_batch(run.training, sum(sizes))
    return run, sizes, None


def _num_classes(names: Sequence[str], entries: "Entries | None", classes: int | None) -> int:
    return classes or len(names) or (len(entries.classes) if entries else 0)


def _count_parameters(run: RunConfig, entries: "Entries | None", classes: int | None) -> tuple[int | None, str]:
    """Return the number of noised values and the option for an unknown one."""
    # Nothing is downloaded or loaded for this: a plan must work before weights are there.
    if not run.needs_no_torch:
        return None, "--parameters N (`bract simulate --dry-run` counts them)"
    number = _num_classes(run.data.class_names, entries, classes)
    if not number:
        return None, "--classes N (or --parameters N)"
    from common.models.backbone_info import backbone_info

    try:
        features = backbone_info(run.backbone_spec).num_features
        if not run.takes_statistics:
            return features * number, ""
        # The sums are noised, and the head that follows from them has far fewer values.
        shapes = statistic_shapes(run.training.statistics, number, features)
        return sum(math.prod(shape) for shape in shapes.values()), ""
    except WeightsError:
        return None, f"--parameters N: the weights of {run.model.backbone} are not on this machine"
