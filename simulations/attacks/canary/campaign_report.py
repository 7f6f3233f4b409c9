"""A whole canary audit: from settings to scores, bounds, a picture and a folder to go on from."""

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
from simulations.attacks.canary.trial import AdversaryKind, configured
from simulations.harness.scratch_folder import scratch

FIGURES, PICTURE = "empirical.json", "empirical.png"
_FEWEST = 20


@dataclass(frozen=True)
class Campaign:
    """What is to be done.

    Attributes:
        make: Makes the attacked client; picklable.
        what: Plain values that name the audit: scores of another one are never mixed in.
        trials: Trainings, half of them with the canary.
        ideal: Whether scores are as theory has them, so that they may be cut where theory says.
    """

    make: MakeExperiment
    what: Mapping[str, Any]
    trials: int
    ideal: bool = False

    @property
    def digest(self) -> str:
        """8 hex digits that name the audit."""
        return hashlib.sha256(json.dumps(self.what, sort_keys=True).encode()).hexdigest()[:8]


def of_preset(name: str, trials: int | None) -> Campaign:
    """A preset's campaign.

    Raises:
        ConfigError: There is no such preset.
    """
    if name not in PRESETS:
        raise ConfigError(f"--preset {name}: there are {', '.join(PRESETS)}")
    return Campaign(partial(preset_experiment, name), {"preset": name}, trials or PRESETS[name].trials, ideal=True)


def of_config(
    config: RunConfig, *, canary: CanaryKind, adversary: AdversaryKind, images: int | None, trials: int | None
) -> Campaign:
    """The campaign of a configuration of one's own."""
    what = {"canary": canary, "adversary": adversary, "images": images}
    settings = {key: value for key, value in resolved(config).items() if key not in ("output-dir", "resume")}
    return Campaign(partial(configured, config, canary, adversary, images), what | settings, trials or 1_000)


def attack(
    campaign: Campaign, folder: Path | None, *, workers: int, confidence: float, progress: ProgressFactory
) -> tuple[Bounds, dict[str, Any], Path]:
    """Make all trainings that are missing, judge them, and leave figures and a picture.

    Args:
        campaign: What is to be done.
        folder: Where to; None takes a name below `runs/` that follows from the settings.
        workers: Processes of one thread each; cannot change what is found, but for noise.
        confidence: Of the lower bounds, in [0.75, 1).
        progress: Shows how far it is.

    Returns:
        What was found, the same as plain values, and the folder.

    Raises:
        ConfigError: There are too few trainings, or the confidence is out of range.
        BractError: A setting is wrong, or the client refused.
    """
    if campaign.trials < _FEWEST or not 0.75 <= confidence < 1:
        raise ConfigError(
            f"an audit needs at least {_FEWEST} --trials and a --confidence from 0.75 to below 1, got "
            f"{campaign.trials} and {confidence}"
        )
    with scratch() as place:
        experiment = campaign.make(Path(place))
        plan, adversary = experiment.harness.plan, experiment.adversary
        experiment.score(inside=True)  # one training before thousands: whoever cannot be audited is told now
    folder = folder or Path("runs") / f"empirical-{campaign.what.get('preset', 'own')}-{campaign.digest}"
    scores = Scores(folder / SCORES, campaign.digest)
    run_campaign(
        campaign.make, scores, campaign.trials, workers=workers, advance=progress(campaign.trials, "Trainings")
    )
    inside, outside = scores.split(campaign.trials)
    threshold = threshold_of(plan, adversary) if campaign.ideal else None
    bounds = bounds_of(inside, outside, plan, adversary, threshold=threshold, confidence=confidence)
    found = bounds.as_json() | {
        "trainings": campaign.trials,
        "confidence": confidence,
        "audit": dict(campaign.what),
        "versions": versions(),
    }
    RunDirectory(folder).write_json(FIGURES, found)
    draw_audit(folder / PICTURE, inside, outside, bounds)
    return bounds, found, folder
