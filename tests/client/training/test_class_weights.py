"""Weights of classes multiply an example's loss before its clip, and divide nothing.

Drives `client.training.class_weights`.
"""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import client.training.trainer as trainer_module
from client.training.class_weights import balanced_weights, label_counts_of, noised_label_counts
from client.training.dp_sgd import FRESH_STREAMS, train_head_privately
from client.training.head_sgd import train_head
from client.training.network_sgd import train_network, train_network_privately
from client.training.round_settings import LocalSettings, settings_of
from client.training.trainer import Trainer
from common.config.schema import RunConfig
from common.data.client_dataset import Shard
from common.data.image_digests import ImageDigests
from common.errors import ConfigError, PrivacyError
from common.models.linear_head import HEAD_WEIGHT, initial_head, residuals
from common.privacy.clipping import row_norms
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream
from tests.support.clients.networks import cnn, flat, repeating, rows_of, start

pytestmark = pytest.mark.numerical
MakeConfig = Callable[..., RunConfig]
WEIGHTS = (1.0, 0.25, 8.0)
RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(12, 6)).astype(np.float32)
NORMS = row_norms(FEATURES)
LABELS = np.arange(12) % 3
LOCAL = LocalSettings(1.0, 0.0, 1, 12, class_weights=WEIGHTS)
PLAN = PrivacyPlan("dp-sgd", "image", 12, 1.0, 1, 1, 0.5, 1.0, 1e-5)
QUIET = replace(PLAN, noise_multiplier=1e-18)


def gradients(weight: np.ndarray) -> np.ndarray:
    """Each row's weighted gradient, worked by hand."""
    rest = residuals(FEATURES, LABELS, weight).astype(float)
    return np.array([WEIGHTS[y] * np.outer(r, x) for r, x, y in zip(rest, FEATURES, LABELS, strict=True)])


def released(units: np.ndarray | None = None, plan: PrivacyPlan = QUIET, rows: int = 12) -> np.ndarray:
    arrays = train_head_privately(
        initial_head(6, 3), FEATURES[:rows], LABELS[:rows], plan, LOCAL, repeating(), units=units
    )
    return arrays[HEAD_WEIGHT].astype(float)


def clipped(gradient: np.ndarray) -> np.ndarray:
    return gradient * min(1.0, 0.5 / float(np.linalg.norm(gradient)))


def test_a_plain_step_divides_the_weighted_sum_by_the_number_of_rows() -> None:
    after = train_head(initial_head(6, 3), FEATURES, LABELS, LOCAL, np.random.default_rng(0))

    np.testing.assert_allclose(after[HEAD_WEIGHT], -gradients(np.zeros((3, 6))).sum(axis=0) / 12, atol=1e-5)


def test_a_private_step_clips_the_weighted_gradient_and_divides_by_the_expected_batch() -> None:
    expected = -sum(clipped(gradient) for gradient in gradients(np.zeros((3, 6)))) / 12

    np.testing.assert_allclose(released(), expected, atol=1e-4)


def test_a_group_is_clipped_after_its_images_were_weighted() -> None:
    units = np.arange(12) // 2
    grouped = gradients(np.zeros((3, 6))).reshape(6, 2, 3, 6).mean(axis=1)

    expected = -sum(clipped(gradient) for gradient in grouped) / 12
    np.testing.assert_allclose(released(units), expected, atol=1e-4)


def test_a_heavy_class_moves_a_private_step_by_at_most_the_bound() -> None:
    assert LABELS[11] == 2  # of weight 8

    moved = 12 * np.linalg.norm(released(plan=PLAN) - released(plan=PLAN, rows=11))

    assert 0.4 < moved <= 0.5 * (1 + 1e-4) + 1e-4


