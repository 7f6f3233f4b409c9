"""A whole canary audit, from settings to scores, bounds and a picture."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.config.loading import resolved
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.system.progress import ProgressFactory
from server.reporting.privacy_statement import versions
from server.state.run_directory import RunDirectory
from simulations.attacks.canary.bounds import Bounds, bounds_of
from simulations.attacks.canary.campaign import SCORES, MakeExperiment, Scores, run_campaign
from simulations.attacks.canary.canaries import CanaryKind
from simulations.attacks.canary.declared_curve import threshold_of
from simulations.attacks.canary.plot import draw_audit
from simulations.attacks.canary.presets import PRESETS, preset_experiment
from simulations.attacks.canary.trial import AdversaryKind, own_experiment
from simulations.harness.client_harness import ClientHarness
from simulations.harness.scratch_folder import scratch

FIGURES, PICTURE = "empirical.json", "empirical.png"
_MIN_TRIALS = 20
_MIN_CONFIDENCE = 0.75


@dataclass(frozen=True)
class Campaign:
    """The trainings of one canary audit.

    Attributes:
        make: Makes the attacked client in a scratch folder; picklable.
        subject: Plain values that identify the audit. Scores of another audit are never mixed in.
        trials: Number of trainings, half of them with the canary.
        ideal: Whether scores follow the theory, so that their threshold may come from the theory.
    """

    make: MakeExperiment
    subject: Mapping[str, Any]
    trials: int
    ideal: bool = False

    @property
    def digest(self) -> str:
        """Name of the audit, 8 hex digits."""
        return hashlib.sha256(json.dumps(self.subject, sort_keys=True).encode()).hexdigest()[:8]


def of_preset(name: str, trials: int | None) -> Campaign:
    """Return the campaign of a preset.

    Args:
        name: Name of the preset.
        trials: Number of trainings; the preset's own by default.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset {name} is not a preset; there are {', '.join(PRESETS)}")
    return Campaign(partial(preset_experiment, name), {"preset": name}, trials or PRESETS[name].trials, ideal=True)


def of_config(
    config: RunConfig, *, canary: CanaryKind, adversary: AdversaryKind, images: int | None, trials: int | None
) -> Campaign:
    """Return the campaign against the first client of a configuration.

    Args:
        config: The run.
        canary: Kind of the canary.
        adversary: What the adversary sees.
        images: Number of the client's training images that stay; all by default.
        trials: Number of trainings; 1,000 by default.
    """
    subject = {"canary": canary, "adversary": adversary, "images": images}
    settings = {key: value for key, value in resolved(config).items() if key not in ("output-dir", "resume")}
    harness = partial(ClientHarness.of, config, num_images=images, num_held_out=0)
    return Campaign(partial(own_experiment, harness, canary, adversary), subject | settings, trials or 1_000)


def attack(
    campaign: Campaign, folder: Path | None, *, workers: int, confidence: float, progress: ProgressFactory
) -> tuple[Bounds, dict[str, Any], Path]:
    """Run the missing trainings of a campaign and write its figures and picture.

    Args:
        campaign: The trainings.
        folder: Folder of the results; None takes one below `runs/`, named after the settings.
        workers: Number of processes of one thread each. It does not change the distribution of results.
        confidence: Confidence of the lower bounds, in [0.75, 1).
        progress: Shows how many trainings are done.

    Returns:
        The bounds, the same as plain values, and the folder.

    Raises:
        ConfigError: There are too few trainings, or the confidence is out of range.
        BractError: A setting is wrong, or the client refused.
    """
    if campaign.trials < _MIN_TRIALS or not _MIN_CONFIDENCE <= confidence < 1:
        raise ConfigError(
            f"--trials {campaign.trials} and --confidence {confidence}: an audit needs at least {_MIN_TRIALS} "
            f"trainings, and a confidence from {_MIN_CONFIDENCE} to below 1"
        )
    with scratch() as scratch_folder:
        experiment = campaign.make(Path(scratch_folder))
        plan, adversary = experiment.harness.plan, experiment.adversary
        # A client that cannot be audited fails here, before thousands of trainings.
        experiment.score(inside=True)
    folder = folder or Path("runs") / f"empirical-{campaign.subject.get('preset', 'own')}-{campaign.digest}"
    scores = Scores(folder / SCORES, campaign.digest)
    run_campaign(
        campaign.make, scores, campaign.trials, workers=workers, advance=progress(campaign.trials, "Trainings")
    )
    inside, outside = scores.split(campaign.trials)
    threshold = threshold_of(plan, adversary) if campaign.ideal else None
    bounds = bounds_of(inside, outside, plan, adversary, threshold=threshold, confidence=confidence)
    figures = bounds.as_json() | {
        "trainings": campaign.trials,
        "confidence": confidence,
        "audit": dict(campaign.subject),
        "versions": versions(),
    }
    RunDirectory(folder).write_json(FIGURES, figures)
    draw_audit(folder / PICTURE, inside, outside, bounds)
    return bounds, figures, folder
