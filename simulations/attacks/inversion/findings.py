"""Report of the inversion demo.

It holds how similar each reconstruction is, and what may be said about it.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from common.arrays import Arrays
from common.errors import ConfigError
from common.models.classifier import CnnNetwork, build_network
from common.privacy.accounting import spent_by
from common.system.console import format_epsilon
from common.system.progress import ProgressFactory
from simulations.attacks.inversion.reconstruct import Attack, Rebuilt, rebuild
from simulations.attacks.inversion.victim import Victim, mean_image, rank_of

_WINDOW = 7


@dataclass(frozen=True)
class Likeness:
    """Similarity of a reconstruction to the victim's image.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB.
        ssim: Structural similarity in [-1, 1].
        rank: 1 if no other image of the source is closer to the guess; None for the average image.
    """

    psnr: float
    ssim: float
    rank: int | None = None

    def gives_away(self, blind: "Likeness") -> bool:
        """Return whether a reconstruction identifies the image.

        It must rank first among all images and be nearer than the average image.
        """
        return self.rank == 1 and self.psnr > blind.psnr


@dataclass(frozen=True)
class Evaluation:
    """Both attacks on one victim.

    Attributes:
        victim: Client and image that were attacked.
        plain: Image rebuilt from the update without privacy.
        noised: Image rebuilt from the update with privacy.
        average: (side, side, channels) float64 in [0, 255], the blind guess.
        epsilon: Epsilon of the whole run for the victim's image.
        epsilon_of_update: Epsilon of the attacked update alone.
        num_images: Number of images that a rank compares.
    """

    victim: Victim
    plain: Rebuilt
    noised: Rebuilt
    average: np.ndarray
    epsilon: float
    epsilon_of_update: float
    num_images: int

    def likeness(self, guess: Rebuilt) -> Likeness:
        """Compare a reconstruction with the victim's image."""
        truth, pixels = self.victim.pixels, guess.pixels
        return Likeness(psnr(truth, pixels), ssim(truth, pixels), rank_of(self.victim, pixels))

    @property
    def blind(self) -> Likeness:
        """Similarity of the average image."""
        return Likeness(psnr(self.victim.pixels, self.average), ssim(self.victim.pixels, self.average))

    @property
    def verdict(self) -> str:
        """Two sentences."""
        return verdict(self.likeness(self.plain), self.likeness(self.noised), self.blind, epsilon=self.epsilon)

    @property
    def details(self) -> tuple[str, ...]:
        """Facts behind the verdict, one per line."""
        classes, plan = self.victim.prepared.scan.classes, self.victim.plan
        ranks = [self.likeness(guess).rank for guess in (self.plain, self.noised)]
        return (
            f"Class {classes[self.victim.label]} was read as {classes[self.plain.label]} without privacy, as "
            f"{classes[self.noised.label]} with it. Of {self.num_images:,} images the true one is no. {ranks[0]:,} in "
            f"likeness to what was rebuilt without privacy, no. {ranks[1]:,} with it.",
            f"Epsilon <= {format_epsilon(self.epsilon)} is for all {plan.num_rounds} rounds at delta {plan.delta:g}; "
            f"for the one update shown it is {format_epsilon(self.epsilon_of_update)}.",
        )


def invert_both(victim: Victim, attack: Attack, progress: ProgressFactory) -> Evaluation:
    """Invert the victim's update without privacy and the one with it.

    Args:
        victim: One client, one image.
        attack: Steps, restarts and priors of the attack.
        progress: Shows progress of the search.

    Raises:
        ConfigError: No noise meets the target epsilon.
        PrivacyError: The accountants disagree.
    """
    plan = victim.plan
    epsilon, one = plan.epsilon(), spent_by(plan.training_events(1), delta=plan.delta).pld
    network = build_network(victim.config, victim.pixels.shape, len(victim.prepared.scan.classes))
    if not isinstance(network, CnnNetwork):
        raise ConfigError("the inversion demo attacks model.backbone='cnn' alone")

    def attacked(what: str, reply: Arrays) -> Rebuilt:
        advance = progress(attack.restarts * attack.steps, what)
        shape = victim.pixels.shape
        return rebuild(network, victim.start, reply, victim.settings, attack, input_shape=shape, advance=advance)

    return Evaluation(
        victim=victim,
        plain=attacked("Without privacy", victim.reply(private=False)),
        noised=attacked("With privacy", victim.reply(private=True)),
        average=mean_image(victim),
        epsilon=epsilon,
        epsilon_of_update=one,
        num_images=int(victim.prepared.scan.usable.sum()),
    )