@pytest.mark.parametrize("private", [False, True])
def test_a_network_whose_classes_all_weigh_2_learns_as_at_twice_the_rate(private: bool) -> None:
    plan = replace(PLAN, max_grad_norm=1e6, noise_multiplier=1e-18)

    def trained(local: LocalSettings) -> np.ndarray:
        rows = rows_of(12)
        if private:
            return flat(train_network_privately(cnn(), start(), rows, plan, local, repeating()))
        return flat(train_network(cnn(), start(), rows, local, public_stream(0, "batches")))

    twice = trained(LocalSettings(0.02, 0.0, 1, 12))
    weighted = trained(LocalSettings(0.01, 0.0, 1, 12, class_weights=(2.0,) * 4))
    uneven = trained(LocalSettings(0.01, 0.0, 1, 12, class_weights=(2.0, 2.0, 2.0, 0.1)))

    # The grid of a huge bound is coarse.
    np.testing.assert_allclose(weighted, twice, atol=1e-3 if private else 1e-6)
    assert np.abs(uneven - twice).max() > 1e-3


def test_a_private_step_of_a_network_with_a_heavy_class_moves_by_at_most_the_bound() -> None:
    local = LocalSettings(12.0, 0.0, 1, 12, class_weights=(100.0,) * 4)

    def release(rows: int) -> np.ndarray:
        return flat(train_network_privately(cnn(), start(), rows_of(rows), PLAN, local, repeating()))

    assert 0.4 < np.linalg.norm(release(12) - release(11)) <= 0.5 * (1 + 1e-4) + 1e-4


def test_balanced_weights_are_1_on_average_and_give_each_class_the_same_total() -> None:
    counts = np.array([12, 3, 0, 5])

    weights = np.array(balanced_weights(counts))

    assert weights @ counts / 20 == pytest.approx(1)
    assert (weights * counts)[[0, 1, 3]] == pytest.approx([20 / 3] * 3)


def test_balanced_weights_stay_in_a_public_range() -> None:
    assert balanced_weights(np.array([2000, 1])) == (pytest.approx(2001 / 4000), 10.0)
    assert balanced_weights(np.array([0, 0])) == (1.0, 1.0)
    for counts in ([-3, -1], [-50, 4000], [10**6, 1, 2]):
        assert all(0.1 <= weight <= 10.0 for weight in balanced_weights(np.array(counts), smallest_count=2.5))


def test_noise_around_zero_is_not_taken_for_a_rare_class() -> None:
    weights = balanced_weights(np.array([60, 60, 2, -7]), smallest_count=6.0)

    # Two classes and a third of one are there; both counts near zero weigh as a class of six images.
    assert weights[:2] == pytest.approx([122 / (2 + 1 / 3) / 60] * 2)
    assert weights[2] == weights[3] == pytest.approx(10 * weights[0])


NOISED = replace(PLAN, label_noise_stddev=4.0)


@pytest.mark.parametrize(("plan", "counts"), [(NOISED, None), (PLAN, np.array([4, 4, 4]))])
def test_balanced_weights_never_follow_from_exact_or_free_counts_under_dp(
    make_config: MakeConfig, plan: PrivacyPlan, counts: np.ndarray | None
) -> None:
    config = make_config({"training.class-weights": "balanced"})
    shard: Any = SimpleNamespace(
        train_inputs=FEATURES, train_labels=LABELS, train_units=np.arange(12), train_norms=NORMS
    )

    with pytest.raises(PrivacyError, match="noised and charged counts of labels only"):
        Trainer(config, (6,), ("a", "b", "c")).train(
            initial_head(6, 3), shard, name="x", server_round=1, plan=plan, label_counts=counts
        )


