"""Training of a whole network: against plain torch, in physical batches, and under differential privacy.

Drives `client.training.batch_buffer`.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from opacus import GradSampleModule

from client.training import network_sgd
from client.training.dp_sgd import PrivateStreams
from client.training.gradients.per_example_gradients import Examples, gradients_one_by_one
from client.training.network_sgd import TrainingSet, network_logits, train_network, train_network_privately
from client.training.round_settings import LocalSettings
from common.models.classifier import AnyNetwork, CnnNetwork, build_network, load_arrays
from common.models.initialization import initial_arrays
from common.models.small_cnn import initial_cnn, to_pixels
from common.privacy.plan import PrivacyPlan
from common.randomness import public_stream
from tests.support.clients.networks import (
    SETTINGS,
    Arrays,
    MakeConfig,
    cnn,
    flat,
    load_cnn,
    repeating,
    rows_of,
    start,
    tuned_network,
)

pytestmark = pytest.mark.numerical


@pytest.fixture(scope="module")
def tuned(make_config: MakeConfig) -> tuple[AnyNetwork, Arrays]:
    return tuned_network(make_config)


def loss_of(network: AnyNetwork, arrays: Arrays, rows: TrainingSet) -> float:
    logits = torch.from_numpy(network_logits(network, arrays, rows.images, SETTINGS))
    return float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows.labels)))


def test_example_gradients_equal_those_of_opacus() -> None:
    arrays, rows, network = start(13, 3), rows_of(6, 13, 3), cnn(13, 3)
    load_arrays(network, arrays)
    oracle = GradSampleModule(load_cnn(arrays, rows.images.shape[1:]), loss_reduction="sum")
    logits = oracle(to_pixels(rows.images))
    torch.nn.functional.cross_entropy(logits, torch.from_numpy(rows.labels), reduction="sum").backward()
    expected = torch.cat([p.grad_sample.reshape(6, -1) for p in oracle.parameters()], dim=1).numpy()

    ours = gradients_one_by_one(network, rows.batch(network, np.arange(6), SETTINGS, step=0), SETTINGS)

    for row, gradient in enumerate(ours):
        assert np.linalg.norm(gradient - expected[row]) <= 1e-5 * np.linalg.norm(expected[row])


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"momentum": 0.9, "weight_decay": 0.01},
        {"optimizer": "adamw", "weight_decay": 0.1},
        {"label_smoothing": 0.2},
        {"proximal_mu": 0.5},
    ],
    ids=["sgd", "momentum", "adamw", "smoothing", "prox"],
)
def test_train_network_equals_a_loop_written_here(more: dict[str, Any]) -> None:
    arrays, rows = start(), rows_of(20)
    local = replace(LocalSettings(0.02, 0.0, 2, 8), **more)

    after = train_network(cnn(), arrays, rows, local, public_stream(0, "batches"))

    twin = load_cnn(arrays, (8, 8, 1))
    origin = [parameter.detach().clone() for parameter in twin.parameters()]
    options: dict[str, Any] = {"lr": local.learning_rate, "weight_decay": local.weight_decay}
    optimizer: torch.optim.Optimizer = (
        torch.optim.AdamW(twin.parameters(), **options)
        if local.optimizer == "adamw"
        else torch.optim.SGD(twin.parameters(), momentum=local.momentum, **options)
    )
    rng = public_stream(0, "batches")
    for _ in range(2):
        order = rng.permutation(20)
        for at in range(0, 20, 8):
            batch = order[at : at + 8]
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(
                twin(to_pixels(rows.images[batch])),
                torch.from_numpy(rows.labels[batch]),
                label_smoothing=local.label_smoothing,
            )
            pull = sum(((p - o) ** 2).sum() for p, o in zip(twin.parameters(), origin, strict=True))
            (loss + local.proximal_mu / 2 * pull).backward()
            optimizer.step()
    for name, parameter in twin.named_parameters():
        np.testing.assert_allclose(after[name], parameter.detach().numpy(), rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("physical", [1, 3, 8, 50])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_physical_batches_do_not_change_the_maths(
    tuned: tuple[AnyNetwork, Arrays], physical: int, momentum: float
) -> None:
    network, arrays = tuned
    whole = LocalSettings(
        0.05, momentum, 1, 8, augmentation=("crop", "flip"), label_smoothing=0.1, proximal_mu=0.1, stream=b"r"
    )
    rows = rows_of(20, 32, 3)

    expected = train_network(network, arrays, rows, whole, public_stream(0, "batches"))
    found = train_network(
        network, arrays, rows, replace(whole, physical_batch_size=physical), public_stream(0, "batches")
    )

    assert np.linalg.norm(flat(found) - flat(expected)) <= 1e-4 * np.linalg.norm(flat(expected) - flat(arrays))


def test_train_network_lowers_the_loss_and_repeats() -> None:
    arrays, rows, network = start(), rows_of(64), cnn()

    runs = [train_network(network, arrays, rows, SETTINGS, public_stream(0, "batches")) for _ in range(2)]

    assert loss_of(network, runs[0], rows) < loss_of(network, arrays, rows)
    assert all(np.array_equal(runs[0][name], runs[1][name]) for name in arrays)


def test_training_computes_in_another_layout_and_leaves_no_trace_in_later_results() -> None:
    arrays, rows, network = start(32, 3), rows_of(20, 32, 3), cnn(32, 3)
    layouts: set[bool] = set()

    def look(module: torch.nn.Module, *_: Any) -> None:
        layouts.add(module.get_parameter("weight").is_contiguous(memory_format=torch.channels_last))

    def results() -> list[np.ndarray]:
        load_arrays(network, arrays)
        examples = rows.batch(network, np.arange(3), SETTINGS, step=0)
        return [
            network_logits(network, arrays, rows.images, SETTINGS),
            *gradients_one_by_one(network, examples, SETTINGS),
        ]

    before, hook = results(), network.get_submodule("conv2").register_forward_hook(look)
    train_network(network, arrays, rows, SETTINGS, public_stream(0, "batches"))
    hook.remove()

    assert layouts == {True}
    assert all(np.array_equal(*pair) for pair in zip(before, results(), strict=True))


class Textbook(CnnNetwork):
    """The small network as it is usually written: rectified before pooling, gradients in any layout."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        maps, normalised = pixels, len(self.convolutions) > 2
        for name in self.convolutions:
            maps = self.get_submodule(name)(maps)
            maps = torch.nn.functional.group_norm(maps, 8) if normalised else maps
            maps = torch.nn.functional.max_pool2d(torch.relu(maps), 2)
        return maps / self.last_side if normalised else maps

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.dense(maps.flatten(1)))


