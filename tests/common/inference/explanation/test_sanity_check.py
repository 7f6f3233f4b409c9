"""The check tells maps that depend on the model from those that do not, part by part."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from common.inference.explanation.sanity_check import check_sanity, randomised, rank_correlation
from common.models.classifier import CnnNetwork
from common.models.frozen_batch_norm import FrozenBatchNorm


@pytest.fixture(name="network")
def network_fixture() -> CnnNetwork:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return CnnNetwork(16, 1, 3).eval()


def of_weights(*names: str) -> Any:
    """An explainer whose maps are made of some weights of the network."""

    def explain(network: nn.Module) -> np.ndarray:
        named = dict(network.named_parameters())
        rows = [[named[name].detach().numpy().reshape(-1)[at : at + 64] for name in names] for at in (0, 64)]
        return np.prod(rows, axis=1)

    return explain


@pytest.mark.parametrize(
    ("names", "head", "backbone"),
    [
        (("output.weight",), True, False),
        (("dense.weight",), False, True),
        (("output.weight", "dense.weight"), True, True),
    ],
)
def test_what_maps_are_made_of_is_found(
    network: CnnNetwork, names: tuple[str, ...], head: bool, backbone: bool
) -> None:
    found = check_sanity(network, of_weights(*names))

    assert (found.depends_on_head, found.depends_on_backbone) == (head, backbone)
    assert found.holds == (head and backbone)
    assert found.images == 2


@pytest.mark.parametrize("constant", [np.zeros((3, 4, 4)), np.arange(48.0).reshape(3, 4, 4)])
def test_a_constant_map_fails(network: CnnNetwork, constant: np.ndarray) -> None:
    found = check_sanity(network, lambda _: constant)

    assert (found.head, found.backbone, found.holds) == (1.0, 1.0, False)


def test_a_map_that_keeps_its_order_fails_whatever_its_size(network: CnnNetwork) -> None:
    """A map of edges, which changes its strength with the network alone, is such a one."""
    rng, edges = np.random.default_rng(0), np.random.default_rng(1).random((3, 5, 5))

    assert not check_sanity(network, lambda _: edges * rng.uniform(1, 100)).holds


@pytest.mark.parametrize("part", ["head", "backbone"])
def test_one_part_is_drawn_anew_and_the_network_stays_as_it_is(network: CnnNetwork, part: str) -> None:
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}

    changed, again, other = (randomised(network, part, draw) for draw in (0, 0, 1))

    weights = {name for name in before if name.endswith("weight")}
    wanted = {name for name in weights if name.startswith("output.") == (part == "head")}
    assert {n for n in weights if not torch.equal(changed.get_parameter(n), before[n])} == wanted
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    name = min(wanted)
    assert torch.equal(changed.get_parameter(name), again.get_parameter(name))
    assert not torch.equal(changed.get_parameter(name), other.get_parameter(name))


def test_statistics_of_batch_norm_fit_the_new_weights(network: CnnNetwork) -> None:
    """Those of the old weights would send signals far out of the range of the activations."""
    norm = nn.BatchNorm2d(4)
    assert norm.running_mean is not None
    norm.running_mean.fill_(50.0)
    network.add_module("norm", FrozenBatchNorm(norm))

    changed = randomised(network, "backbone", 0)

    assert changed.get_buffer("norm.running_mean").abs().max() == 0
    assert changed.get_buffer("norm.running_var").min() == 1
    assert randomised(network, "head", 0).get_buffer("norm.running_mean").min() == 50


def test_flat_maps_are_alike_and_a_flat_map_is_unlike_any_other() -> None:
    flat, slope = np.zeros((3, 3)), np.arange(9.0).reshape(3, 3)

    assert (rank_correlation(flat, flat + 1), rank_correlation(flat, slope)) == (1.0, 0.0)
    assert (rank_correlation(slope, np.exp(slope)), rank_correlation(slope, -slope)) == (1.0, -1.0)