def test_trainer_weighs_classes_by_the_noised_counts_and_not_by_the_labels(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, found = make_config({"training.class-weights": "balanced"}), []
    monkeypatch.setattr(trainer_module, "train_head_privately", lambda *args, **_: found.append(args[4]) or args[0])
    for labels in (LABELS, np.zeros(12, dtype=np.int64)):
        shard: Any = SimpleNamespace(
            train_inputs=FEATURES, train_labels=labels, train_units=np.arange(12), train_norms=NORMS
        )
        Trainer(config, (6,), ("a", "b", "c")).train(
            initial_head(6, 3), shard, name="x", server_round=1, plan=NOISED, label_counts=np.array([60, 30, 1])
        )

    expected = balanced_weights(np.array([60, 30, 1]), smallest_count=4.0)
    assert [settings.class_weights for settings in found] == [expected, expected]


@pytest.mark.parametrize(("unit_of", "total"), [(np.arange(12), 12), (np.arange(12) // 4, 3)])
def test_each_unit_votes_once_and_by_its_content(unit_of: np.ndarray, total: int) -> None:
    digests = np.random.default_rng(2).integers(0, 256, (12, 32)).astype(np.uint8)
    none, order = np.zeros(0, dtype=np.int64), np.random.default_rng(3).permutation(12)

    def votes(rows: np.ndarray) -> list[int]:
        digest, holdings = digests[rows], ImageDigests(digests[rows], digests[rows], unit_of[rows])
        own = Shard(FEATURES, LABELS[rows], FEATURES, none, 12, digest, unit_of[rows], none, holdings, holdings)
        counts = noised_label_counts(own, 3, replace(PLAN, label_noise_stddev=1e-3), FRESH_STREAMS)
        return list(counts.tolist())

    assert sum(votes(np.arange(12))) == total
    assert votes(np.arange(12)) == votes(order)


def test_label_counts_have_the_noise_of_the_plan_and_none_without_a_plan_for_it() -> None:
    none, digests = np.zeros(0, dtype=np.int64), np.zeros((0, 32), dtype=np.uint8)
    holdings = ImageDigests(digests, digests, none)
    nobody = Shard(FEATURES[:0], none, FEATURES[:0], none, 12, digests, none, none, holdings, holdings)

    drawn = np.array([noised_label_counts(nobody, 3, NOISED, FRESH_STREAMS) for _ in range(400)])

    assert drawn.std() == pytest.approx(4.0, rel=5 / np.sqrt(2400))
    assert label_counts_of(nobody, 3, PLAN) is label_counts_of(nobody, 3, None) is None
    with pytest.raises(PrivacyError, match="with noise only"):
        noised_label_counts(nobody, 3, PLAN, FRESH_STREAMS)


@pytest.mark.parametrize("mechanism", ["none", "client-dp"])
def test_trainer_balances_the_classes_of_each_client(make_config: MakeConfig, mechanism: str) -> None:
    settings = {"privacy.mechanism": mechanism, "training.batch-size": 16, "training.learning-rate": 1.0}
    labels = np.array([0] * 9 + [1] * 3)
    named = ("a", "b", "c")

    def trained(value: str) -> np.ndarray:
        trainer = Trainer(make_config(settings | {"training.class-weights": value}), (6,), named)
        shard: Any = SimpleNamespace(train_inputs=FEATURES, train_labels=labels)
        arrays = trainer.train(initial_head(6, 3), shard, name="x", server_round=1, plan=None)
        return arrays[HEAD_WEIGHT]

    assert np.array_equal(trained("balanced"), trained(f"{12 / 18!r}, 2.0, 1.0"))
    assert not np.array_equal(trained("balanced"), trained(""))


def test_a_list_has_one_weight_for_each_class(make_config: MakeConfig) -> None:
    listed = make_config({"training.class-weights": "1, 2, 0.5"})

    assert settings_of(listed, server_round=1).class_weights == (1.0, 2.0, 0.5)
    assert Trainer(listed, (6,), ("a", "b", "c")).classes
    with pytest.raises(ConfigError, match="has 3 weights, and there are 2 classes"):
        Trainer(listed, (6,), ("a", "b"))
    with pytest.raises(ConfigError, match=r"has 3 weights, and data\.classes names 2 classes"):
        make_config({"training.class-weights": "1, 2, 0.5", "data.classes": "a, b"})


def test_balanced_weight_of_a_class_with_nearly_all_images_has_a_floor() -> None:
    weights = balanced_weights(np.array([981] + [1] * 19))

    assert weights[0] == 0.1
    assert max(weights) == 10.0