@pytest.mark.parametrize("depth", [2, 3])
def test_training_gives_the_bits_of_the_textbook_network_under_torchs_own_sgd(
    monkeypatch: pytest.MonkeyPatch, depth: int
) -> None:
    arrays = initial_cnn((32, 32, 3), 4, public_stream(0, "weights"), depth)
    local, rows = LocalSettings(0.05, 0.0, 2, 8), rows_of(30, 32, 3)
    own, textbook = CnnNetwork(32, 3, 4, depth), Textbook(32, 3, 4, depth)

    found = train_network(own, arrays, rows, local, public_stream(0, "batches"))

    monkeypatch.setattr(
        network_sgd, "_optimizer", lambda trained, settings: torch.optim.SGD(trained, lr=settings.learning_rate)
    )
    expected = train_network(textbook, arrays, rows, local, public_stream(0, "batches"))
    assert all(np.array_equal(found[name], expected[name]) for name in arrays)
    assert not np.array_equal(found["conv1.weight"], arrays["conv1.weight"])


def test_gradients_reach_the_last_maps_in_the_layout_of_the_filters(monkeypatch: pytest.MonkeyPatch) -> None:
    network, layouts = cnn(32, 3), set[bool]()
    maps_of = CnnNetwork.feature_maps

    def watched(self: CnnNetwork, pixels: torch.Tensor) -> torch.Tensor:
        maps = maps_of(self, pixels)
        # A hook on the maps' own node sees what their pooling is given.
        maps.grad_fn.register_prehook(  # type: ignore[union-attr]
            lambda gradients: layouts.add(gradients[0].is_contiguous(memory_format=torch.channels_last))
        )
        return maps

    monkeypatch.setattr(CnnNetwork, "feature_maps", watched)
    train_network(network, start(32, 3), rows_of(20, 32, 3), SETTINGS, public_stream(0, "batches"))
    in_training = set(layouts)
    layouts.clear()
    examples = rows_of(3, 32, 3).batch(network, np.arange(3), SETTINGS, step=0)
    next(gradients_one_by_one(network, examples, SETTINGS))

    assert in_training == {True}
    # Gradients of single examples must stay as they are, whatever was trained before.
    assert layouts == {False}


