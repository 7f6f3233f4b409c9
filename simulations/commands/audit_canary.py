"""The command `bract audit empirical` that attacks the guarantee with canaries."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from common.config import loading as settings
from common.config.schema import RunConfig
from common.data.results_place import refuse_results_in_data
from common.errors import ConfigError
from common.system.console import bar_factory, plain_errors
from common.system.paths import check_output
from common.system.progress import ProgressFactory
from common.system.threads import num_cores
from simulations.commands import audit_options as options

EMPIRICAL_HELP = """Attack the guarantee: a lower bound on epsilon, next to the ledger's upper bound.

One client of your own configuration trains many times, through real
messages: half of the times with one more unit, the canary. An adversary who
knows everything but the noise scores each training. How well the scores tell
both kinds apart proves a lower bound on epsilon, at 95 % by default:
Clopper-Pearson for any mechanism, GDP mu where every unit is in every step,
and the family of the plan's own mechanism.

consistent      the bound is below the ledger's; half the noise would be detected
violated        it is above, at 99.99 %: less protection than is stated; exit code 1
too weak        this audit could not have detected a violation

A lower bound is never the guarantee: a better attack may find more.
Presets audit one client with nothing but a canary, where a fault shows
soonest: gate (seconds), deep and deep-sampled (minutes).

--one-run plants many canaries in one normal federated run instead, each in
or out by a coin, and guesses the coins (Steinke et al. 2023; Mahloujifar et
al. 2024). --run DIR takes the settings of a run that has ended and attaches
the results to its statement.

With your own settings it takes minutes, because each training has all
rounds. Scores are saved batch by batch: after Ctrl-C, repeat the same command
and it continues.

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
        str | None, typer.Option(metavar="gate|deep|deep-sampled", help="A configuration in which faults show soonest.")
    ] = None,
    run: options.Run = None,
    adversary: Annotated[
        Adversary | None, typer.Option(help="What the adversary sees; the final model if left out.")
    ] = None,
    canary: Annotated[
        Canary | None,
        typer.Option(
            help="The unit that is in or out; if left out, dirac (one long feature) on features, blank on pixels."
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(min=1, help="Trainings, half of them with the canary; 1,000 if left out.")
    ] = None,
    images: Annotated[
        int | None, typer.Option(min=0, help="Training images that the client keeps; all if left out.")
    ] = None,
    one_run: Annotated[bool, typer.Option("--one-run", help="Many canaries in one normal run.")] = False,
    canaries: Annotated[int | None, typer.Option(min=2, help="With --one-run: canaries; 1,000 if left out.")] = None,
    guesses: Annotated[int | None, typer.Option(min=2, help="With --one-run: guesses; 200 if left out.")] = None,
    confidence: Annotated[float, typer.Option(help="Confidence of the lower bounds.")] = 0.95,
    out: options.OutFolder = None,
    workers: options.Workers = None,
    seed: options.Seed = None,
    set_: options.Sets = None,
    config: options.ConfigFile = None,
    as_json_: options.AsJson = False,
) -> None:
    """Print a lower bound on epsilon next to the ledger's upper bound."""
    console = Console(stderr=as_json_)
    with plain_errors("Stopped." if one_run else "Stopped; repeat the same command to continue."):
        # Before images are prepared and models are trained for it, which takes hours.
        check_output(out or Path("runs"))
        many = {"--adversary": adversary, "--canary": canary, "--images": images, "--trials": trials}
        own = {"--set": set_, "--config": config, "--seed": seed, "--run": run}
        single = {"--canaries": canaries, "--guesses": guesses}
        _refuse_unused("--one-run", many | {"--preset": preset, "--workers": workers}, one_run)
        _refuse_unused("an audit of many trainings", single, not one_run)
        _refuse_unused("--preset", own | many | {"--trials": None}, preset is not None)
        audited = settings.parse(options.audited_settings(run, set_, config, seed))
        refuse_results_in_data(out or Path("runs"), audited.data, "--out")
        with bar_factory(console) as progress:
            if one_run:
                counts = (canaries or 1_000, guesses or 200)
                verdict, results = _one_run(audited, out, counts, confidence, console, progress)
            else:
                campaign = _campaign(audited, preset, canary, adversary or "final-model", images, trials)
                verdict, results = _many(campaign, out, workers or num_cores(), confidence, console, progress)
        if run is not None:
            from server.audit.attached_attacks import AUDITS, attach_audit

            attach_audit(run, "one-run" if one_run else "empirical", results)
            console.print(f"Attached to the run's statement: {run / AUDITS}", highlight=False, soft_wrap=True)
        if as_json_:
            typer.echo(json.dumps(results, indent=2))
    if verdict == "violated":
        raise typer.Exit(1)


def _refuse_unused(mode: str, values: Mapping[str, object], chosen: bool) -> None:
    """Refuse options that would have no effect."""
    unused = [name for name, value in values.items() if value not in (None, [])]
    if chosen and unused:
        raise ConfigError(f"{mode} has no use for {', '.join(unused)}: leave them out")


def _campaign(
    config: RunConfig,
    preset: str | None,
    canary: Canary | None,
    adversary: Adversary,
    images: int | None,
    trials: int | None,
) -> Any:
    from simulations.attacks.canary.campaign_report import of_config, of_preset

    if preset is not None:
        return of_preset(preset, trials)
    chosen = canary or ("dirac" if config.needs_no_torch else "blank")
    return of_config(config, canary=chosen, adversary=adversary, images=images, trials=trials)


def _many(
    campaign: Any, out: Path | None, workers: int, confidence: float, console: Console, progress: ProgressFactory
) -> tuple[str, dict[str, Any]]:
    from simulations.attacks.canary.campaign_report import PICTURE, attack
    from simulations.attacks.canary.view import show_bounds

    bounds, figures, folder = attack(campaign, out, workers=workers, confidence=confidence, progress=progress)
    if not console.stderr:
        show_bounds(bounds, campaign.trials, console)
    console.print(f"Picture: {folder / PICTURE}", markup=False, highlight=False, soft_wrap=True)
    return str(bounds.judgement.verdict), figures


def _one_run(
    config: RunConfig,
    out: Path | None,
    sizes: tuple[int, int],
    confidence: float,
    console: Console,
    progress: ProgressFactory,
) -> tuple[str, dict[str, Any]]:
    from server.state.run_directory import fresh_path
    from simulations.attacks.canary.one_run import audit_one_run
    from simulations.attacks.canary.view import show_one_run

    folder, (canaries, guesses) = out or fresh_path(config.data, config.model, config.privacy), sizes
    result = audit_one_run(config, folder, canaries=canaries, guesses=guesses, confidence=confidence, progress=progress)
    if not console.stderr:
        show_one_run(result, console)
    console.print(f"Run: {folder}", markup=False, highlight=False, soft_wrap=True)
    return str(result.judgement.verdict), result.as_json()
