"""What the check of a provider of gradients notices."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from client.training.gradients import gradient_check
from client.training.gradients.gradient_check import largest_distance, providers_agree
from client.training.gradients.per_example_gradients import Examples, gradients_one_by_one
from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork, CnnNetwork, Network, build_network
from common.models.torch_heads import build_head
from tests.support.clients.networks import MakeConfig
from tests.support.simulations.harness import MODES

PLAIN = LocalSettings(0.1, 0.0, 1, 8)
Spoil = Callable[[int, np.ndarray], np.ndarray]


def distance(network: AnyNetwork, shape: tuple[int, ...], spoil: Spoil, *, spared: int = 0) -> float:
    def provider(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
        for row, gradient in enumerate(gradients_one_by_one(network, examples, settings)):
            yield spoil(row, gradient.copy())

    return largest_distance(network, shape, PLAIN, provider, spared=spared)


def one_value(place: int, factor: float) -> Spoil:
    def spoil(row: int, gradient: np.ndarray) -> np.ndarray:
        gradient[place] *= factor if row == 3 else 1
        return gradient

    return spoil


def last_tensor(_: int, gradient: np.ndarray) -> np.ndarray:
    """A bias of 4 values by less than a thousandth of the whole gradient."""
    gradient[-4:] *= 1.0015
    return gradient


def test_check_finds_no_distance_between_equal_gradients() -> None:
    assert distance(CnnNetwork(8, 1, 4), (8, 8, 1), lambda _, gradient: gradient) == 0.0


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _, gradient: gradient * 1.002,
        lambda row, gradient: gradient * 0 if row == 4 else gradient,
        last_tensor,
        one_value(0, np.nan),
        one_value(0, np.inf),
    ],
    ids=["each a little", "one image", "one small tensor", "nan", "infinite"],
)
def test_check_notices_a_wrong_gradient(spoil: Spoil) -> None:
    assert not distance(CnnNetwork(8, 1, 4), (8, 8, 1), spoil) <= 1


@pytest.mark.parametrize(("factor", "spared", "agrees"), [(2.0, 1, True), (np.nan, 1, True), (2.0, 0, False)])
def test_check_spares_as_many_images_as_it_is_told(factor: float, spared: int, agrees: bool) -> None:
    network, spoil = CnnNetwork(8, 1, 4), one_value(0, factor)

    assert (distance(network, (8, 8, 1), spoil, spared=spared) <= 1) == agrees
    assert not distance(network, (8, 8, 1), lambda row, found: found * (1 + row % 2), spared=spared) <= 1


def test_check_sees_layers_below_one_that_starts_with_zeros(make_config: MakeConfig) -> None:
    settings = {**MODES["lora"], "data.image-size": 32, "model.weights": "random"}
    network = build_network(make_config(settings), (32, 32, 3), 3)
    ends = np.cumsum([dict(network.named_parameters())[name].numel() for name in network.trained])
    place = next(name for name in network.trained if ".lora_A." in name)
    end = int(ends[network.trained.index(place)])

    def without(_: int, gradient: np.ndarray) -> np.ndarray:
        gradient[end - 27 : end] = 0
        return gradient

    assert not distance(network, (32, 32, 3), without) <= 1


def test_check_accepts_no_provider_where_all_gradients_are_zero() -> None:
    network = CnnNetwork(8, 1, 1)

    # With one class every gradient is zero, and a provider that computes nothing would agree.
    assert distance(network, (8, 8, 1), lambda _, gradient: gradient) == float("inf")


def test_providers_agree_sees_a_provider_that_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(None, build_head("linear", 6, 3), scaling="standard", flat=False, rotation=None)
    network.trained = ("head.weight",)
    right = gradient_check.gradients_in_slots
    assert providers_agree(network, (6,), PLAIN)

    def one_percent_off(*given: Any, **settings: Any) -> Iterator[np.ndarray]:
        return (1.01 * gradient for gradient in right(*given, **settings))

    monkeypatch.setattr(gradient_check, "gradients_in_slots", one_percent_off)

    assert not providers_agree(network, (6,), PLAIN)


def test_providers_agree_says_no_when_a_layer_has_no_batched_form(monkeypatch: pytest.MonkeyPatch) -> None:
    network = Network(None, build_head("linear", 6, 3), scaling="standard", flat=False, rotation=None)
    network.trained = ("head.weight",)

    def refuses(*_: Any, **__: Any) -> Iterator[np.ndarray]:
        raise RuntimeError("no batching rule")

    monkeypatch.setattr(gradient_check, "gradients_in_slots", refuses)

    assert not providers_agree(network, (6,), PLAIN)
