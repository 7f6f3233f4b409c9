"""Per-example gradients: every backbone and way of tuning against one by one and a plain oracle; rows stay apart."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from client.training.gradients import per_example_gradients as gradients
from client.training.gradients.per_example_gradients import (
    Examples,
    gradients_in_slots,
    gradients_one_by_one,
    slot_chunks,
)
from client.training.round_settings import LocalSettings
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.models.classifier import AnyNetwork, Network, build_network
from common.models.torch_heads import build_head

# Maps of one pixel take a path in torch that has no batched form; it is right, if slower.
pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop:UserWarning")

BACKBONES = (
    "vgg16",
    "resnet18",
    "mobilenet_v3_small",
    "efficientnet_lite0",
    "convnext_atto",
    "vit_tiny_patch16_224",
)
TUNINGS = ("head", "bias", "norm", "lora", "last:1", "full")
SIDE, CLASSES, SLOTS = 32, 3, 2
PLAIN = LocalSettings(0.1, 0.0, 1, 4, label_smoothing=0.1)
TURNING = LocalSettings(0.1, 0.0, 1, 4, rotation_weight=0.5, class_weights=(0.5, 1.0, 4.0))
MakeConfig = Callable[..., RunConfig]
Row = dict[int, np.ndarray]


def config_of(
    make_config: MakeConfig, backbone: str, tuning: str, rotation: float = 0.0, side: int = SIDE
) -> RunConfig:
    """Images stay images also under `head`, as they do with augmentation."""
    return make_config(
        {
            "model.backbone": backbone,
            "model.weights": "random",
            "model.tuning": tuning,
            "data.image-size": side,
            "training.augmentation": "flip",
            "training.rotation-weight": rotation,
        }
    )


def perturbed(network: AnyNetwork, spread: float = 0.02) -> AnyNetwork:
    """Away from zeros, so that no gradient vanishes by the choice of the start."""
    rng = np.random.default_rng(1)
    named = dict(network.named_parameters())
    with torch.no_grad():
        for name in network.trained:
            shape = tuple(named[name].shape)
            named[name].add_(torch.from_numpy(spread * rng.standard_normal(shape, dtype=np.float32)))
    return network


def examples_of(network: AnyNetwork, rows: int, *, side: int = SIDE, turned: bool = False) -> Examples:
    rng = np.random.default_rng(2)
    inputs = network.prepare(rng.integers(0, 256, (rows, side, side, 3), dtype=np.uint8))
    labels = torch.arange(rows) % CLASSES
    turns = (torch.arange(rows) + 1) % 4
    return Examples(inputs, labels, torch.rot90(inputs, 1, (2, 3)).contiguous() if turned else None, turns)


def digests_of(rows: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (rows, 32), dtype=np.uint8)


def as_double(examples: Examples) -> Examples:
    turned = None if examples.turned is None else examples.turned.double()
    return Examples(examples.inputs.double(), examples.labels, turned, examples.turns)


def oracle(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> Iterator[np.ndarray]:
    """Plain backward passes of a loss written out here."""
    named = dict(network.named_parameters())
    for row in range(len(examples)):
        network.zero_grad()
        log_p = network(examples.inputs[row : row + 1]).log_softmax(dim=1)[0]
        smooth = settings.label_smoothing
        loss = -(1 - smooth) * log_p[examples.labels[row]] - smooth * log_p.mean()
        loss = loss * (settings.class_weights[examples.labels[row]] if settings.class_weights else 1)
        if examples.turned is not None:
            turned = network.rotation_logits(examples.turned[row : row + 1]).log_softmax(dim=1)[0]  # type: ignore[union-attr,operator]
            loss = loss - settings.rotation_weight * turned[examples.turns[row]]
        loss.backward()
        parts = [named[name].grad for name in network.trained]
        yield torch.cat([part.ravel() for part in parts]).numpy()  # type: ignore[union-attr]
    network.zero_grad()


def slot_order(digests: np.ndarray, slots: int) -> list[int]:
    return [int(row) for chunk in slot_chunks(digests, slots) for row in chunk if row >= 0]


def assert_all_three_agree(network: AnyNetwork, examples: Examples, settings: LocalSettings) -> None:
    """In float64: float32 rounding may flip a ReLU, and that is no error of a provider."""
    network, examples = network.double(), as_double(examples)
    # Slots in turn: chunks of two rows, and one that is filled up if the number is odd.
    digests = np.arange(len(examples), dtype=np.uint8)[:, None].repeat(32, axis=1)
    chunked = gradients_in_slots(network, examples, digests, settings, slots=SLOTS)
    order = slot_order(digests, SLOTS)
    assert sorted(order) == list(range(len(examples)))
    in_order = examples.select(torch.tensor(order))
    compared = 0
    for wanted, alone, many in zip(
        oracle(network, in_order, settings), gradients_one_by_one(network, in_order, settings), chunked, strict=True
    ):
        scale = np.abs(wanted).max()
        assert scale > 0
        np.testing.assert_allclose(alone, wanted, rtol=1e-4, atol=1e-6 * scale)
        np.testing.assert_allclose(many, wanted, rtol=1e-4, atol=1e-6 * scale)
        compared += 1
    assert compared == len(examples)


# Its dense layers are made and left out, which takes seconds.
HEAVY = "vgg16"
POSSIBLE = [
    pytest.param(backbone, tuning, marks=pytest.mark.soak if backbone == HEAVY and tuning != "last:1" else ())
    for backbone in BACKBONES
    for tuning in TUNINGS
    if (backbone, tuning) != ("vgg16", "norm")
]


@pytest.mark.parametrize(("backbone", "tuning"), POSSIBLE)
def test_per_example_gradients_equal_one_by_one_and_the_oracle(
    make_config: MakeConfig, backbone: str, tuning: str
) -> None:
    network = perturbed(build_network(config_of(make_config, backbone, tuning), (SIDE, SIDE, 3), CLASSES))

    assert_all_three_agree(network, examples_of(network, CLASSES), PLAIN)


def test_tuning_that_a_backbone_cannot_have_is_refused_with_those_it_can(make_config: MakeConfig) -> None:
    with pytest.raises(ConfigError, match="'norm': vgg16 has no such layers; it has head, bias, lora, last:<n>, full"):
        build_network(config_of(make_config, "vgg16", "norm"), (SIDE, SIDE, 3), CLASSES)


@pytest.mark.parametrize("backbone", ["resnet18", "convnext_atto", "vit_tiny_patch16_224"])
def test_gradients_agree_with_the_auxiliary_rotation_task(make_config: MakeConfig, backbone: str) -> None:
    network = perturbed(build_network(config_of(make_config, backbone, "bias", 0.5), (SIDE, SIDE, 3), CLASSES))

    assert "rotation.weight" in network.trained
    assert_all_three_agree(network, examples_of(network, 4, turned=True), TURNING)


def test_gradients_agree_for_an_mlp_head_and_for_the_network_from_scratch(make_config: MakeConfig) -> None:
    head = make_config({"model.head": "mlp", "model.weights": "random"})
    dense = build_network(head, (20,), CLASSES)
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((5, 20), dtype=np.float32))
    assert_all_three_agree(
        perturbed(dense), Examples(inputs, torch.arange(5) % CLASSES, None, torch.zeros(5, dtype=torch.int64)), PLAIN
    )

    weighted = replace(PLAIN, class_weights=(0.5, 1.0, 4.0))
    # More than two convolutions are normalised.
    for side, depth in ((8, 2), (36, 3)):
        config = make_config({"model.backbone": "cnn", "model.cnn-depth": depth})
        scratch = build_network(config, (side, side, 3), CLASSES)
        for settings in (PLAIN, weighted):
            assert_all_three_agree(perturbed(scratch), examples_of(scratch, 5, side=side), settings)


def hostile(examples: Examples) -> Examples:
    """Rows 1 to 5 are huge, not a number, or nothing at all; the others stay."""
    inputs = examples.inputs.clone()
    for row, value in zip(range(1, 6), (1e6, float("nan"), 1e30, float("inf"), 0.0), strict=True):
        inputs[row] = value
    return Examples(inputs, examples.labels, None if examples.turned is None else inputs.flip(-1), examples.turns)


ORDINARY = (0, 6, 7, 8)
COMPANY: tuple[list[int], ...] = ([8, 7, 6, 0], [3, 0, 1, 8], list(range(9)))


def rows_that_changed(provide: Callable[[Examples, np.ndarray], Row], examples: Examples) -> list[Any]:
    """Rows whose gradient differs by one bit from what it is alone, with the company they were in."""
    digests, neighbours = digests_of(len(examples)), hostile(examples)
    alone = {row: provide(examples.select(torch.tensor([row])), digests[[row]])[0] for row in ORDINARY}
    assert all(np.isfinite(gradient).all() and gradient.any() for gradient in alone.values())
    changed = []
    for company in COMPANY:
        found = provide(neighbours.select(torch.tensor(company)), digests[company])
        changed += [
            (row, company)
            for at, row in enumerate(company)
            if row in ORDINARY and not np.array_equal(found[at], alone[row])
        ]
    return changed


def providers(network: AnyNetwork, settings: LocalSettings) -> dict[str, Callable[[Examples, np.ndarray], Row]]:
    def one_by_one(examples: Examples, digests: np.ndarray) -> Row:
        return dict(enumerate(gradients_one_by_one(network, examples, settings)))

    def in_slots(examples: Examples, digests: np.ndarray) -> Row:
        found = gradients_in_slots(network, examples, digests, settings, slots=4)
        return dict(zip(slot_order(digests, 4), found, strict=True))

    return {"one by one": one_by_one, "in slots": in_slots}


@pytest.mark.numerical
@pytest.mark.parametrize(
    "backbone", [pytest.param(name, marks=pytest.mark.soak if name == HEAVY else ()) for name in BACKBONES]
)
def test_gradient_of_an_image_is_bit_identical_in_any_company(make_config: MakeConfig, backbone: str) -> None:
    """An odd side puts rows at odd places in memory, where matrix products may round another way."""
    side = 32 if "vit" in backbone else 33
    config = config_of(make_config, backbone, "bias", 0.5, side)
    network = perturbed(build_network(config, (side, side, 3), CLASSES))
    with torch.no_grad():
        dict(network.named_parameters())["head.weight"].mul_(1e3)
    examples = examples_of(network, 9, side=side, turned=True)
    examples.turned = examples.inputs.flip(-1)

    for name, provide in providers(network, TURNING).items():
        assert rows_that_changed(provide, examples) == [], name


@pytest.mark.numerical
@pytest.mark.parametrize(("backbone", "least"), [("efficientnet_lite0", 30), ("mobilenet_v3_small", 20)])
def test_merged_low_rank_layers_have_the_gradients_of_the_layers_apart(
    make_config: MakeConfig, backbone: str, least: int
) -> None:
    network = perturbed(build_network(config_of(make_config, backbone, "lora"), (SIDE, SIDE, 3), CLASSES))
    for layer in network.modules():
        if hasattr(layer, "lora_A"):
            layer.scaling = dict.fromkeys(layer.scaling, 0.75)
    examples = examples_of(network, 3)

    with gradients.MergedLowRank(network, PLAIN).in_use():
        merged = sum("forward" in vars(layer) for layer in network.modules())

    # And none stays so, since it would keep weights of before.
    assert merged >= least
    assert not any("forward" in vars(layer) for layer in network.modules())
    found = np.stack(list(gradients_one_by_one(network, examples, PLAIN)))
    expected = np.stack(list(oracle(network, examples, PLAIN)))
    assert np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    "change",
    [
        lambda layer, name: layer.lora_dropout.update({name: torch.nn.Dropout(0.5)}),
        lambda layer, name: setattr(
            layer.lora_B[name], "bias", torch.nn.Parameter(torch.ones(len(layer.lora_B[name].weight)))
        ),
        lambda layer, _: setattr(layer, "_disable_adapters", True),
        lambda layer, name: layer.merged_adapters.append(name),
        lambda layer, name: layer.use_dora.update({name: True}),
    ],
    ids=["dropout", "bias", "disabled", "merged already", "dora"],
)
def test_a_low_rank_layer_that_does_more_is_not_merged(make_config: MakeConfig, change: Callable[..., Any]) -> None:
    network = build_network(config_of(make_config, "mobilenet_v3_small", "lora"), (SIDE, SIDE, 3), CLASSES)
    assert len(gradients.MergedLowRank(network, PLAIN)._forwards) >= 20
    for layer in network.modules():
        if hasattr(layer, "lora_A"):
            change(layer, *layer.lora_A)

    assert gradients.MergedLowRank(network, PLAIN)._forwards == []


def test_a_merged_layer_refuses_several_images(make_config: MakeConfig) -> None:
    network = build_network(config_of(make_config, "mobilenet_v3_small", "lora"), (SIDE, SIDE, 3), CLASSES)

    with gradients.MergedLowRank(network, PLAIN).in_use(), pytest.raises(ValueError, match="one image at a time"):
        network(examples_of(network, 2).inputs)


@pytest.mark.numerical
@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_gradient_of_all_layers_is_bit_identical_in_any_company(make_config: MakeConfig, tuning: str) -> None:
    network = perturbed(build_network(config_of(make_config, "mobilenet_v3_small", tuning), (SIDE, SIDE, 3), CLASSES))

    for name, provide in providers(network, PLAIN).items():
        assert rows_that_changed(provide, examples_of(network, 9)) == [], name


@pytest.mark.numerical
@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("width", [33, 1283])
def test_gradient_of_a_head_is_bit_identical_in_any_company_when_rows_have_odd_lengths(kind: str, width: int) -> None:
    network = Network(None, build_head(kind, width, 10), scaling="standard", flat=False, rotation=None)
    network.trained = tuple(name for name, _ in network.named_parameters())
    perturbed(network)
    inputs = torch.from_numpy(np.random.default_rng(0).standard_normal((9, width), dtype=np.float32))
    examples = Examples(inputs, torch.arange(9), None, torch.zeros(9, dtype=torch.int64))

    for name, provide in providers(network, PLAIN).items():
        assert rows_that_changed(provide, examples) == [], name


def test_slot_chunks_hold_every_row_once_in_the_slot_of_its_digest() -> None:
    digests = digests_of(23)

    chunks = list(slot_chunks(digests, 4))

    rows = np.concatenate(chunks)
    assert sorted(rows[rows >= 0]) == list(range(23))
    assert all(len(chunk) == 4 for chunk in chunks)
    slot_of = {int(row): slot for chunk in chunks for slot, row in enumerate(chunk) if row >= 0}
    for chunk in slot_chunks(digests[10:], 4):
        assert all(slot_of[int(row) + 10] == slot for slot, row in enumerate(chunk) if row >= 0)


def test_slot_chunks_of_no_rows_are_none() -> None:
    assert list(slot_chunks(np.zeros((0, 32), dtype=np.uint8), 4)) == []
