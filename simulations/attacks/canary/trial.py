"""A training under attack by real messages and the adversary's score of it.

The adversary knows all other images, the canary and the configuration. It does not know the noise, nor whether the
canary is in. It trains without noise, once with the canary and once without it. The score is how far along the
difference of these two models the real training went.
"""

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np

from client.training.dp_sgd import FRESH_STREAMS, FreshStreams
from common.arrays import Arrays
from common.errors import ConfigError, PrivacyError
from simulations.attacks.canary.canaries import CanaryKind, with_canary
from simulations.attacks.estimators.pld_family import log_likelihood_ratios
from simulations.harness.client_harness import ClientHarness
from simulations.harness.harness_images import Images
from simulations.harness.harness_streams import Joins, ObservedStreams, Repeated, WithoutNoise

AdversaryKind = Literal["final-model", "transcript", "single-steps", "black-box"]
_TINY = 1e-30


@dataclass(frozen=True)
class Experiment:
    """An attack on one client of one configuration.

    Attributes:
        harness: The configuration and the client's other images.
        canary: Kind of the canary.
        adversary: What the adversary sees. `final-model` sees the model after the last round, `transcript` every
            round's update, `black-box` only the final model's answer to the canary. `single-steps` sees every step's
            noised sum: more than any server sees, but what the ledger's bound covers.
    """

    harness: ClientHarness
    canary: CanaryKind
    adversary: AdversaryKind

    @cached_property
    def neighbours(self) -> tuple[Images, Images]:
        """Images without the canary and with it."""
        inside = with_canary(self.harness.images, self.canary, num_classes=len(self.harness.classes))
        count = len(inside.labels)
        return inside.only(np.arange(count) < count - 1), inside

    def score(self, *, inside: bool) -> float:
        """Train once and return the adversary's score, higher where the canary seems in.

        Args:
            inside: Whether the client holds the canary.

        Raises:
            PrivacyError: The client refused.
        """
        streams = ObservedStreams()
        models = self._train(self.neighbours[inside], streams)
        if self.adversary == "single-steps":
            return self._likelihood(np.array(streams.sums))
        if self.adversary == "black-box":
            return self._confidence(models[-1])
        if self.adversary == "final-model":
            return _along(models[-1], *self._final_models)
        return self._transcript(models)

    @cached_property
    def _final_models(self) -> tuple[Arrays, Arrays]:
        """Final models without noise, without the canary and with it in every step."""
        without, inside = self.neighbours
        return self._train_quietly(without)[-1], self._train_quietly(inside)[-1]

    @cached_property
    def _quiet_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """Step sums without noise and canary, with the direction of the canary's gradient.

        The shapes are (steps, p) and (p,).
        """
        without, inside = (self._step_sums(images) for images in self.neighbours)
        moved = inside[0] - without[0]
        return without, moved / max(float(np.linalg.norm(moved)), _TINY)

    def _step_sums(self, images: Images) -> np.ndarray:
        streams = ObservedStreams(self._quiet_streams())
        self._train(images, streams)
        return np.array(streams.sums)

    def _likelihood(self, sums: np.ndarray) -> float:
        """Return the log likelihood ratio of all steps.

        The canary's gradient is assumed to be as long as the clipping bound.
        """
        plan = self.harness.plan
        without, direction = self._quiet_steps
        steps = (sums - without) @ direction / plan.max_grad_norm
        ratios = log_likelihood_ratios(
            steps[None], sample_rate=plan.sample_rate, noise_multiplier=plan.noise_multiplier
        )
        return float(ratios[0])

    def _transcript(self, models: list[Arrays]) -> float:
        """Return how far all rounds went along the canary's effect on each incoming model."""
        without, inside = self.neighbours
        products, lengths = 0.0, 0.0
        for before, after in pairwise(models):
            ends = [self._train_quietly(images, start=before, rounds=1)[-1] for images in (without, inside)]
            direction = _flat(ends[1]) - _flat(ends[0])
            products += float(direction @ (_flat(after) - _flat(ends[0])))
            lengths += float(direction @ direction)
        return products / max(lengths, _TINY)

    def _confidence(self, model: Arrays) -> float:
        """Return the log odds of the canary's class."""
        canary = self.neighbours[1]
        logits = self.harness.trainer.logits(model, canary.inputs[-1:])[0].astype(np.float64)
        others = np.delete(logits, canary.labels[-1])
        return float(logits[canary.labels[-1]] - np.logaddexp.reduce(others))

    def _quiet_streams(self) -> WithoutNoise:
        """Return streams without noise whose canary joins every step of a run."""
        plan = self.harness.plan
        # One stream serves all rounds, so that its calls count the steps of the whole run.
        joins = Joins(self.neighbours[0].num_training_units, range(plan.steps_per_round * plan.num_rounds))
        return WithoutNoise(Repeated("sampling", [], joins))

    def _train_quietly(self, images: Images, *, start: Arrays | None = None, rounds: int | None = None) -> list[Arrays]:
        return self._train(images, self._quiet_streams(), start=start, rounds=rounds)

    def _train(
        self,
        images: Images,
        streams: FreshStreams = FRESH_STREAMS,
        *,
        start: Arrays | None = None,
        rounds: int | None = None,
    ) -> list[Arrays]:
        """Return the models from the first to the last round.

        With one client, each reply is the model of the next round.
        """
        models = [self.harness.start if start is None else start]
        run = secrets.token_hex(16)
        for server_round in range(1, (rounds or self.harness.config.participations) + 1):
            seen = self.harness.ask(
                "train", images, arrays=models[-1], server_round=server_round, run=run, streams=streams
            )
            if seen.failure:
                raise PrivacyError(f"the audited client refused round {server_round} ({seen.failure})")
            models.append(seen.arrays)
        self.harness.forget(run)
        return models


def _along(model: Arrays, without: Arrays, inside: Arrays) -> float:
    """Return a model's position between two others.

    It is 0 at the first and 1 at the second.
    """
    direction = _flat(inside) - _flat(without)
    return float(direction @ (_flat(model) - _flat(without)) / max(float(direction @ direction), _TINY))


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.astype(np.float64).ravel() for array in arrays.values()])


def own_experiment(
    make_harness: Callable[[Path], ClientHarness], canary: CanaryKind, adversary: AdversaryKind, folder: Path
) -> Experiment:
    """Return an attack on a client of the user's own configuration.

    Args:
        make_harness: Takes the client's images, given a scratch folder.
        canary: Kind of the canary.
        adversary: What the adversary sees.
        folder: Scratch folder for ledgers.

    Raises:
        ConfigError: The clients of this run add no noise.
        BractError: The configuration cannot be run.
    """
    harness = make_harness(folder)
    if not harness.config.is_local_dp:
        raise ConfigError(
            f"privacy.mechanism={harness.config.privacy.mechanism!r}: clients add no noise, so there is nothing to "
            "audit; `bract audit layers` tests noise at the server, `bract audit membership` attacks the final model"
        )
    if harness.config.takes_statistics and adversary == "black-box":
        raise ConfigError(
            "--adversary black-box asks a model, and clients of this run send sums over features: use final-model, "
            "which then sees the sums, or single-steps"
        )
    return Experiment(harness, canary, adversary)
