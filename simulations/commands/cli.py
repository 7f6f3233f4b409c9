"""The command `bract simulate` and the attacks among the `bract audit` commands."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from common.commands.audit_ledger import audit_app
from common.commands.fitted_defaults import fit_to_source, show_changes
from common.commands.run_settings import ClassNames, settings_for_resume, settings_for_run, show_remarks
from common.config import loading as settings
from common.config.schema import RunConfig
from common.data.sources.registry import OpenOnce, OpenSource
from common.system.console import plain_errors, set_log_levels
from server.commands.track_option import Track
from simulations.commands.audit_canary import EMPIRICAL_HELP, empirical_command
from simulations.commands.audit_inversion import INVERSION_HELP, inversion_command
from simulations.commands.audit_layers import LAYERS_HELP, layers_command
from simulations.commands.audit_membership import MEMBERSHIP_HELP, membership_command
from simulations.commands.bench import BENCH_HELP, bench_command

_Source = Annotated[
    str | None,
    typer.Argument(metavar="[SOURCE]", help="Folder, manifest or known name, as data.source; digits if left out."),
]
_Device = Annotated[Literal["auto", "cpu", "cuda", "mps"] | None, typer.Option(help="Where the backbone runs.")]
_HELP = """Simulate a federation on this machine.

Without arguments: 1,797 real images of digits, a pretrained EfficientNet-Lite0, five clients, and
differential privacy at each client with epsilon 8 over the whole run.

Examples:

  bract simulate --set privacy.target-epsilon=2

  bract simulate --set privacy.mechanism=none --baselines

  bract simulate /path/to/folder --set num-clients=10

  bract simulate fashion-mnist --set model.backbone=cnn --set privacy.mechanism=none

  bract simulate --resume runs/NAME
"""


_SEED_HELP = (
    "Root seed of partition, batches, cohorts and initial model. Runs without privacy repeat to the bit; under DP they "
    "do not, because noise is never seeded."
)


def mount(app: typer.Typer) -> None:
    """Add the commands of this room to the command line."""
    app.command("simulate", help=_HELP)(simulate)
    app.command("bench", help=BENCH_HELP)(bench_command)
    audit_app.command("layers", help=LAYERS_HELP)(layers_command)
    audit_app.command("empirical", help=EMPIRICAL_HELP)(empirical_command)
    audit_app.command("membership", help=MEMBERSHIP_HELP)(membership_command)
    audit_app.command("inversion", help=INVERSION_HELP)(inversion_command)
    app.callback(help="Private federated image classification on Flower.")(_root)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"bract {version('bract')}")
        raise typer.Exit


def _root(
    _: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Accept the options of the top-level command."""


def _parsed(chosen: Mapping[str, settings.Scalar], console: Console, opener: OpenSource) -> RunConfig:
    """Return a run's settings and print what its source leaves out."""
    config = settings.parse(settings.override(settings.defaults(), chosen))
    show_remarks(config.data, console, opener)
    return config


def simulate(
    source: _Source = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change one setting; may be repeated. --dry-run lists all."),
    ] = None,
    class_: ClassNames = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; --set wins over it.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the results; a new one in runs/ if left out.")] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Continue a run that was stopped or killed, in its own folder.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help=_SEED_HELP)] = None,
    engine: Annotated[
        Literal["in-process", "ray"],
        typer.Option(help="in-process: fast, one machine. ray: Flower's own engine."),
    ] = "in-process",
    device: _Device = None,
    baselines: Annotated[
        bool, typer.Option("--baselines", help="Also train each client alone and all data pooled.")
    ] = False,
    track: Track = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show settings, privacy plan, time and disk; train nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON and nothing else.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only the closing table.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show what Flower logs.")] = False,
) -> None:
    """Simulate a federation on this machine."""
    console = Console(stderr=as_json, quiet=quiet and not verbose)
    set_log_levels(verbose=verbose)
    opener = OpenOnce()
    with plain_errors("Stopped before the first round; there are no results."):
        told = Console(stderr=as_json)
        if resume is None:
            given = settings_for_run(set_ or [], config, out, seed, device, class_, source)
            chosen = show_changes(fit_to_source(given, opener), told)
        else:
            from simulations.image_record import has_record

            changes, may_move = (config, out, seed, class_), has_record(resume)
            chosen = settings_for_resume(resume, device, set_ or [], source, *changes, may_move=may_move)
        run_config = _parsed(chosen, told, opener)
        if dry_run:
            from simulations.commands.dry_run import foresee, show

            show(foresee(run_config, opener), Console(stderr=False), as_json=as_json)
            return
        from simulations.simulate import run_job

        summary, folder = run_job(run_config, engine=engine, baselines=baselines, console=console, track=track or ())
        if as_json:
            typer.echo(json.dumps(summary, indent=2))
        else:
            from server.reporting.summary_view import print_summary

            print_summary(summary, folder, Console())
        if summary["status"] != "complete":
            raise typer.Exit(130)
