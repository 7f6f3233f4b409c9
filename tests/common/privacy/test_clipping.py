"""Clipped sums against one-by-one gradients and against neighbours."""

import numpy as np
import pytest

from common.errors import ConfigError
from common.models.linear_head import residuals
from common.privacy.clipping import add_clipped, clip_factors, clipped_head_sum, clipped_sum

pytestmark = pytest.mark.numerical
BOUND = 0.3


def example_batch(rows: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    features = rng.normal(size=(rows, 6)).astype(np.float32)
    weight = rng.normal(size=(4, 6)).astype(np.float32)
    return features, residuals(features, rng.integers(0, 4, rows), weight)


def test_clipped_head_sum_equals_one_by_one_gradients() -> None:
    features, logit_gradients = example_batch()

    expected = np.zeros((4, 6))
    for x, r in zip(features.astype(float), logit_gradients.astype(float), strict=True):
        gradient = np.outer(r, x)
        expected += gradient * min(1.0, BOUND / np.linalg.norm(gradient))

    assert np.allclose(clipped_head_sum(features, logit_gradients, max_grad_norm=BOUND), expected, rtol=1e-12)


@pytest.mark.parametrize("canary", [1.0, 10.0, 1000.0, 1e30, np.nan, np.inf, -np.inf, 0.0])
def test_clipped_head_sum_moves_by_at_most_the_bound_when_one_example_joins(canary: float) -> None:
    features, logit_gradients = example_batch()
    added = np.full((1, 6), canary, dtype=np.float32)
    neighbour = np.concatenate([features, added]), np.concatenate([logit_gradients, logit_gradients[:1]])

    without = clipped_head_sum(features, logit_gradients, max_grad_norm=BOUND)
    with_it = clipped_head_sum(*neighbour, max_grad_norm=BOUND)

    assert np.isfinite(with_it).all()
    assert np.linalg.norm(with_it - without) <= BOUND * (1 + 1e-9)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_clipped_head_sum_survives_bad_residuals(value: float) -> None:
    features, logit_gradients = example_batch()
    logit_gradients = logit_gradients.copy()
    logit_gradients[3] = value

    total = clipped_head_sum(features, logit_gradients, max_grad_norm=BOUND)
    rest = clipped_head_sum(np.delete(features, 3, 0), np.delete(logit_gradients, 3, 0), max_grad_norm=BOUND)

    assert np.linalg.norm(total - rest) <= BOUND * (1 + 1e-9)


def test_clipped_sum_equals_closed_form() -> None:
    features, logit_gradients = example_batch()
    gradients = np.einsum("nk,nd->nkd", logit_gradients, features).reshape(len(features), -1)

    assert np.allclose(
        clipped_sum(gradients, max_grad_norm=BOUND).reshape(4, 6),
        clipped_head_sum(features, logit_gradients, max_grad_norm=BOUND),
        atol=1e-6,
    )


def test_clipped_sum_clips_all_tensors_jointly_and_drops_non_finite_rows() -> None:
    gradients = np.array([[3.0, 4.0], [np.nan, 1.0], [np.inf, 0.0], [0.0, 0.0], [0.03, 0.04]])

    assert np.allclose(clipped_sum(gradients, max_grad_norm=1.0), [0.63, 0.84])


@pytest.mark.parametrize("size", [1, 7, 129, 16_384, 16_392, 100_003, 287_434])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_clipped_gradient_is_to_the_bit_that_of_whole_arrays(size: int, kind: type) -> None:
    """Runs of versions that clipped whole arrays must repeat."""
    rng = np.random.default_rng(size)
    gradient = (rng.standard_normal(size) * np.exp(3 * rng.standard_normal(size))).astype(kind)
    before = rng.standard_normal(size)

    for bound in (1e-3, 1.0, 1e9):
        total, wide = before.copy(), gradient.astype(np.float64)[None]
        add_clipped(total, gradient, max_grad_norm=bound)
        whole = before + clip_factors(np.linalg.norm(wide, axis=1), max_grad_norm=bound) @ wide
        assert total.tobytes() == whole.tobytes()


@pytest.mark.parametrize(
    "cuts", [(1, 2), (0, 0, 16_384), (5, 5, 8_192, 70_002), (7, 8_191, 60_000), tuple(range(0, 70_000, 999))]
)
def test_gradient_in_parts_is_clipped_to_the_bit_like_one_array(cuts: tuple[int, ...]) -> None:
    gradient = np.random.default_rng(0).standard_normal(70_002).astype(np.float32)
    parts = [
        # Filters may lie in memory in another order than that of their values.
        np.asfortranarray(part.reshape(-1, 3)) if len(part) % 3 == 0 else part
        for part in np.split(gradient, cuts)
    ]

    for bound in (1e-3, 1e9):
        whole, joined = np.zeros(len(gradient)), np.zeros(len(gradient))
        factor = add_clipped(whole, gradient, max_grad_norm=bound)
        assert add_clipped(joined, parts, max_grad_norm=bound) == factor
        assert joined.tobytes() == whole.tobytes()


@pytest.mark.parametrize("sizes", [(5,), (3,), (1,), (2, 3), (4, 1, 0)])
def test_gradient_of_another_size_than_the_sum_is_refused(sizes: tuple[int, ...]) -> None:
    """Its values would be added to those of other tensors, or be left out."""
    total = np.zeros(4)

    with pytest.raises(ValueError, match=f"{sum(sizes)} values"):
        add_clipped(total, [np.ones(size) for size in sizes], max_grad_norm=1.0)

    assert not total.any()


def test_gradient_without_any_part_adds_nothing() -> None:
    total = np.zeros(0)

    assert add_clipped(total, (), max_grad_norm=1.0, elsewhere=4.0) == 0.5


def test_clipping_of_no_examples_is_zero() -> None:
    features, logit_gradients = example_batch()

    assert not clipped_head_sum(features[:0], logit_gradients[:0], max_grad_norm=BOUND).any()
    assert not clipped_sum(np.zeros((0, 5)), max_grad_norm=BOUND).any()


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, np.inf])
def test_clip_factors_refuse_a_bound_that_is_not_finite_and_positive(bound: float) -> None:
    with pytest.raises(ConfigError, match="max_grad_norm"):
        clip_factors(np.ones(3), max_grad_norm=bound)


@pytest.mark.parametrize("bound", [0.0, -1.0, 1e-316, 9e-7, np.inf, np.nan])
def test_clip_factors_refuses_a_bound_whose_rounding_would_outgrow_it(bound: float) -> None:
    with pytest.raises(ConfigError, match="at least"):
        clip_factors(np.array([1.0]), max_grad_norm=bound)
