"""Training of a linear head, plain and private, against oracles.

Drives `client.training.dp_sgd`, `client.training.trainer`.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from client.training import dp_sgd as private_training
from client.training.dp_sgd import PrivateStreams, train_head_privately
from client.training.head_sgd import shuffled_batches, train_head
from client.training.round_settings import LocalSettings
from common.models.linear_head import HEAD_WEIGHT, initial_head, residuals
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream

pytestmark = pytest.mark.numerical
RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(40, 8)).astype(np.float32)
LABELS = RNG.integers(0, 3, 40)


@dataclass
class Frozen:
    """A stream that repeats one value and remembers how much was drawn."""

    value: float
    drawn: list[int] = field(default_factory=list)

    def uniforms(self, size: int) -> np.ndarray:
        self.drawn.append(size)
        return np.full(size, self.value)

    def random_bytes(self, size: int) -> bytes:
        self.drawn.append(size)
        return bytes(size)


@dataclass
class Recorded:
    """The same numbers again each time it is made."""

    seed: int = 0

    def __post_init__(self) -> None:
        self._rng = np.random.default_rng(self.seed)

    def uniforms(self, size: int) -> np.ndarray:
        return self._rng.uniform(1e-12, 1, size)

    def random_bytes(self, size: int) -> bytes:
        return self._rng.bytes(size)


def settings(rate: float = 0.5, momentum: float = 0.0, epochs: int = 2, batch: int = 16) -> LocalSettings:
    return LocalSettings(rate, momentum, epochs, batch)


def plan(units: int = 40, rate: float = 1.0, steps: int = 3, bound: float = 0.2, noise: float = 1.0) -> PrivacyPlan:
    return PrivacyPlan("dp-sgd", "image", units, rate, steps, 1, bound, noise, 1e-5)


def test_shuffled_batches_visit_each_row_once_an_epoch() -> None:
    batches = shuffled_batches(40, settings(), np.random.default_rng(0))

    assert [len(batch) for batch in batches] == [16, 16, 8] * 2
    assert sorted(np.concatenate(batches[:3])) == list(range(40))


def test_train_head_full_batch_step_equals_the_gradient_worked_by_hand() -> None:
    start = initial_head(8, 3)

    after = train_head(start, FEATURES, LABELS, settings(epochs=1, batch=40), np.random.default_rng(0))

    onehot = np.eye(3)[LABELS]
    expected = -0.5 * ((1 / 3 - onehot).T @ FEATURES) / 40
    assert np.allclose(after[HEAD_WEIGHT], expected, atol=1e-6)
    assert not start[HEAD_WEIGHT].any()


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_train_head_equals_torch_with_smoothing_decay_and_the_proximal_term(optimizer: str) -> None:
    start = {HEAD_WEIGHT: np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)}
    momentum = 0.9 if optimizer == "sgd" else 0.0
    local = LocalSettings(
        0.05, momentum, 2, 16, optimizer=optimizer, weight_decay=0.01, proximal_mu=0.2, label_smoothing=0.1
    )

    after = train_head(start, FEATURES, LABELS, local, np.random.default_rng(0))

    origin = torch.from_numpy(start[HEAD_WEIGHT])
    weight = torch.nn.Parameter(origin.clone())
    twin: torch.optim.Optimizer = (
        torch.optim.SGD([weight], lr=0.05, momentum=momentum, weight_decay=0.01)
        if optimizer == "sgd"
        else torch.optim.AdamW([weight], lr=0.05, weight_decay=0.01)
    )
    for batch in shuffled_batches(40, local, np.random.default_rng(0)):
        twin.zero_grad()
        logits = torch.from_numpy(FEATURES[batch]) @ weight.T
        loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(LABELS[batch]), label_smoothing=0.1)
        (loss + 0.1 * ((weight - origin) ** 2).sum()).backward()
        twin.step()
    np.testing.assert_allclose(after[HEAD_WEIGHT], weight.detach().numpy(), rtol=1e-4, atol=1e-5)


def test_private_training_smooths_labels_like_plain_training() -> None:
    quiet, local = plan(bound=64.0, noise=1e-18), LocalSettings(0.5, 0.5, 3, 40, label_smoothing=0.3)

    private = train_head_privately(
        initial_head(8, 3), FEATURES, LABELS, quiet, local, PrivateStreams(Frozen(0.5), Recorded())
    )
    plain = train_head(initial_head(8, 3), FEATURES, LABELS, local, np.random.default_rng(0))

    np.testing.assert_allclose(private[HEAD_WEIGHT], plain[HEAD_WEIGHT], atol=1e-3)
    assert np.abs(plain[HEAD_WEIGHT]).max() > 0.05


def test_train_head_without_rows_changes_nothing() -> None:
    start = {HEAD_WEIGHT: np.ones((3, 8), dtype=np.float32)}

    after = train_head(start, FEATURES[:0], LABELS[:0], settings(), np.random.default_rng(0))

    assert np.array_equal(after[HEAD_WEIGHT], start[HEAD_WEIGHT])


def test_train_head_repeats_for_one_stream_and_differs_for_another() -> None:
    runs = [
        train_head(initial_head(8, 3), FEATURES, LABELS, settings(), public_stream(0, "batches", name, 1))
        for name in ("a", "a", "b")
    ]

    assert np.array_equal(runs[0][HEAD_WEIGHT], runs[1][HEAD_WEIGHT])
    assert not np.array_equal(runs[0][HEAD_WEIGHT], runs[2][HEAD_WEIGHT])


def test_private_training_with_huge_bound_and_no_noise_equals_full_batch_training() -> None:
    quiet = plan(bound=1e6, noise=1e-18)
    streams = PrivateStreams(Frozen(0.5), Recorded())

    private = train_head_privately(initial_head(8, 3), FEATURES, LABELS, quiet, settings(), streams)
    plain = train_head(initial_head(8, 3), FEATURES, LABELS, settings(epochs=3, batch=40), np.random.default_rng(0))

    # The grid of a huge bound is coarse: 1e6 / 2^16.
    assert np.allclose(private[HEAD_WEIGHT], plain[HEAD_WEIGHT], atol=0.5 * 1e6 * 2.0**-15 / 40)


def test_private_training_draws_noise_for_every_step_also_when_batches_are_empty() -> None:
    never, noise = Frozen(0.999999), Frozen(0.3)

    train_head_privately(
        initial_head(8, 3), FEATURES, LABELS, plan(rate=0.5, steps=7), settings(), PrivateStreams(never, noise)
    )

    assert never.drawn == [40] * 7
    # Each of the 24 values sums three table draws of four bytes.
    assert noise.drawn == [4 * 3 * 24] * 7


@pytest.mark.parametrize("canary", [1.0, 10.0, 1000.0, np.nan, np.inf, 0.0])
def test_private_step_with_frozen_randomness_moves_by_at_most_the_bound(canary: float) -> None:
    start = {HEAD_WEIGHT: RNG.normal(size=(3, 8)).astype(np.float32)}
    more = np.concatenate([FEATURES, np.full((1, 8), canary, dtype=np.float32)])
    more_labels = np.concatenate([LABELS, [2]])
    local = settings(rate=40.0)

    def release(features: np.ndarray, labels: np.ndarray) -> np.ndarray:
        streams = PrivateStreams(Frozen(0.5), Recorded())
        return train_head_privately(start, features, labels, plan(steps=1), local, streams)[HEAD_WEIGHT]

    # Learning rate over expected batch size is one, so the weights move as the noised sum does.
    moved = np.linalg.norm(release(more, more_labels).astype(float) - release(FEATURES, LABELS).astype(float))
    assert moved <= 0.2 * (1 + 1e-4) + 1e-5


def test_private_training_divides_by_the_expected_not_the_actual_batch() -> None:
    start, local = initial_head(8, 3), settings(rate=1.0)

    def step(rows: int) -> np.ndarray:
        streams = PrivateStreams(Frozen(0.5), Recorded())
        arrays = train_head_privately(start, FEATURES[:rows], LABELS[:rows], plan(steps=1), local, streams)
        return arrays[HEAD_WEIGHT].astype(float)

    # One row more changes the released step by one clipped gradient over 40, whatever was drawn.
    logit_gradients = residuals(FEATURES[20:21], LABELS[20:21], start[HEAD_WEIGHT])
    gradient = np.outer(logit_gradients[0], FEATURES[20])
    expected = -gradient * min(1.0, 0.2 / np.linalg.norm(gradient)) / 40
    assert np.allclose(step(21) - step(20), expected, atol=1e-6)


def test_private_training_of_a_client_without_rows_still_sends_noise() -> None:
    after = train_head_privately(
        initial_head(8, 3), FEATURES[:0], LABELS[:0], plan(), settings(), PrivateStreams.fresh()
    )

    assert np.abs(after[HEAD_WEIGHT]).min() > 0


@pytest.mark.parametrize("width", [1280, 1283])
def test_private_residuals_of_a_row_do_not_depend_on_its_neighbours(width: int) -> None:
    """With an odd width the neighbours also move a row to another place in memory."""
    rng = np.random.default_rng(1)
    features = rng.normal(size=(64, width)).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    base = 1e12 * rng.normal(size=width)
    # Class rows that differ in the last bit let rounding decide every softmax.
    weight = np.stack([base * (1 + k * 2.0**-23) for k in range(10)]).astype(np.float32)
    labels = rng.integers(0, 10, 64)

    together = residuals(features, labels, weight, row_by_row=True)
    without_one = residuals(features[1:], labels[1:], weight, row_by_row=True)

    assert np.array_equal(together[1:], without_one)


def test_private_training_asks_for_residuals_row_by_row(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def spy(*rows: np.ndarray, row_by_row: bool = False, **more: Any) -> np.ndarray:
        asked.append(row_by_row)
        return residuals(*rows, row_by_row=row_by_row, **more)

    monkeypatch.setattr(private_training, "residuals", spy)
    train_head_privately(initial_head(8, 3), FEATURES, LABELS, plan(), settings(), PrivateStreams.fresh())

    assert asked == [True] * 3
