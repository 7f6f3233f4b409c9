"""One training under attack, through real messages, and the adversary's score of it.

The adversary knows everything but the noise and whether the canary is in: all other images, the canary, the
configuration. So it can train without noise, with the canary and without, and look how far along that
difference the real training went.
"""

import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args
from unittest.mock import patch

import numpy as np

import client.training.dp_sgd as client_training
from client.training.trainer import Arrays
from common.config.schema import RunConfig
from common.errors import ConfigError, PrivacyError
from simulations.attacks.canary.canaries import CanaryKind, with_canary
from simulations.attacks.estimators.pld_family import log_likelihood_ratios
from simulations.harness.client_harness import ClientHarness, Streams
from simulations.harness.harness_images import Images
from simulations.harness.harness_streams import Joins, Repeated, Silent

AdversaryKind = Literal["final-model", "transcript", "single-steps", "black-box"]
ADVERSARIES: tuple[str, ...] = get_args(AdversaryKind)
_LEAST_MOVE = 1e-30


@dataclass(frozen=True)
class Experiment:
    """One attack on one client of one configuration.

    Attributes:
        harness: The configuration and the client's other images.
        canary: What is in or out.
        adversary: What the adversary sees: the model after the last round; every round's update; every single
            step's noised sum, which is more than any server sees and what the ledger's bound is about; or the
            final model's answer to the canary alone.
    """

    harness: ClientHarness
    canary: CanaryKind
    adversary: AdversaryKind

    @cached_property
    def neighbours(self) -> tuple[Images, Images]:
        """The images without the canary, and with it."""
        inside = with_canary(self.harness.images, self.canary, num_classes=len(self.harness.classes))
        count = len(inside.labels)
        return inside.only(np.arange(count) < count - 1), inside

    @cached_property
    def _away(self) -> tuple[Arrays, Arrays]:
        """Final models of trainings without noise: without the canary, and with it in every step."""
        without, inside = self.neighbours
        return self._quiet(without)[-1], self._quiet(inside)[-1]

    def score(self, *, inside: bool) -> float:
        """Train once, with the canary or without, and score it.

        Raises:
            PrivacyError: The client refused.
        """
        images = self.neighbours[inside]
        if self.adversary == "single-steps":
            with watched_steps() as sums:
                self._trained(images, Streams())
            return self._likelihood(np.array(sums))
        models = self._trained(images, Streams())
        if self.adversary == "black-box":
            return self._confidence(models[-1])
        if self.adversary == "final-model":
            return _along(models[-1], *self._away)
        return self._transcript(models)

    @cached_property
    def _quiet_steps(self) -> tuple[np.ndarray, np.ndarray]:
        """(steps, p) sums without noise and without the canary, and the direction of the canary's gradient."""
        found = []
        for images in self.neighbours:
            with watched_steps() as sums:
                self._quiet(images)
            found.append(np.array(sums))
        moved = found[1][0] - found[0][0]
        return found[0], moved / max(float(np.linalg.norm(moved)), _LEAST_MOVE)

    def _likelihood(self, sums: np.ndarray) -> float:
        """Log likelihood ratio of all steps, the canary's length being the clip bound."""
        plan = self.harness.plan
        without, direction = self._quiet_steps
        steps = (sums - without) @ direction / plan.max_grad_norm
        ratios = log_likelihood_ratios(
            steps[None], sample_rate=plan.sample_rate, noise_multiplier=plan.noise_multiplier
        )
        return float(ratios[0])

    def _transcript(self, models: list[Arrays]) -> float:
        """Every round by itself: how far it went along what the canary does to the model that came in."""
        without, inside = self.neighbours
        products, lengths = 0.0, 0.0
        for before, after in pairwise(models):
            ends = [self._quiet(images, start=before, rounds=1)[-1] for images in (without, inside)]
            direction = _flat(ends[1]) - _flat(ends[0])
            products += float(direction @ (_flat(after) - _flat(ends[0])))
            lengths += float(direction @ direction)
        return products / max(lengths, _LEAST_MOVE)

    def _confidence(self, model: Arrays) -> float:
        """Log odds of the canary's class: all that an answer to it tells."""
        canary = self.neighbours[1]
        logits = self.harness.trainer.logits(model, canary.inputs[-1:])[0].astype(np.float64)
        others = np.delete(logits, canary.labels[-1])
        return float(logits[canary.labels[-1]] - np.logaddexp.reduce(others))

    def _quiet(self, images: Images, *, start: Arrays | None = None, rounds: int | None = None) -> list[Arrays]:
        """The adversary's own training, with noise of zero."""
        plan = self.harness.plan  # one stream serves all rounds: its steps are counted on
        joins = Joins(self.neighbours[0].num_training_units, range(plan.steps_per_round * plan.num_rounds))
        streams = Streams((Repeated("sampling", [], joins), Silent()))
        return self._trained(images, streams, start=start, rounds=rounds)

    def _trained(
        self,
        images: Images,
        streams: Streams,
        *,
        start: Arrays | None = None,
        rounds: int | None = None,
    ) -> list[Arrays]:
        """Models from the first to the last, each the reply to the one before: the server aggregates one client."""
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


@contextmanager
def watched_steps() -> Iterator[list[np.ndarray]]:
    """Every noised sum of a client's steps, as it is made."""
    sums: list[np.ndarray] = []
    made = vars(client_training)["add_noise"]  # whatever stands there

    def add_noise(*given: Any, **named: Any) -> np.ndarray:
        sums.append(made(*given, **named))
        return sums[-1]

    with patch.object(client_training, "add_noise", add_noise):
        yield sums


def _along(model: Arrays, without: Arrays, inside: Arrays) -> float:
    """0 at the model without the canary, 1 at the one with it; noise is spread around."""
    direction = _flat(inside) - _flat(without)
    return float(direction @ (_flat(model) - _flat(without)) / max(float(direction @ direction), _LEAST_MOVE))


def _flat(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([array.astype(np.float64).ravel() for array in arrays.values()])


def configured(
    config: RunConfig, canary: CanaryKind, adversary: AdversaryKind, images: int | None, folder: Path
) -> Experiment:
    """The first client of a configuration under attack, with its own images.

    Args:
        config: The run, with mechanism `dp-sgd`.
        canary: What is in or out.
        adversary: Who attacks.
        images: How many of the client's training images stay; all if left out.
        folder: Scratch for ledgers.

    Raises:
        ConfigError: The clients of this run add no noise.
        BractError: The configuration cannot be run.
    """
    if not config.is_local_dp:
        raise ConfigError(
            f"privacy.mechanism={config.privacy.mechanism!r}: clients add no noise, so there is no client to audit; "
            "`bract audit layers` tests noise at the server, `bract audit membership` attacks the final model"
        )
    harness = ClientHarness.of(config, folder, num_images=images, num_held_out=0)
    return Experiment(harness, canary, adversary)