def verdict(plain: Likeness, noised: Likeness, blind: Likeness, *, epsilon: float) -> str:
    """Return two sentences that follow from the figures.

    Args:
        plain: Likeness of the image rebuilt without privacy.
        noised: Likeness of the image rebuilt with privacy.
        blind: Likeness of the average image.
        epsilon: Epsilon of the whole run.

    >>> print(verdict(Likeness(39, 0.99, 1), Likeness(6, 0.01, 700), Likeness(13, 0.2), epsilon=8.0))
    Recognisable without privacy: PSNR 39.0 dB. With epsilon 8.000: 6.0 dB, no better than an average image (13.0 dB).
    """
    average = f"an average image ({blind.psnr:.1f} dB)"
    if not plain.gives_away(blind):
        return (
            f"The attack failed even without privacy: PSNR {plain.psnr:.1f} dB, {average} to compare. "
            "So this picture says nothing about privacy: try more --restarts or --steps, or another --image."
        )
    first = f"Recognisable without privacy: PSNR {plain.psnr:.1f} dB."
    second = f"With epsilon {format_epsilon(epsilon)}: {noised.psnr:.1f} dB,"
    if noised.gives_away(blind):
        return f"{first} RECOGNISABLE WITH PRIVACY TOO. {second} better than {average}: this epsilon is too large."
    if noised.psnr > blind.psnr:
        return f"{first} {second} above {average}, yet other images of the source look more like it than the true one."
    return f"{first} {second} no better than {average}."


def as_json(findings: Evaluation) -> dict[str, Any]:
    """Return the figures and their conditions as plain values."""
    victim, plan = findings.victim, findings.victim.plan
    guesses = {"without_privacy": findings.plain, "with_privacy": findings.noised}
    return {
        "verdict": findings.verdict,
        "image": victim.image,
        "label": victim.prepared.scan.classes[victim.label],
        "average_image": {"psnr": findings.blind.psnr, "ssim": findings.blind.ssim},
        **{name: _guess_as_json(findings, guess) for name, guess in guesses.items()},
        "images_compared": findings.num_images,
        "privacy": {
            "mechanism": plan.mechanism,
            "epsilon": findings.epsilon,
            "epsilon_of_this_update": findings.epsilon_of_update,
            "delta": plan.delta,
            "num_rounds": plan.num_rounds,
            "noise_multiplier": plan.noise_multiplier,
            "max_grad_norm": plan.max_grad_norm,
        },
    }


def _guess_as_json(findings: Evaluation, guess: Rebuilt) -> dict[str, Any]:
    found = findings.likeness(guess)
    label = findings.victim.prepared.scan.classes[guess.label]
    return {"psnr": found.psnr, "ssim": found.ssim, "rank": found.rank, "label": label, "misfit": guess.misfit}


def psnr(truth: np.ndarray, guess: np.ndarray) -> float:
    """Return the peak signal-to-noise ratio of two images, in dB.

    The images have one shape and values in [0, 255]. The ratio is infinite if they are equal.

    >>> psnr(np.zeros((4, 4), np.uint8), np.full((4, 4), 255, np.uint8))
    0.0
    """
    error = float(np.mean((truth.astype(np.float64) - guess.astype(np.float64)) ** 2))
    return float(20 * np.log10(255.0) - 10 * np.log10(error)) if error else float("inf")


def ssim(truth: np.ndarray, guess: np.ndarray) -> float:
    """Return the structural similarity of two images, in [-1, 1].

    The images are (side, side, channels) with values in [0, 255]. Windows have at most 7 x 7 pixels.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861, with a uniform window.
    """
    size = min(_WINDOW, len(truth))
    windows = [
        np.lib.stride_tricks.sliding_window_view(image.astype(np.float64), (size, size), axis=(0, 1))
        for image in (truth, guess)
    ]
    (mean_a, mean_b), (var_a, var_b) = (
        [getattr(window, moment)(axis=(-2, -1)) for window in windows] for moment in ("mean", "var")
    )
    together = (windows[0] * windows[1]).mean(axis=(-2, -1)) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    likeness = (2 * mean_a * mean_b + c1) * (2 * together + c2)
    return float(np.mean(likeness / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))))
