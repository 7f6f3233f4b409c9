"""The optimiser on arrays, step by step against torch's."""

import numpy as np
import pytest
import torch

from client.training.optimizer import ArrayOptimizer
from client.training.round_settings import LocalSettings

pytestmark = pytest.mark.numerical
STEPS = 25


def settings(**more: object) -> LocalSettings:
    return LocalSettings(**({"learning_rate": 0.1, "momentum": 0.0, "epochs": 1, "batch_size": 8} | more))  # type: ignore[arg-type]


def torch_twin(parameter: torch.nn.Parameter, given: LocalSettings) -> torch.optim.Optimizer:
    if given.optimizer == "adamw":
        return torch.optim.AdamW([parameter], lr=given.learning_rate, weight_decay=given.weight_decay)
    return torch.optim.SGD(
        [parameter], lr=given.learning_rate, momentum=given.momentum, weight_decay=given.weight_decay
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "given",
    [
        settings(),
        settings(momentum=0.9),
        settings(weight_decay=0.05),
        settings(momentum=0.9, weight_decay=0.05),
        settings(optimizer="adamw", learning_rate=0.01),
        settings(optimizer="adamw", learning_rate=0.01, weight_decay=0.1),
        settings(momentum=0.5, proximal_mu=0.3),
        settings(optimizer="adamw", learning_rate=0.01, proximal_mu=0.3),
    ],
    ids=["sgd", "momentum", "decay", "momentum-decay", "adamw", "adamw-decay", "prox", "adamw-prox"],
)
def test_optimizer_equals_torch_at_every_step(given: LocalSettings, dtype: type) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 6)).astype(dtype)
    start = weights.copy()
    parameter = torch.nn.Parameter(torch.from_numpy(weights.copy()))
    ours, theirs = ArrayOptimizer(given, weights), torch_twin(parameter, given)

    for _ in range(STEPS):
        gradient = rng.standard_normal((4, 6)).astype(dtype)
        ours.step(weights, gradient.copy())
        pull = given.proximal_mu * (parameter.detach() - torch.from_numpy(start))
        parameter.grad = torch.from_numpy(gradient) + pull
        theirs.step()
        tolerance = 2e-5 if dtype is np.float32 else 1e-12
        np.testing.assert_allclose(weights, parameter.detach().numpy(), rtol=tolerance, atol=tolerance)

    assert weights.dtype == dtype
    assert np.abs(weights - start).max() > 0.01


def test_proximal_step_worked_by_hand() -> None:
    weights = np.array([1.0])
    optimizer = ArrayOptimizer(settings(learning_rate=0.5, proximal_mu=2.0), weights)

    optimizer.step(weights, np.array([1.0]))  # no pull yet: 1 - 0.5
    assert weights == pytest.approx([0.5])
    optimizer.step(weights, np.array([0.0]))  # pulled back: 0.5 - 0.5 * 2 * (0.5 - 1)
    assert weights == pytest.approx([1.0])


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_leaves_the_gradient_alone_and_moves_the_weights_in_place(name: str) -> None:
    weights, gradient = np.ones(3), np.array([1.0, -2.0, 0.5])
    before = gradient.copy()
    optimizer = ArrayOptimizer(settings(optimizer=name, weight_decay=0.1, proximal_mu=0.1), weights)

    optimizer.step(weights, gradient)
    optimizer.step(weights, gradient)

    assert np.array_equal(gradient, before)
    assert not np.array_equal(weights, np.ones(3))
