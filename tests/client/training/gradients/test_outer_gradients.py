"""Gradients of linear layers as outer products: those of autograd, clipped jointly, each image apart."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.training.gradients.outer_gradients import SplitGradient, SplitSum, outer_weights, split_gradients
from client.training.gradients.per_example_gradients import Examples, gradients_one_by_one
from client.training.network_sgd import _channels_last
from client.training.round_settings import LocalSettings
from common.config.schema import RunConfig
from common.models.classifier import AnyNetwork, Network, build_network
from common.models.torch_heads import build_head
from common.privacy.clipping import clipped_sum

pytestmark = pytest.mark.numerical
MakeConfig = Callable[..., RunConfig]
CLASSES, SIDE = 3, 32
PLAIN = LocalSettings(0.1, 0.0, 1, 4, label_smoothing=0.1)
TURNING = LocalSettings(0.1, 0.0, 1, 4, rotation_weight=0.5, class_weights=(0.5, 1.0, 4.0))
# Backbone, tuning and head -> the weights that are kept apart.
CASES = {
    ("cnn", "full", "linear"): ("dense.weight", "output.weight"),
    ("mobilenet_v3_small", "norm", "linear"): ("head.weight",),
    ("mobilenet_v3_small", "lora", "mlp"): ("head.dense.weight", "head.output.weight"),
    ("vit_tiny_patch16_224", "last:1", "linear"): ("head.weight",),
}


def network_of(make_config: MakeConfig, backbone: str, tuning: str, head: str, rotation: float = 0.0) -> AnyNetwork:
    chosen = {"model.backbone": backbone, "training.rotation-weight": rotation}
    if backbone != "cnn":
        chosen |= {"model.weights": "random", "model.tuning": tuning, "data.image-size": SIDE, "model.head": head}
    network = build_network(make_config(chosen), (SIDE, SIDE, 3), CLASSES)
    with torch.no_grad():
        for index, (name, parameter) in enumerate(network.named_parameters()):
            if name in network.trained:
                parameter.add_(0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index)))
    return network


def examples_of(network: AnyNetwork, number: int, *, turned: bool = False) -> Examples:
    images = np.random.default_rng(2).integers(0, 256, (number, SIDE, SIDE, 3), dtype=np.uint8)
    inputs, labels = network.prepare(images), torch.arange(number) % CLASSES
    return Examples(inputs, labels, inputs.flip(-1) if turned else None, (labels + 1) % 4)


def shapes_of(network: AnyNetwork) -> dict[str, tuple[int, ...]]:
    named = dict(network.named_parameters())
    return {name: tuple(named[name].shape) for name in network.trained}


def summed(network: AnyNetwork, gradients: list[SplitGradient], weights: tuple[str, ...], bound: float) -> np.ndarray:
    total = SplitSum(shapes_of(network), weights, max_grad_norm=bound)
    for gradient in gradients:
        total.add(gradient)
    return total.total()


@pytest.mark.parametrize(("backbone", "tuning", "head"), list(CASES))
@pytest.mark.parametrize("bound", [1e-3, 1e6])
def test_sum_of_split_gradients_is_that_of_whole_ones(
    make_config: MakeConfig, backbone: str, tuning: str, head: str, bound: float
) -> None:
    network = network_of(make_config, backbone, tuning, head)
    examples = examples_of(network, 5)

    weights = outer_weights(network, (SIDE, SIDE, 3), PLAIN)
    found = summed(network, list(split_gradients(network, examples, PLAIN, weights)), weights, bound)

    assert weights == CASES[(backbone, tuning, head)]
    whole = np.stack(list(gradients_one_by_one(network, examples, PLAIN)))
    expected = clipped_sum(whole, max_grad_norm=bound)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


def test_head_of_rotations_is_kept_apart_too(make_config: MakeConfig) -> None:
    network = network_of(make_config, "mobilenet_v3_small", "bias", "linear", rotation=0.5)
    examples = examples_of(network, 4, turned=True)

    weights = outer_weights(network, (SIDE, SIDE, 3), TURNING)
    found = summed(network, list(split_gradients(network, examples, TURNING, weights)), weights, 0.5)

    assert weights == ("head.weight", "rotation.weight")
    whole = np.stack(list(gradients_one_by_one(network, examples, TURNING)))
    expected = clipped_sum(whole, max_grad_norm=0.5)
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


class _Odd(torch.nn.Module):
    """A linear layer that is called twice, or on tokens, or whose weight is used elsewhere too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer = kind, torch.nn.Linear(6, 6)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.kind == "twice":
            return self.layer(self.layer(inputs))
        if self.kind == "tokens":
            return self.layer(inputs.reshape(len(inputs), 1, 6)).sum(1)
        return self.layer(inputs) + inputs @ self.layer.weight