def test_train_network_leaves_the_incoming_arrays_alone_and_changes_nothing_without_rows() -> None:
    arrays = start()
    before = {name: array.copy() for name, array in arrays.items()}

    train_network(cnn(), arrays, rows_of(20), SETTINGS, public_stream(0, "batches"))
    empty = train_network(cnn(), arrays, rows_of(0), SETTINGS, public_stream(0, "batches"))

    assert all(np.array_equal(arrays[name], before[name]) for name in arrays)
    assert all(np.array_equal(empty[name], before[name]) for name in arrays)


def test_rotation_task_trains_its_own_head_and_the_backbone(make_config: MakeConfig) -> None:
    config = make_config(
        {
            "model.backbone": "timm:mobilenetv3_small_050",
            "model.weights": "random",
            "model.tuning": "norm",
            "data.image-size": 32,
            "training.rotation-weight": 1.0,
        }
    )
    network, arrays = build_network(config, (32, 32, 3), 4), initial_arrays(config, (32, 32, 3), tuple("abcd"))
    local = LocalSettings(0.1, 0.0, 3, 8, rotation_weight=1.0)

    after = train_network(network, arrays, rows_of(24, 32, 3), local, public_stream(0, "batches"))

    assert after["rotation.weight"].any()
    assert any(not np.array_equal(after[name], arrays[name]) for name in after if name.startswith("body."))


@pytest.mark.parametrize("private", [False, True])
def test_autocast_gives_nearly_the_same_step(tuned: tuple[AnyNetwork, Arrays], private: bool) -> None:
    network, arrays = tuned
    rows, exact = rows_of(8, 32, 3), LocalSettings(0.05, 0.0, 1, 8)
    plan = PrivacyPlan("dp-sgd", "image", 8, 1.0, 1, 1, 1e3, 1e-12, 1e-5)

    def step(local: LocalSettings) -> np.ndarray:
        if private:
            return flat(train_network_privately(network, arrays, rows, plan, local, repeating())) - flat(arrays)
        return flat(train_network(network, arrays, rows, local, public_stream(0, "batches"))) - flat(arrays)

    full, half = step(exact), step(replace(exact, autocast="bfloat16"))

    assert not np.array_equal(full, half)
    assert full @ half / (np.linalg.norm(full) * np.linalg.norm(half)) > 0.95


@pytest.mark.parametrize("rows", [0, 1, 130])
def test_network_logits_take_any_number_of_rows(rows: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (rows, 8, 8, 1), dtype=np.uint8)

    logits = network_logits(cnn(), start(), images, SETTINGS)

    assert (logits.shape, logits.dtype) == ((rows, 4), np.float32)
    with torch.inference_mode():
        expected = load_cnn(start(), (8, 8, 1))(to_pixels(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_arrays_keep_the_order_of_the_networks_parameters() -> None:
    assert tuple(start()) == cnn().trained == tuple(name for name, _ in load_cnn(start(), (8, 8, 1)).named_parameters())


def test_mlp_head_on_cached_features_trains_both_ways(make_config: MakeConfig) -> None:
    config = make_config({"model.tuning": "head", "model.head": "mlp", "model.weights": "random"})
    rng = np.random.default_rng(0)
    rows = TrainingSet(
        rng.standard_normal((30, 20)).astype(np.float32), np.arange(30) % 3, rng.integers(0, 256, (30, 32), np.uint8)
    )
    network, arrays = build_network(config, (20,), 3), initial_arrays(config, (20,), ("a", "b", "c"))
    plan, local = PrivacyPlan("dp-sgd", "image", 30, 0.5, 2, 1, 1.0, 1.0, 1e-5), LocalSettings(0.1, 0.0, 20, 10)

    plain = train_network(network, arrays, rows, local, public_stream(0, "batches"))
    private = train_network_privately(network, arrays, rows, plan, local, PrivateStreams.fresh())

    assert loss_of(network, plain, rows) < loss_of(network, arrays, rows)
    assert all(not np.array_equal(private[name], arrays[name]) for name in arrays)


def test_batch_of_features_needs_no_digest_of_views() -> None:
    rows = rows_of(4)

    examples = rows.batch(cnn(), np.arange(4), SETTINGS, step=0)

    assert isinstance(examples, Examples)
    assert examples.turned is None
    assert not examples.turns.any()
