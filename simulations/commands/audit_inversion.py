"""The command `bract audit inversion` that rebuilds an image from one update."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from common.commands.run_settings import check_picture, given_settings
from common.config import loading as settings
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.privacy.mechanisms.registry import DEFAULT_MECHANISM
from common.system.console import bar_factory, format_epsilon, plain_errors
from simulations.commands import audit_options as options

if TYPE_CHECKING:
    from simulations.attacks.inversion.findings import Evaluation
    from simulations.attacks.inversion.reconstruct import Attack

INVERSION_HELP = """Rebuild a training image from one client's update, with and without privacy.

A client holds one image and takes one step of round 1, by the code that real
clients run. The attacker is the server, which knows the weights that it sent,
those that came back, and the run's settings. It computes the class from the
signs of the last bias's gradient and the inner maps from the dense layer's.
Then it searches for the image whose gradient has the same direction (Geiping
et al. 2020). It does so twice: from the plain update, and from one under
dp-sgd with the run's own plan (epsilon 8 over 30 rounds by default).

The picture shows the image, both results, and an average image, the best
guess without any update. A PSNR above that of the average means that the
update gave something away. "No. 1 of 1,797" means that of all images of the
source the true one is most like the result; from noise it is any number.
It takes about half a minute and replaces a picture that exists.

It shows that without privacy an update can give its image away. Here the
network is small (model.backbone=cnn), with a batch of one image and one step.
Larger batches, more steps and larger networks are harder to attack, but not
safe. It does not show that no other attack could do better against the noise.
Epsilon bounds every attack; a picture bounds none.

The noise is new each time and never repeats, whatever --seed is.

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
    image: Annotated[int, typer.Option(metavar="N", help="Number of the image in the source, from 0.")] = 0,
    out: Annotated[Path, typer.Option(metavar="FILE.png", help="File of the picture.")] = Path("inversion.png"),
    restarts: Annotated[int, typer.Option(min=1, max=100, help="Random images that the search starts from.")] = 4,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Steps of the search from each of them.")] = 400,
    set_: options.Sets = None,
    config: options.ConfigFile = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of initial weights and of the search. DP noise is never seeded.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON and nothing else; the picture is drawn too.")
    ] = False,
) -> None:
    """Rebuild a training image from one client's update with and without privacy."""
    console = Console(stderr=as_json)
    with plain_errors():
        run = _run(set_ or [], config, seed)
        check_picture("--out", out, run.data)
        from common.data.preprocessing import prepare
        from common.system.threads import pin_to_one_thread
        from simulations.attacks.inversion.findings import invert_both
        from simulations.attacks.inversion.reconstruct import Attack
        from simulations.attacks.inversion.victim import victim_of

        attack = Attack(restarts=restarts, steps=steps, seed=run.seed)
        with bar_factory(console) as progress:
            victim = victim_of(run, prepare(run, progress), image)
            # As in real clients, and only after the backbone pass, which uses all cores.
            pin_to_one_thread()
            evaluation = invert_both(victim, attack, progress)
        _draw(out, evaluation)
        if as_json:
            typer.echo(json.dumps(_facts(evaluation, attack, out), indent=2))
            return
        for line in (
            evaluation.verdict,
            *evaluation.details,
            *(f"Bear in mind: {limit}." for limit in _LIMITS),
            f"Picture: {out}",
        ):
            console.print(line, markup=False, highlight=False, soft_wrap=True)


def _run(pairs: list[str], file: Path | None, seed: int | None) -> RunConfig:
    """Return the victim's run, refusing settings that the attack cannot follow."""
    chosen = given_settings(pairs, file, {"--seed": ("seed", seed)})
    run = settings.parse(settings.override(settings.defaults(), _OWN | chosen))
    training = run.training
    for key, value, allowed, why in (
        ("model.backbone", run.model.backbone, "cnn", "the attack is made for that network"),
        (
            "privacy.mechanism",
            run.privacy.mechanism,
            DEFAULT_MECHANISM,
            "the demo shows it beside none; under client-dp a server sees "
            "the exact update, which is the picture without privacy",
        ),
        ("privacy.aggregation", run.privacy.aggregation, "plain", "in a sum the server sees no single update"),
        ("training.optimizer", training.optimizer, "sgd", "the attack undoes one step of it"),
        ("training.local-epochs", training.local_epochs, 1, "the attack undoes one step"),
        ("training.augmentation", training.augmentation, "", "the attack would find the augmented image"),
    ):
        if value != allowed:
            raise ConfigError(f"{key}={value!r} does not go with the inversion demo, only {allowed!r}: {why}")
    return run


def _draw(file: Path, evaluation: "Evaluation") -> None:
    from simulations.attacks.inversion.plot import Panel, draw_panels

    victim, classes = evaluation.victim, evaluation.victim.prepared.scan.classes
    panels = [Panel(victim.pixels, "what the client holds", f"class {classes[victim.label]}")]
    for guess, privacy in (
        (evaluation.plain, "without privacy"),
        (evaluation.noised, f"with epsilon {format_epsilon(evaluation.epsilon)}"),
    ):
        likeness = evaluation.likeness(guess)
        below = f"read as class {classes[guess.label]}\nno. {likeness.rank:,} of {evaluation.num_images:,}"
        panels.append(Panel(guess.pixels, f"from its update {privacy}\nPSNR {likeness.psnr:.1f} dB", below))
    average = f"average image\nPSNR {evaluation.blind.psnr:.1f} dB"
    panels.append(Panel(evaluation.average, average, "seen without any update"))
    draw_panels(file, panels, title="What one update gives away: one image, one step, a small network")


def _facts(evaluation: "Evaluation", attack: "Attack", out: Path) -> dict[str, Any]:
    from server.reporting.privacy_statement import versions
    from simulations.attacks.inversion.findings import as_json

    return as_json(evaluation) | {
        "limits": _LIMITS,
        "picture": str(out),
        "attack": asdict(attack),
        "config": settings.resolved(evaluation.victim.config),
        "versions": versions(),
    }
