"""Images that share the calls of small layers: gradients of each alone, to the bit the same in any company."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch

from client.training import network_sgd
from client.training.gradients import shared_calls as module
from client.training.gradients.outer_gradients import outer_weights, whole_gradients
from client.training.gradients.per_example_gradients import Examples, gradients_one_by_one
from client.training.gradients.shared_calls import SharedCalls, shared_calls
from client.training.network_sgd import TrainingSet, train_network_privately
from client.training.round_settings import LocalSettings
from common.config.schema import RunConfig
from common.models.classifier import AnyNetwork, CnnNetwork, Network, build_network, trained_arrays
from common.models.torch_heads import build_head
from common.privacy.clipping import clipped_sum
from common.privacy.plan import PrivacyPlan
from tests.client.training.gradients.test_outer_gradients import summed
from tests.support.clients.networks import repeating

pytestmark = pytest.mark.numerical
MakeConfig = Callable[..., RunConfig]
CLASSES = 3
SETTINGS = LocalSettings(0.1, 0.0, 1, 4, label_smoothing=0.1, class_weights=(0.5, 1.0, 4.0))
SHAPES = {"two convolutions": (32, 32, 3), "grey": (28, 28, 1), "normalised": (64, 64, 3), "features": (40,)}


@pytest.fixture(autouse=True, name="one_thread")
def one_thread_fixture() -> Iterator[None]:
    """As a client has it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network_of(shape: tuple[int, ...], kind: type[CnnNetwork] = CnnNetwork) -> AnyNetwork:
    torch.manual_seed(7)
    if len(shape) == 1:
        network = Network(None, build_head("mlp", shape[0], CLASSES), scaling="standard", flat=False, rotation=None)
        network.trained = tuple(name for name, _ in network.named_parameters())
        return network.eval()
    return kind(shape[0], shape[2], CLASSES)


def examples_of(network: AnyNetwork, shape: tuple[int, ...], number: int) -> Examples:
    rng = np.random.default_rng(2)
    drawn = rng.integers(0, 256, (number, *shape), dtype=np.uint8)
    inputs = network.prepare(drawn if len(shape) == 3 else rng.standard_normal((number, *shape)).astype(np.float32))
    labels = torch.arange(number) % CLASSES
    return Examples(inputs, labels, None, torch.zeros_like(labels))


def found_for(network: AnyNetwork, shape: tuple[int, ...], settings: LocalSettings = SETTINGS) -> SharedCalls | None:
    return shared_calls(network, shape, settings, outer_weights(network, shape, settings))


def bits(found: SharedCalls, network: AnyNetwork, examples: Examples) -> list[list[bytes]]:
    gradients = found.gradients(network, examples, SETTINGS)
    return [[one.flat.tobytes(), *(part.tobytes() for pair in one.products for part in pair)] for one in gradients]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("bound", [1e-3, 1e6])
def test_sum_is_that_of_gradients_of_each_image_alone(shape: tuple[int, ...], bound: float) -> None:
    network = network_of(shape)
    examples = examples_of(network, shape, 11)

    calls = found_for(network, shape)
    assert calls is not None
    gradients = list(calls.gradients(network, examples, SETTINGS))

    assert len(gradients) == 11
    alone = np.stack(list(gradients_one_by_one(network, examples, SETTINGS)))
    together = np.stack(list(whole_gradients(network, gradients, calls.apart)))
    # Where two values of a maximum are equal up to rounding, either gradient is right.
    errors = np.sort(np.linalg.norm(together - alone, axis=1) / np.linalg.norm(alone, axis=1))
    assert errors[-3] <= 1e-5
    found, expected = summed(network, gradients, calls.apart, bound), clipped_sum(together, max_grad_norm=bound)
    assert np.linalg.norm(found - expected) <= 1e-9 * np.linalg.norm(expected)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38, 0.0])
def test_a_gradient_is_the_same_to_the_bit_in_any_company(shape: tuple[int, ...], value: float) -> None:
    network = network_of(shape)
    examples = examples_of(network, shape, 9)
    calls = found_for(network, shape)
    assert calls is not None
    before = bits(calls, network, examples)

    # Its place moves by one, and what stands beside it is another image.
    without_first = bits(calls, network, examples.select(slice(1, None)))
    examples.inputs[4] = value
    beside = bits(calls, network, examples)

    assert without_first == before[1:]
    assert beside[:4] + beside[5:] == before[:4] + before[5:]
    assert value == 0 or not np.isfinite(np.frombuffer(beside[4][0], np.float32)).all() or value == 3e38


class _Coupled(CnnNetwork):
    """Adds to each image the smallest share of all of them."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels + 1e-6 * pixels.mean(dim=0, keepdim=True))


class _ByPlace(CnnNetwork):
    """Rounds the second image of a call in another way."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        logits = super().forward(pixels)
        return logits if len(logits) < 2 else torch.cat([logits[:1], (logits[1:2] * 3) / 3, logits[2:]])


