"""Training of a whole network under differential privacy: bounded, apart, and the same in chunks."""

import gc
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from client.training import network_sgd as network_training
from client.training.dp_sgd import PrivateStreams
from client.training.gradients.outer_gradients import SplitGradient, SplitSum
from client.training.network_sgd import TrainingSet, train_network, train_network_privately
from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork
from common.privacy.clipping import clipped_sum
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream
from tests.support.clients.networks import (
    SETTINGS,
    Arrays,
    MakeConfig,
    Repeating,
    cnn,
    flat,
    repeating,
    rows_of,
    start,
    tuned_network,
)

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def tuned(make_config: MakeConfig) -> tuple[AnyNetwork, Arrays]:
    return tuned_network(make_config)


def test_private_training_moves_by_at_most_the_bound_when_one_image_joins() -> None:
    arrays, plan, local = (
        start(),
        PrivacyPlan("dp-sgd", "image", 40, 1.0, 1, 1, 0.5, 1.0, 1e-5),
        LocalSettings(40.0, 0.0, 1, 16),
    )

    def release(rows: int) -> np.ndarray:
        return flat(train_network_privately(cnn(), arrays, rows_of(rows), plan, local, repeating()))

    assert 0.1 < np.linalg.norm(release(12) - release(11)) <= 0.5 * (1 + 1e-4) + 1e-4


