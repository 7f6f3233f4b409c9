"""`bract audit empirical`: attack the guarantee with canaries, and compare with what the ledger says."""

import json
import os
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from common import config as settings
from common.errors import ConfigError
from common.progress import ProgressFactory
from common.sections import RunConfig
from common.terminal import bar_factory, plain_errors

EMPIRICAL_HELP = """Attack the guarantee: a lower bound on epsilon, next to the ledger's upper bound.

One client of your own configuration trains many times, through real
messages: half of the times with one more unit, the canary. An adversary who
knows everything but the noise scores each training. How well the scores tell
both kinds apart proves a lower bound on epsilon, at 95 % by default:
Clopper-Pearson for any mechanism, GDP mu where every unit is in every step,
and the family of the plan's own mechanism.

consistent      the bound is below the ledger's; half the noise would have shown
violated        it is above, at 99.99 %: less protection than is stated; exit code 1
too weak        this audit could not have seen a violation

A lower bound is never the guarantee: a better attack may find more.
Presets audit one client with nothing but a canary, where a fault shows
soonest: gate (seconds), deep and deep-sampled (minutes).

--one-run plants many canaries in one ordinary federated run instead, each in
or out by a coin, and guesses the coins (Steinke et al. 2023; Mahloujifar et
al. 2024). --run DIR takes the settings of a run that has ended and attaches
what is found to its statement.

Scores are kept as they come: after Ctrl-C the same command goes on.

Examples:

  bract audit empirical --preset gate

  bract audit empirical --set num-rounds=5 --adversary transcript --trials 2000

  bract audit empirical --one-run --canaries 1000 --guesses 200

  bract audit empirical --run runs/NAME
"""
Adversary = Literal["final-model", "transcript", "single-steps", "black-box"]
Canary = Literal["dirac", "mislabelled", "blank"]


def empirical_command(
    preset: Annotated[
        str | None, typer.Option(metavar="gate|deep|deep-sampled", help="A configuration made for it.")
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", metavar="DIR", help="Audit this run's settings, and attach what is found.")
    ] = None,
    adversary: Annotated[Adversary, typer.Option(help="What the adversary sees.")] = "final-model",
    canary: Annotated[
        Canary | None,
        typer.Option(help="What is in or out; dirac (one long feature) on features, blank on pixels if left out."),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trainings, half of them with the canary; 1,000 if left out.")
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="Training images of the client that stay, at most.")] = 1_000_000,
    one_run: Annotated[bool, typer.Option("--one-run", help="Many canaries in one ordinary run.")] = False,
    canaries: Annotated[int, typer.Option(min=2, help="With --one-run: how many.")] = 1_000,
    guesses: Annotated[int, typer.Option(min=2, help="With --one-run: how many are guessed, fixed beforehand.")] = 200,
    confidence: Annotated[float, typer.Option(help="Of the lower bounds.")] = 0.95,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Folder for scores and results; named after the settings if left out."),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes of one thread each; as many as cores if left out.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root seed of partition and start; never of noise.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting of `bract simulate`; may be repeated."),
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file with settings; --set wins over it.")] = None,
    as_json_: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
) -> None:
    """Attack the guarantee: a lower bound on epsilon, next to the ledger's upper bound."""
    console = Console(stderr=as_json_)
    with plain_errors("Stopped; the same command goes on where it was."):
        audited = _config(run, set_ or [], config, seed, preset)
        with bar_factory(console) as progress:
            if one_run:
                verdict, found = _one_run(audited, preset, out, canaries, guesses, confidence, console, progress)
            else:
                campaign = _campaign(audited, preset, canary, adversary, images, trials)
                verdict, found = _many(campaign, out, workers or os.cpu_count() or 1, confidence, console, progress)
        if run is not None:
            from server.audit.attached import AUDITS, attach_audit

            attach_audit(run, "one-run" if one_run else "empirical", found)
            console.print(
                f"Attached: {run / AUDITS}, and named in the run's statement", highlight=False, soft_wrap=True
            )
        if as_json_:
            typer.echo(json.dumps(found, indent=2))
    if verdict == "violated":
        raise typer.Exit(1)


def _config(run: Path | None, pairs: list[str], file: Path | None, seed: int | None, preset: str | None) -> RunConfig:
    if preset is not None and (pairs or run is not None or file is not None or seed is not None):
        raise ConfigError("--preset has settings of its own: leave --set, --config, --seed and --run out")
    return settings.parse(settings.audited_settings(run, pairs, file, seed))


def _campaign(
    config: RunConfig, preset: str | None, canary: Canary | None, adversary: Adversary, images: int, trials: int | None
) -> Any:
    from simulations.audit.empirical.attack import of_config, of_preset

    if preset is not None:
        return of_preset(preset, trials)
    chosen = canary or ("dirac" if config.closed_form else "blank")
    return of_config(config, canary=chosen, adversary=adversary, images=images, trials=trials)


def _many(
    campaign: Any, out: Path | None, workers: int, confidence: float, console: Console, progress: ProgressFactory
) -> tuple[str, dict[str, Any]]:
    from simulations.audit.empirical.attack import PICTURE, attack
    from simulations.audit.empirical.view import show_bounds

    bounds, found, folder = attack(campaign, out, workers=workers, confidence=confidence, progress=progress)
    if not console.stderr:
        show_bounds(bounds, found, console)
    console.print(f"Picture: {folder / PICTURE}", markup=False, highlight=False, soft_wrap=True)
    return str(bounds.judgement.verdict), found


def _one_run(
    config: RunConfig,
    preset: str | None,
    out: Path | None,
    canaries: int,
    guesses: int,
    confidence: float,
    console: Console,
    progress: ProgressFactory,
) -> tuple[str, dict[str, Any]]:
    from server.run_directory import fresh_path
    from simulations.audit.empirical.one_run import audit_one_run
    from simulations.audit.empirical.view import show_one_run

    if preset is not None:
        raise ConfigError("--one-run plants canaries in a configuration of your own: leave --preset out")
    folder = out or fresh_path(config)
    found = audit_one_run(config, folder, canaries=canaries, guesses=guesses, confidence=confidence, progress=progress)
    if not console.stderr:
        show_one_run(found, console)
    console.print(f"Run: {folder}", markup=False, highlight=False, soft_wrap=True)
    return str(found.judgement.verdict), found.as_json()