@pytest.mark.parametrize("kind", ["twice", "tokens", "shared"])
def test_layers_with_other_gradients_are_not_kept_apart(kind: str) -> None:
    network = Network(None, _Odd(kind), scaling="standard", flat=False, rotation=None)
    network.trained = ("head.layer.weight", "head.layer.bias")

    assert outer_weights(network, (6,), PLAIN) == ()


def test_output_that_is_overwritten_does_no_harm() -> None:
    head = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(inplace=True), torch.nn.Linear(5, CLASSES))
    network = Network(None, head, scaling="standard", flat=False, rotation=None)
    network.trained = tuple(name for name, _ in network.named_parameters())

    assert outer_weights(network, (6,), PLAIN) == ("head.0.weight", "head.2.weight")


def test_no_layer_is_kept_apart_under_autocast() -> None:
    network = Network(None, build_head("linear", 6, CLASSES), scaling="standard", flat=False, rotation=None)
    network.trained = ("head.weight",)

    assert outer_weights(network, (6,), PLAIN) == ("head.weight",)
    assert outer_weights(network, (6,), replace(PLAIN, autocast="bfloat16")) == ()


@pytest.mark.parametrize("company", [[0, 1], [1, 0, 2], [5, 4, 3, 2, 1, 0]])
def test_split_gradient_is_bit_identical_in_any_company(make_config: MakeConfig, company: list[int]) -> None:
    network = network_of(make_config, "cnn", "full", "linear")
    examples, weights = examples_of(network, 6), ("dense.weight", "output.weight")
    examples.inputs[2:5] = torch.tensor([1e30, np.nan, np.inf])[:, None, None, None]

    def of(rows: list[int]) -> list[list[bytes]]:
        found = split_gradients(network, examples.select(torch.tensor(rows)), PLAIN, weights)
        return [[each.flat.tobytes(), *(part.tobytes() for pair in each.products for part in pair)] for each in found]

    # In the layout that private training has.
    with _channels_last(network):
        assert of(company)[company.index(0)] == of([0])[0]
        assert of(company)[company.index(1)] == of([1])[0]


SHAPES = {"first": (2, 3), "between": (2,), "second": (4, 1)}
WEIGHTS = ("first", "second")


def unit_of(seed: int, scale: float = 1.0) -> SplitGradient:
    rng = np.random.default_rng(seed)
    first, between, second = (
        (rng.standard_normal(2), rng.standard_normal(3)),
        scale * rng.standard_normal(2),
        (rng.standard_normal(4), scale * rng.standard_normal(1)),
    )
    return SplitGradient((between[:1], between[1:].reshape(1, 1)), ((first[0], scale * first[1]), second))


def formed(gradient: SplitGradient) -> np.ndarray:
    first, second = (np.outer(left, right).ravel() for left, right in gradient.products)
    return np.concatenate([first, gradient.flat, second])


def sum_of(gradients: list[SplitGradient], bound: float = 1.0) -> np.ndarray:
    total = SplitSum(SHAPES, WEIGHTS, max_grad_norm=bound)
    for gradient in gradients:
        total.add(gradient)
    return total.total()


@pytest.mark.parametrize("number", [0, 1, 63, 64, 65, 200])
def test_split_sum_is_that_of_gradients_that_are_formed_in_the_order_of_tensors(number: int) -> None:
    units = [unit_of(seed, scale=10.0 ** (seed % 4 - 2)) for seed in range(number)]
    rows = np.stack([formed(unit) for unit in units]) if units else np.zeros((0, 12))

    np.testing.assert_allclose(sum_of(units), clipped_sum(rows, max_grad_norm=1.0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("others", [0, 63, 64])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 1e3, 1e30])
def test_split_sum_moves_by_at_most_the_bound_when_a_unit_joins(others: int, scale: float) -> None:
    units = [unit_of(seed) for seed in range(others)]

    moved = np.linalg.norm(sum_of([unit_of(999, scale), *units]) - sum_of(units))

    assert moved <= 1 + 1e-9


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(-1, 5))
def test_nothing_of_a_unit_stays_that_is_not_finite_anywhere(value: float, place: int) -> None:
    units, odd = [unit_of(seed) for seed in range(70)], unit_of(999)
    (first, second) = odd.products
    vectors = [odd.parts[0], *first, *second, odd.parts[1]]
    vectors[place][0] = value
    # Its partner is zero, and zero times infinity is no number.
    if place > 0:
        vectors[place + 1 if place % 2 else place - 1][:] = 0

    assert sum_of([*units[:9], odd, *units[9:]]).tobytes() == sum_of(units).tobytes()
