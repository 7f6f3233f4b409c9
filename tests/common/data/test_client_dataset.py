"""What a client's images give that is computed once."""

from dataclasses import replace

import numpy as np

from client.training.dp_sgd import PrivateStreams, train_head_privately
from common.data.client_dataset import Shard
from common.data.image_digests import ImageDigests
from common.models.linear_head import HEAD_WEIGHT, initial_head, residuals
from common.privacy.clipping import row_norms
from common.privacy.noise import poisson_batch
from common.privacy.plan import PrivacyPlan
from tests.client.training.test_head_sgd import Recorded, settings

ROWS = np.random.default_rng(8).normal(size=(30, 6)).astype(np.float32)
PLAN = PrivacyPlan("dp-sgd", "image", 30, 0.5, 2, 1, 0.3, 1.0, 1e-5)


def shard_of(features: np.ndarray) -> Shard:
    count = len(features)
    labels, units, digests = np.arange(count) % 3, np.arange(count), np.zeros((count, 32), dtype=np.uint8)
    holdings = ImageDigests(digests, digests, units)
    return Shard(features, labels, features[:0], labels[:0], count, digests, units, units[:0], holdings, holdings)


def test_kept_norms_are_those_of_the_own_features_and_not_finite_where_these_are_not() -> None:
    broken = ROWS.copy()
    broken[4, 2] = np.nan
    whole = shard_of(ROWS)
    assert np.array_equal(whole.train_norms, row_norms(ROWS))

    half, other = replace(whole, train_inputs=ROWS[:15]), shard_of(broken)

    assert np.array_equal(half.train_norms, row_norms(ROWS[:15]))
    assert np.flatnonzero(~np.isfinite(other.train_norms)).tolist() == [4]


def test_a_round_with_kept_norms_has_the_bytes_of_one_that_computes_them() -> None:
    shard, found = shard_of(ROWS), []
    for norms in (None, shard.train_norms):
        arrays = train_head_privately(
            initial_head(6, 3),
            ROWS,
            shard.train_labels,
            PLAN,
            settings(),
            PrivateStreams(Recorded(), Recorded(1)),
            feature_norms=norms,
        )
        found.append(arrays[HEAD_WEIGHT].tobytes())

    assert found[0] == found[1]


def test_each_image_of_a_batch_is_clipped_by_its_own_norm() -> None:
    rows = ROWS * np.linspace(0.01, 3, 30, dtype=np.float32)[:, None]
    shard, plan = shard_of(rows), replace(PLAN, steps_per_round=1, noise_multiplier=1e-9)
    rate = 0.5
    batch = poisson_batch(30, sample_rate=plan.sample_rate, stream=Recorded())
    logits = residuals(rows, shard.train_labels, np.zeros((3, 6), np.float32))
    expected = np.zeros((3, 6))
    for row in batch:
        gradient = np.outer(logits[row], rows[row]).astype(np.float64)
        expected += gradient * min(1.0, plan.max_grad_norm / float(np.linalg.norm(gradient)))

    arrays = train_head_privately(
        initial_head(6, 3),
        rows,
        shard.train_labels,
        plan,
        settings(rate),
        PrivateStreams(Recorded(), Recorded(1)),
        feature_norms=shard.train_norms,
    )

    assert 0 < len(batch) < 30
    assert np.allclose(arrays[HEAD_WEIGHT], -rate * expected / plan.expected_batch_size, atol=1e-5)
