"""Batched gradients: equal to a plain oracle, and to the bit the same in any slot and company.

The rules are those of `client.training.gradients.slot_rules`.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from client.training.gradients import slot_rules
from client.training.gradients.batched_gradients import BatchedGradients, batched_is_right, slots_are_equal, slots_of
from client.training.gradients.slot_rules import NoRuleError
from client.training.per_example_gradients import Examples, gradients_one_by_one
from common.models.classifier import AnyNetwork, Network, build_network
from common.models.torch_heads import build_head
from tests.client.training.test_per_example_gradients import (
    CLASSES,
    PLAIN,
    SIDE,
    TURNING,
    MakeConfig,
    Row,
    as_double,
    config_of,
    examples_of,
    oracle,
    perturbed,
    rows_that_changed,
)

SLOTS = 4
SHAPE = (SIDE, SIDE, 3)


def dense(width: int = 33, kind: str = "mlp") -> AnyNetwork:
    network = Network(None, build_head(kind, width, CLASSES), scaling="standard", flat=False, rotation=None)
    network.trained = tuple(name for name, _ in network.named_parameters())
    return perturbed(network)


@pytest.mark.parametrize(
    ("backbone", "tuning", "rotation"),
    [
        ("resnet18", "bias", 0.5),
        ("mobilenet_v3_small", "lora", 0.0),
        ("mobilenet_v3_small", "full", 0.5),
        ("vit_tiny_patch16_224", "last:1", 0.0),
        ("convnext_atto", "last:1", 0.0),
    ],
)
def test_batched_gradients_are_those_of_a_plain_oracle(
    make_config: MakeConfig, backbone: str, tuning: str, rotation: float
) -> None:
    network = perturbed(build_network(config_of(make_config, backbone, tuning, rotation), SHAPE, CLASSES)).double()
    settings, examples = (TURNING if rotation else PLAIN), as_double(examples_of(network, 6, turned=bool(rotation)))

    found = [row.copy() for row in BatchedGradients(network, settings, SLOTS)(examples)]

    wanted = np.stack(list(oracle(network, examples, settings)))
    assert np.linalg.norm(found - wanted) <= 1e-6 * np.linalg.norm(wanted)


def test_batched_gradients_of_the_small_network_and_of_a_dense_head_are_those_of_a_plain_oracle(
    make_config: MakeConfig,
) -> None:
    scratch = perturbed(build_network(make_config({"model.backbone": "cnn"}), SHAPE, CLASSES)).double()
    head = dense().double()
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((6, 33)))
    for network, examples in (
        (scratch, as_double(examples_of(scratch, 6))),
        (head, Examples(rows, torch.arange(6) % CLASSES, None, torch.zeros(6, dtype=torch.int64))),
    ):
        found = [row.copy() for row in BatchedGradients(network, PLAIN, SLOTS)(examples)]
        wanted = np.stack(list(oracle(network, examples, PLAIN)))
        assert np.linalg.norm(found - wanted) <= 1e-6 * np.linalg.norm(wanted)


def in_batches(network: AnyNetwork, settings: Any) -> Callable[[Examples, np.ndarray], Row]:
    provide = BatchedGradients(network, settings, SLOTS)
    return lambda examples, _: {row: gradient.copy() for row, gradient in enumerate(provide(examples))}


@pytest.mark.numerical
@pytest.mark.parametrize(
    ("backbone", "tuning"),
    [
        pytest.param("resnet18", "norm", marks=pytest.mark.slow),
        ("mobilenet_v3_small", "full"),
        pytest.param("efficientnet_lite0", "lora", marks=pytest.mark.slow),
        ("convnext_atto", "norm"),
    ],
)
def test_gradient_of_an_image_is_bit_identical_in_any_slot_and_company(
    make_config: MakeConfig, backbone: str, tuning: str
) -> None:
    """An odd side puts slots at odd places in memory. A huge head amplifies any difference in rounding."""
    network = perturbed(build_network(config_of(make_config, backbone, tuning, 0.5, 33), (33, 33, 3), CLASSES))
    with torch.no_grad():
        dict(network.named_parameters())["head.weight"].mul_(1e3)
    examples = examples_of(network, 9, side=33, turned=True)
    examples.turned = examples.inputs.flip(-1)

    assert slots_are_equal(network, (33, 33, 3), TURNING, slots=SLOTS)
    assert rows_that_changed(in_batches(network, TURNING), examples) == []


@pytest.mark.numerical
def test_gradient_of_the_small_network_is_bit_identical_in_any_slot_and_company(make_config: MakeConfig) -> None:
    network = perturbed(build_network(make_config({"model.backbone": "cnn"}), SHAPE, CLASSES))

    assert rows_that_changed(in_batches(network, PLAIN), examples_of(network, 9)) == []


def test_weights_of_a_later_step_are_followed() -> None:
    network, rows = dense(), torch.from_numpy(np.random.default_rng(0).standard_normal((2, 33), dtype=np.float32))
    examples = Examples(rows, torch.arange(2), None, torch.zeros(2, dtype=torch.int64))
    provide = BatchedGradients(network, PLAIN, SLOTS)
    before = [row.copy() for row in provide(examples)]

    perturbed(network, spread=0.5)

    after, alone = [row.copy() for row in provide(examples)], list(gradients_one_by_one(network, examples, PLAIN))
    np.testing.assert_allclose(after, alone, rtol=1e-4, atol=1e-6)
    assert not np.allclose(before, after)


def altered(rule: Callable[..., torch.Tensor], change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., Any]:
    return lambda *given, **named: change(rule(*given, **named))


def mixes(maps: torch.Tensor) -> torch.Tensor:
    return maps + 1e-6 * maps.mean(dim=0, keepdim=True)


def rounds_one_slot_otherwise(maps: torch.Tensor) -> torch.Tensor:
    return torch.cat([maps[:-1], maps[-1:] * (1 + 2.0**-23)])


def one_percent_off(maps: torch.Tensor) -> torch.Tensor:
    return 1.01 * maps


@pytest.mark.parametrize("change", [mixes, rounds_one_slot_otherwise, one_percent_off])
def test_self_check_sees_a_rule_that_is_wrong(
    change: Callable[[torch.Tensor], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, linear = dense(), torch.nn.functional.linear
    assert batched_is_right(network, (33,), PLAIN, slots=SLOTS)

    monkeypatch.setitem(slot_rules._RULES, linear, altered(slot_rules._RULES[linear], change))

    assert not batched_is_right(network, (33,), PLAIN, slots=SLOTS)


def test_self_check_says_no_where_gradients_are_zeros_or_there_is_no_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    network = dense()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
    assert not slots_are_equal(network, (33,), replace(PLAIN, class_weights=(0.0, 1.0, 1.0)), slots=SLOTS)

    monkeypatch.delitem(slot_rules._RULES, torch.nn.functional.linear)
    assert not batched_is_right(dense(), (33,), PLAIN, slots=SLOTS)


def test_self_check_neither_changes_nor_follows_the_weights_of_a_round() -> None:
    network = dense()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(torch.nan)

    assert batched_is_right(network, (33,), PLAIN, slots=SLOTS)
    assert all(parameter.isnan().all() for parameter in network.parameters())


def test_use_of_a_trained_parameter_without_a_rule_is_an_error(make_config: MakeConfig) -> None:
    """Layers' own scales in ConvNeXt, and the class token of a vision transformer."""
    for backbone, use in (("convnext_atto", "reshape"), ("vit_tiny_patch16_224", "expand")):
        network = build_network(config_of(make_config, backbone, "full"), SHAPE, CLASSES)

        with pytest.raises(NoRuleError, match=use):
            BatchedGradients(network, PLAIN, SLOTS).chunk(examples_of(network, 1))


def test_batch_statistics_have_no_rule() -> None:
    network = dense()
    network.head = torch.nn.Sequential(torch.nn.Linear(33, CLASSES), torch.nn.BatchNorm1d(CLASSES))  # type: ignore[assignment]
    network.trained = tuple(name for name, _ in network.named_parameters())
    rows = torch.zeros((2, 33))

    with pytest.raises(NoRuleError, match="see each other"):
        BatchedGradients(network, PLAIN, SLOTS).chunk(Examples(rows, torch.arange(2), None, torch.zeros(2).long()))


@pytest.mark.parametrize(("values", "slots"), [(10, 16), (1 << 21, 16), (1 << 22, 8), (1 << 23, 4), (1 << 24, 1)])
def test_slots_fit_into_a_bound_of_memory(values: int, slots: int) -> None:
    network = dense()
    network.head = torch.nn.Linear(values, 1, bias=False, device="meta")  # type: ignore[assignment]
    network.trained = ("head.weight",)

    assert slots_of(network) == slots