class _CoupledMaps(CnnNetwork):
    """Adds to each image's maps the smallest share of all of them."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = super().feature_maps(pixels)
        return maps + 1e-6 * maps.mean(dim=0, keepdim=True)


class _LastValue(CnnNetwork):
    """Computes the last value of a call by another instruction."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        maps = super().feature_maps(pixels)
        if len(maps) == 1:
            return maps
        last = maps[-1:].clone()
        last[0, -1, -1, -1] *= 1 + 2**-23
        return torch.cat([maps[:-1], last])


class _Leaky(CnnNetwork):
    """Multiplies what lies beside an image by zero."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels + 0 * pixels.roll(1, dims=0))


class _Wrong(CnnNetwork):
    """Uses a filter outside of its layer as well."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels) * self.conv1.weight.sum()  # type: ignore[operator, union-attr]


class _Twice(CnnNetwork):
    """Calls a layer twice."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return super().forward(pixels) + super().forward(pixels.flip(-1))


@pytest.mark.parametrize("kind", [_Coupled, _CoupledMaps, _ByPlace, _LastValue, _Leaky, _Wrong, _Twice])
def test_images_that_touch_or_are_computed_wrongly_share_no_calls(kind: type[CnnNetwork]) -> None:
    shape = (32, 32, 3)

    assert found_for(network_of(shape, kind), shape) is None
    assert found_for(network_of(shape), shape) is not None


@pytest.mark.parametrize("value", [0.0, 1e30, float("nan")])
def test_weights_of_a_message_do_not_make_touching_images_share_calls(
    monkeypatch: pytest.MonkeyPatch, value: float
) -> None:
    """Where all values overflow they are equal to the bit, and say nothing of kernels."""
    network = network_of((32, 32, 3), _CoupledMaps)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)
    apart = ("dense.weight", "output.weight")
    monkeypatch.setattr(module, "_agree", lambda *_: True)

    assert shared_calls(network, (32, 32, 3), SETTINGS, apart) is None
    assert all(
        torch.equal(part.nan_to_num(), torch.full_like(part, value).nan_to_num()) for part in network.parameters()
    )


def test_large_layers_share_no_calls(make_config: MakeConfig) -> None:
    large = (256, 256, 3)
    chosen = {"model.weights": "random", "model.tuning": "last:1", "data.image-size": 32}
    backbone = build_network(make_config(chosen | {"model.backbone": "mobilenet_v3_small"}), (32, 32, 3), CLASSES)

    assert found_for(network_of(large), large) is None
    assert found_for(backbone, (32, 32, 3)) is None


def test_several_threads_and_parameters_of_other_names_share_no_calls() -> None:
    """A thread may flush the smallest numbers to zero where another one does not."""
    network, shape = network_of((32, 32, 3)), (32, 32, 3)
    assert found_for(network, shape) is not None

    torch.set_num_threads(2)
    try:
        assert found_for(network, shape) is None
    finally:
        torch.set_num_threads(1)

    torch.nn.utils.parametrizations.weight_norm(network.get_submodule("conv1"))
    assert shared_calls(network, shape, SETTINGS, ("dense.weight", "output.weight")) is None


def test_gradients_in_bfloat16_share_no_calls() -> None:
    network, shape = network_of((32, 32, 3)), (32, 32, 3)

    assert shared_calls(network, shape, replace(SETTINGS, autocast="bfloat16"), ()) is None


@pytest.mark.parametrize("grouped", [False, True])
def test_training_of_single_images_shares_calls(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, grouped: bool
) -> None:
    seen: list[int] = []
    real = SharedCalls.gradients

    def spy(self: SharedCalls, network: AnyNetwork, examples: Examples, settings: LocalSettings) -> object:
        seen.append(len(examples))
        return real(self, network, examples, settings)

    network, rng = network_of((32, 32, 3)), np.random.default_rng(3)
    units = np.arange(10) // 2 if grouped else None
    images = TrainingSet(
        rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8),
        np.arange(10) % CLASSES,
        rng.integers(0, 256, (10, 32), dtype=np.uint8),
        units,
    )
    plan: PrivacyPlan = make_config({"model.backbone": "cnn", "training.batch-size": "all"}).plan(10)
    arrays = trained_arrays(network)

    monkeypatch.setattr(SharedCalls, "gradients", spy)
    train_network_privately(network, arrays, images, plan, SETTINGS, repeating())
    trained_together = sum(seen)
    monkeypatch.setattr(network_sgd, "_shared_calls", lambda *_: None)
    seen.clear()
    train_network_privately(network, arrays, images, plan, SETTINGS, repeating())

    assert seen == []
    # Beside those of the check.
    assert (trained_together >= 10 * plan.steps_per_round) == (not grouped)
