"""Synthetic features have the lengths, classes and spectrum that their task says."""

import numpy as np
import pytest

from simulations.advice.features import TASKS, FeatureTask, draw_features


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_features_have_length_one_and_every_class(task: FeatureTask) -> None:
    features, labels = draw_features(task, 400, 7, 96, np.random.default_rng(0))

    assert features.shape == (400, 96)
    assert features.dtype == np.float32
    assert np.linalg.norm(features, axis=1) == pytest.approx(1, abs=1e-5)
    assert set(labels) == set(range(7))


def test_a_task_with_less_between_classes_is_harder() -> None:
    """The nearest class mean decides, on images that no mean was made of."""

    def error(task: FeatureTask) -> float:
        features, labels = draw_features(task, 2_000, 10, 128, np.random.default_rng(1))
        means = np.stack([features[:1_000][labels[:1_000] == number].mean(axis=0) for number in range(10)])
        distances = ((features[1_000:, None] - means) ** 2).sum(axis=2)
        return float((distances.argmin(axis=1) != labels[1_000:]).mean())

    hard, easy = map(error, TASKS)
    assert hard > 2 * easy
    assert hard < 0.8


def test_directions_differ_less_the_later_they_come() -> None:
    features, labels = draw_features(TASKS[0], 3_000, 3, 300, np.random.default_rng(2))
    spread = np.mean([features[labels == number].var(axis=0) for number in range(3)], axis=0)

    assert spread[:10].mean() > 4 * spread[50:100].mean() > 4 * spread[250:].mean()
