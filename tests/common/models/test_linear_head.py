"""The linear head, with torch's automatic gradients as second opinion.

Drives `common.arrays`.
"""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from common.config.schema import RunConfig
from common.models.initialization import initial_arrays
from common.models.linear_head import HEAD_WEIGHT, head_logits, initial_head, residuals

pytestmark = pytest.mark.numerical


def _problem() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((20, 6)).astype(np.float32)
    return features, rng.integers(4, size=20), rng.standard_normal((4, 6)).astype(np.float32)


def test_residuals_give_the_gradient_of_torch() -> None:
    features, labels, weight = _problem()
    variable = torch.from_numpy(weight.copy()).requires_grad_()
    loss = torch.nn.functional.cross_entropy(torch.from_numpy(features) @ variable.T, torch.from_numpy(labels))
    loss.backward()

    gradient = residuals(features, labels, weight).T @ features / len(labels)

    np.testing.assert_allclose(gradient, variable.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("row_by_row", [False, True])
def test_residuals_with_smoothed_labels_give_the_gradient_of_torch(row_by_row: bool) -> None:
    features, labels, weight = _problem()
    variable = torch.from_numpy(weight.copy()).requires_grad_()
    torch.nn.functional.cross_entropy(
        torch.from_numpy(features) @ variable.T, torch.from_numpy(labels), label_smoothing=0.3
    ).backward()

    logit_gradients = residuals(features, labels, weight, row_by_row=row_by_row, label_smoothing=0.3)

    np.testing.assert_allclose(logit_gradients.T @ features / len(labels), variable.grad, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(logit_gradients.sum(axis=1), 0, atol=1e-6)


def test_residuals_stay_finite_when_logits_are_huge() -> None:
    features, labels, weight = _problem()

    values = residuals(features, labels, 1e4 * weight)

    assert np.isfinite(values).all()
    np.testing.assert_allclose(values.sum(axis=1), 0, atol=1e-5)


def test_residuals_leave_their_arguments_alone() -> None:
    given = _problem()
    before = [array.copy() for array in given]

    residuals(*given)

    assert all(np.array_equal(a, b) for a, b in zip(given, before, strict=True))


def test_initial_head_finds_every_class_equally_likely() -> None:
    head = initial_head(6, 4)

    assert list(head) == [HEAD_WEIGHT]
    assert (head[HEAD_WEIGHT].shape, head[HEAD_WEIGHT].dtype) == ((4, 6), np.float32)
    assert not head_logits(np.ones((3, 6), dtype=np.float32), head[HEAD_WEIGHT]).any()


def test_initial_arrays_follow_backbone_and_seed(make_config: Callable[..., RunConfig]) -> None:
    classes = tuple("0123456789")
    head = initial_arrays(make_config(), (1280,), classes)
    networks = [
        initial_arrays(make_config({"model.backbone": "cnn", "seed": n}), (8, 8, 1), classes) for n in (0, 0, 1)
    ]

    assert {name: array.shape for name, array in head.items()} == {HEAD_WEIGHT: (10, 1280)}
    assert np.array_equal(networks[0]["conv1.weight"], networks[1]["conv1.weight"])
    assert not np.array_equal(networks[0]["conv1.weight"], networks[2]["conv1.weight"])
