"""`bract audit inversion`: what one client's update gives away of an image, with and without privacy."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from common.commands.run_settings import given_settings
from common.config import loading as settings
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.privacy.mechanisms import DEFAULT_MECHANISM
from common.system.console import bar_factory, plain_errors
from common.system.progress import ProgressFactory
from simulations.commands import audit_options as options

if TYPE_CHECKING:
    from simulations.attacks.inversion.findings import Evaluation
    from simulations.attacks.inversion.reconstruct import Attack
    from simulations.attacks.inversion.victim import Victim

INVERSION_HELP = """Rebuild a training image from one client's update, with and without privacy.

A client holds one image and takes one step of round 1, by the very code
that real clients run. The attacker is the server: it has the weights it
sent, those that came back, and the run's settings. It reads the class off
the signs of the last bias's gradient, the inner maps off the dense layer's,
and searches for the image whose gradient points the same way (Geiping et al.
2020). Twice: from the plain update, and from one under dp-sgd with the run's
own plan (epsilon 8 over 30 rounds unless set otherwise).

The picture shows the image, both results, and an average image: the best
guess of one who saw nothing. A PSNR above that one's means that the update
gave something away. "No. 1 of 1,797" means that of all images of the source
the true one is most like what was rebuilt; from noise it is any number.
Takes about half a minute; a picture that exists is replaced.

What it shows: without privacy an update can give its image away. Here the
network is small (model.backbone=cnn), the batch one image, the step one;
larger batches, more steps and larger networks are harder, not safe. What it
does not show: that no other attack could do better against the noise. That
is what epsilon bounds; a picture bounds nothing.

The noise is drawn afresh each time and never repeats, whatever --seed says.

Examples:

  bract audit inversion

  bract audit inversion --image 42 --out digit.png

  bract audit inversion --set privacy.target-epsilon=1 --set num-rounds=1

  bract audit inversion --set data.source=photos/ --set data.image-size=32 --json
"""
# The victim takes one step in one round, and a digit of 8 x 8 pixels is easier to look at in 32 x 32.
_OWN: dict[str, settings.Scalar] = {"model.backbone": "cnn", "training.local-epochs": 1, "data.image-size": 32}
_LIMITS = (
    "one image, one step, a small network from random weights; larger batches are harder to invert, not safe",
    "one attack; epsilon bounds every attack, a picture bounds none",
)


def inversion_command(
    image: Annotated[int, typer.Option(metavar="N", help="Which image of the source, from 0.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="Where the picture goes.")] = Path("inversion.png"),
    restarts: Annotated[int, typer.Option(min=1, max=100, help="Random images that the search starts from.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Steps of the search from each of them.")] = 400,
    set_: options.Sets = None,
    config: options.ConfigFile = None,
    seed: Annotated[
        int | None, typer.Option(help="Of initial weights and of the search. DP noise is never seeded.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON, nothing else; the picture is drawn too.")
    ] = False,
) -> None:
    """Rebuild a training image from one client's update, with and without privacy."""
    console = Console(stderr=as_json)
    with plain_errors():
        _check_picture(out)
        run = _run(set_ or [], config, seed)
        from simulations.attacks.inversion.findings import invert_both
        from simulations.attacks.inversion.reconstruct import Attack

        attack = Attack(restarts=restarts, steps=steps, seed=run.seed)
        with bar_factory(console) as progress:
            findings = invert_both(_victim(run, image, progress), attack, progress)
        _draw(out, findings)
        if as_json:
            typer.echo(json.dumps(_facts(findings, attack, out), indent=2))
            return
        for line in (
            findings.verdict,
            *findings.details,
            *(f"Bear in mind: {limit}." for limit in _LIMITS),
            f"Picture: {out}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _check_picture(file: Path) -> None:
    """Say before the work that the picture could not be written after it."""
    if file.suffix.lower() != ".png" or not file.parent.is_dir() or file.is_dir():
        raise ConfigError(f"--out {file}: give a file ending in .png in a folder that exists")


def _run(pairs: list[str], file: Path | None, seed: int | None) -> RunConfig:
    """The run that the victim takes part in; what the demo cannot honour is refused."""
    given = given_settings(pairs, file, {"--seed": ("seed", seed)})
    run = settings.parse(settings.override(settings.defaults(), _OWN | given))
    _refuse_what_it_cannot_show(run)
    return run


def _refuse_what_it_cannot_show(run: RunConfig) -> None:
    privacy, training = run.privacy, run.training
    for key, value, allowed, why in (
        ("model.backbone", run.model.backbone, "cnn", "the attack is made for that network"),
        (
            "privacy.mechanism",
            privacy.mechanism,
            DEFAULT_MECHANISM,
            "the demo shows it beside none; under client-dp a server sees "
            "the exact update, which is the picture without privacy",
        ),
        ("training.optimizer", training.optimizer, "sgd", "the attack undoes one step of it"),
        ("training.local-epochs", training.local_epochs, 1, "the attack undoes one step"),
        ("training.augmentation", training.augmentation, "", "the attack would find the augmented image"),
    ):
        if value != allowed:
            raise ConfigError(f"{key}={value!r} does not go with the inversion demo, only {allowed!r}: {why}")


def _victim(run: RunConfig, image: int, progress: ProgressFactory) -> "Victim":
    from common.data.preprocessing import prepare
    from common.system.threads import pin_to_one_thread
    from simulations.attacks.inversion.victim import victim_of

    victim = victim_of(run, prepare(run, progress), image)
    pin_to_one_thread()
    return victim


def _draw(file: Path, findings: "Evaluation") -> None:
    from simulations.attacks.inversion.findings import rounded_up
    from simulations.attacks.inversion.plot import Panel, draw_panels

    victim, classes = findings.victim, findings.victim.prepared.classes
    panels = [Panel(victim.pixels, "what the client holds", f"class {classes[victim.label]}")]
    for guess, said in (
        (findings.plain, "without privacy"),
        (findings.noised, f"with epsilon {rounded_up(findings.epsilon)}"),
    ):
        found = findings.likeness(guess)
        below = f"read as class {classes[guess.label]}\nno. {found.rank:,} of {findings.num_images:,}"
        panels.append(Panel(guess.pixels, f"from its update {said}\nPSNR {found.psnr:.1f} dB", below))
    panels.append(
        Panel(findings.average, f"average image\nPSNR {findings.blind.psnr:.1f} dB", "seen without any update")
    )
    draw_panels(file, panels, title="What one update gives away: one image, one step, a small network")


def _facts(findings: "Evaluation", attack: "Attack", out: Path) -> dict[str, Any]:
    from server.reporting.privacy_statement import versions
    from simulations.attacks.inversion.findings import as_json

    return as_json(findings) | {
        "limits": _LIMITS,
        "picture": str(out),
        "attack": asdict(attack),
        "config": settings.resolved(findings.victim.config),
        "versions": versions(),
    }