@pytest.mark.parametrize("physical", [None, 4])
def test_images_that_stay_move_by_nothing_when_another_joins(
    tuned: tuple[AnyNetwork, Arrays], physical: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each clipped gradient is recorded: those of the others must be the same to the bit."""
    network, arrays = tuned
    plan = PrivacyPlan("dp-sgd", "image", 12, 1.0, 1, 1, 0.5, 1.0, 1e-5)
    local = LocalSettings(1.0, 0.0, 1, 12, augmentation=("crop",), stream=b"r", physical_batch_size=physical)
    everyone = rows_of(12, 32, 3)
    original = SplitSum.add
    # Made-up images are checked once for a network, and are not to be recorded.
    train_network_privately(network, arrays, everyone, plan, local, repeating())

    def gradients(kept: np.ndarray) -> set[bytes]:
        seen: set[bytes] = set()

        def spy(total: SplitSum, gradient: SplitGradient) -> None:
            parts = (gradient.flat, *(vector for pair in gradient.products for vector in pair))
            seen.add(b"".join(part.tobytes() for part in parts))
            original(total, gradient)

        monkeypatch.setattr(SplitSum, "add", spy)
        rows = TrainingSet(everyone.images[kept], everyone.labels[kept], everyone.digests[kept])
        train_network_privately(network, arrays, rows, plan, local, repeating())
        return seen

    whole = gradients(np.arange(12))

    assert len(whole) == 12
    for left_out in (0, 5, 11):
        assert gradients(np.delete(np.arange(12), left_out)) < whole


@pytest.mark.parametrize("physical", [2, 4])
def test_private_training_in_chunks_equals_one_image_at_a_time(tuned: tuple[AnyNetwork, Arrays], physical: int) -> None:
    network, arrays = tuned
    plan = PrivacyPlan("dp-sgd", "image", 20, 0.6, 3, 1, 0.5, 1.0, 1e-5)
    local = LocalSettings(0.5, 0.5, 1, 12, augmentation=("flip",), stream=b"r")

    def release(size: int) -> np.ndarray:
        settings = replace(local, physical_batch_size=size)
        return flat(train_network_privately(network, arrays, rows_of(20, 32, 3), plan, settings, repeating()))

    assert np.abs(release(physical) - release(1)).max() <= 1e-5


def test_private_training_takes_chunks_only_where_they_agree(
    tuned: tuple[AnyNetwork, Arrays], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    network, arrays = tuned
    plan, local = (
        PrivacyPlan("dp-sgd", "image", 6, 1.0, 1, 1, 0.5, 1.0, 1e-5),
        LocalSettings(0.5, 0.0, 1, 6, physical_batch_size=3),
    )
    used: list[int] = []
    original = network_training.gradients_in_slots

    def spy(*given: Any, slots: int) -> Iterator[np.ndarray]:
        used.append(slots)
        return original(*given, slots=slots)

    monkeypatch.setattr(network_training, "gradients_in_slots", spy)
    chunked = train_network_privately(network, arrays, rows_of(6, 32, 3), plan, local, repeating())
    assert used == [3]

    network_training._CHECKED.clear()
    monkeypatch.setattr(network_training, "providers_agree", lambda *_: False)
    alone = train_network_privately(network, arrays, rows_of(6, 32, 3), plan, local, repeating())
    network_training._CHECKED.clear()

    assert used == [3]
    assert "taking one at a time" in caplog.text
    assert np.abs(flat(chunked) - flat(alone)).max() <= 1e-5


def test_self_check_runs_once_for_all_rounds(tuned: tuple[AnyNetwork, Arrays], monkeypatch: pytest.MonkeyPatch) -> None:
    network, arrays = tuned
    plan = PrivacyPlan("dp-sgd", "image", 6, 1.0, 1, 1, 0.5, 1.0, 1e-5)
    checks: list[object] = []
    monkeypatch.setattr(network_training, "providers_agree", lambda *given: checks.append(given) or True)
    network_training._CHECKED.clear()

    for server_round in range(3):
        local = LocalSettings(0.5 / (1 + server_round), 0.0, 1, 6, physical_batch_size=3, stream=bytes([server_round]))
        train_network_privately(network, arrays, rows_of(2, 32, 3), plan, local, repeating())
    network_training._CHECKED.clear()

    assert len(checks) == 1


def test_private_training_with_a_huge_bound_and_no_noise_is_the_sum_of_plain_gradients(
    tuned: tuple[AnyNetwork, Arrays],
) -> None:
    network, arrays = tuned
    bound, rows = 64.0, rows_of(8, 32, 3)
    plan, local = (
        PrivacyPlan("dp-sgd", "image", 8, 1.0, 3, 1, bound, 1e-18, 1e-5),
        LocalSettings(0.05, 0.5, 3, 8, weight_decay=0.01),
    )

    private = flat(train_network_privately(network, arrays, rows, plan, local, repeating()))
    plain = flat(train_network(network, arrays, rows, local, public_stream(0, "batches")))

    moved = np.linalg.norm(plain - flat(arrays))
    # Sums are rounded to a grid of at most C / (10,000 sqrt(d)), so by less than C / 10,000 each step.
    assert np.linalg.norm(private - plain) <= 3 * 2 * 0.05 * 1e-4 * bound / 8 + 1e-4 * moved
    assert moved > 0.01


def test_private_training_of_rows_that_are_not_finite_is_that_of_the_others(
    tuned: tuple[AnyNetwork, Arrays], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row whose gradient is not a number counts as zero, for itself alone."""
    network, arrays = tuned
    plan, local = PrivacyPlan("dp-sgd", "image", 6, 1.0, 1, 1, 0.5, 1.0, 1e-5), LocalSettings(1.0, 0.0, 1, 6)
    rows = rows_of(6, 32, 3)
    without = TrainingSet(rows.images[1:], rows.labels[1:], rows.digests[1:])
    prepare = network.prepare

    def poisoned(images: np.ndarray) -> torch.Tensor:
        inputs = prepare(images)
        for row, image in enumerate(images):
            if np.array_equal(image, rows.images[0]):
                inputs[row] = float("nan")
        return inputs

    monkeypatch.setattr(network, "prepare", poisoned)
    found = [train_network_privately(network, arrays, held, plan, local, Fixed.streams()) for held in (rows, without)]

    assert np.array_equal(flat(found[0]), flat(found[1]))


class Fixed(Repeating):
    """Every row is drawn, whatever their number; noise repeats."""

    @classmethod
    def streams(cls) -> PrivateStreams:
        return PrivateStreams(cls(), Repeating())

    def uniforms(self, size: int) -> np.ndarray:
        return np.full(size, 0.5)


@pytest.mark.parametrize("rows", [0, 1, 40])
def test_private_training_keeps_names_and_shapes_for_any_number_of_rows(rows: int) -> None:
    arrays, plan = start(), PrivacyPlan("dp-sgd", "image", 40, 0.5, 2, 1, 1.0, 1.0, 1e-5)

    after = train_network_privately(cnn(), arrays, rows_of(rows), plan, SETTINGS, PrivateStreams.fresh())

    assert {name: array.shape for name, array in after.items()} == {name: array.shape for name, array in arrays.items()}
    assert all(not np.array_equal(after[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize(
    ("gradient", "expected"),
    [
        ([3.0, 4.0], [0.6, 0.8]),
        ([0.3, 0.4], [0.3, 0.4]),
        ([0.0, 0.0], [0.0, 0.0]),
        ([np.nan, 1.0], [0.0, 0.0]),
        ([np.inf, 1.0], [0.0, 0.0]),
        ([3e38, 3e38], [2**-0.5, 2**-0.5]),
    ],
)
def test_one_clipped_gradient_is_bounded_and_drops_what_is_not_finite(
    gradient: list[float], expected: list[float]
) -> None:
    clipped = clipped_sum(np.array([gradient], dtype=np.float32), max_grad_norm=1.0)

    assert clipped.dtype == np.float64
    np.testing.assert_allclose(clipped, expected, rtol=1e-6)


def test_a_check_sees_the_layout_of_training_and_is_forgotten_with_its_network(monkeypatch: pytest.MonkeyPatch) -> None:
    contiguous: list[bool] = []

    def check(network: AnyNetwork, *_: object) -> tuple[str, ...]:
        contiguous.append(network.get_submodule("conv2").weight.is_contiguous())  # type: ignore[operator]
        return ()

    monkeypatch.setattr(network_training, "outer_weights", check)
    network_training._CHECKED.clear()
    network = cnn()
    plan, local = PrivacyPlan("dp-sgd", "image", 12, 1.0, 1, 1, 0.5, 1.0, 1e-5), LocalSettings(0.5, 0.0, 1, 12)

    for _ in range(2):
        train_network_privately(network, start(), rows_of(12), plan, local, repeating())

    assert contiguous == [False]
    assert len(network_training._CHECKED) == 1
    del network
    gc.collect()
    assert len(network_training._CHECKED) == 0
