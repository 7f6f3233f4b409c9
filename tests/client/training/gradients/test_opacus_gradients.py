"""Gradients by Opacus against one image at a time, what they refuse, and the network that they leave as it was.

Drives `common.privacy.batched_gradients`.
"""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import client.training.gradients.opacus_gradients as provider
from client.training import network_sgd
from client.training.gradients.opacus_gradients import check_opacus, opacus_gradients
from client.training.gradients.per_example_gradients import Examples, gradients_one_by_one
from client.training.network_sgd import TrainingSet, train_network_privately
from client.training.round_settings import LocalSettings, settings_of
from client.training.trainer import Trainer, _local
from common.errors import ConfigError, PrivacyError
from common.models.classifier import AnyNetwork, CnnNetwork, build_network, load_arrays
from common.models.initialization import initial_arrays
from common.privacy.batched_gradients import NOTE
from common.privacy.plan import PrivacyPlan
from tests.support.clients.networks import MakeConfig, flat, repeating, rows_of, start
from tests.support.paths import ROOT
from tests.support.simulations.harness import MODES, NETWORK, harness_of

pytestmark = pytest.mark.numerical
CLASSES = ("a", "b", "c", "d")
OPACUS = {"training.gradients": "opacus"}
PLAN = PrivacyPlan("dp-sgd", "image", 20, 0.6, 3, 1, 0.5, 1.0, 1e-5)
SMALL = {"data.image-size": 32, "model.weights": "random"}
NETWORKS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "cnn": ({"model.backbone": "cnn"}, (8, 8, 3)),
    # With one channel torch lays maps out with channels last, where Opacus' own hook is wrong.
    "cnn, gray": ({"model.backbone": "cnn"}, (8, 8, 1)),
    "cnn, normalised": ({"model.backbone": "cnn", "model.cnn-depth": 3}, (16, 16, 3)),
    "mlp head": (NETWORK | {"model.head": "mlp"}, (96,)),
    "bias": (NETWORK | SMALL | {"model.tuning": "bias"}, (32, 32, 3)),
    "norm": (NETWORK | SMALL | {"model.tuning": "norm"}, (32, 32, 3)),
    "norm with fused activations": (
        SMALL | {"model.backbone": "timm:mobilenetv3_small_050", "model.tuning": "norm"},
        (32, 32, 3),
    ),
    "lora": (NETWORK | SMALL | {"model.tuning": "lora"}, (32, 32, 3)),
    "last:1": (NETWORK | SMALL | {"model.tuning": "last:1"}, (32, 32, 3)),
    "full": (NETWORK | SMALL | {"model.tuning": "full"}, (32, 32, 3)),
    "rotation": (NETWORK | SMALL | {"model.tuning": "norm", "training.rotation-weight": 0.5}, (32, 32, 3)),
}
# A transformer's class token belongs to no layer that gives a gradient of each example.
WRONG = {"model.backbone": "timm:test_vit", "model.tuning": "full", "training.gradients": "opacus"}


def network_of(make_config: MakeConfig, case: str) -> tuple[AnyNetwork, Examples, LocalSettings]:
    """A network with no layer of zeros, and five examples."""
    more, shape = NETWORKS[case]
    config, rng = make_config(more | OPACUS), np.random.default_rng(4)
    network, arrays = build_network(config, shape, 4), initial_arrays(config, shape, CLASSES)
    load_arrays(
        network, {name: (a + 0.1 * rng.standard_normal(a.shape)).astype(np.float32) for name, a in arrays.items()}
    )
    images = rng.integers(0, 256, (5, *shape), np.uint8)
    if len(shape) == 1:
        images = rng.standard_normal((5, *shape)).astype(np.float32)
    rows = TrainingSet(images, np.arange(5) % 4, rng.integers(0, 256, (5, 32), np.uint8))
    settings = settings_of(config, server_round=1, stream=b"r")
    return network, rows.batch(network, np.arange(5), settings, step=0), settings


@pytest.mark.parametrize("case", NETWORKS)
@pytest.mark.parametrize("physical", [None, 2])
def test_gradients_equal_those_of_one_image_at_a_time(make_config: MakeConfig, case: str, physical: int | None) -> None:
    network, examples, settings = network_of(make_config, case)

    found = np.stack(list(opacus_gradients(network, examples, replace(settings, physical_batch_size=physical))))

    alone = np.stack(list(gradients_one_by_one(network, examples, settings)))
    assert (found.shape, found.dtype) == (alone.shape, np.float32)
    assert (np.linalg.norm(found - alone, axis=1) <= 1e-4 * np.linalg.norm(alone, axis=1)).all()


@pytest.mark.parametrize("case", NETWORKS)
def test_check_accepts_a_network_and_leaves_no_trace(make_config: MakeConfig, case: str) -> None:
    network, examples, settings = network_of(make_config, case)
    before, shape = traces(network), NETWORKS[case][1]
    alone = np.stack(list(gradients_one_by_one(network, examples, settings)))

    check_opacus(network, shape, settings, "this")
    list(opacus_gradients(network, examples, settings))

    assert traces(network) == before
    assert np.array_equal(np.stack(list(gradients_one_by_one(network, examples, settings))), alone)


def traces(network: AnyNetwork) -> list[Any]:
    """What Opacus or a check could have left at modules and parameters."""
    found: list[Any] = []
    for module in network.modules():
        attributes = vars(module)
        found.append((sorted(attributes), module.training, attributes.get("inplace")))
        found.append([len(attributes[key]) for key in ("_forward_hooks", "_backward_hooks")])
        found.append(attributes["_is_full_backward_hook"])
    for parameter in network.parameters():
        found.append((sorted(vars(parameter)), parameter.grad is None, parameter.detach().numpy().tobytes()))
    return found


class _Sharing(CnnNetwork):
    """A network that uses a weight outside of its layer, where no hook is."""

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        return super().pooled(maps) * self.dense.weight.abs().mean()


class _Failing(CnnNetwork):
    """A network that cannot take more than one image at once."""

    def feature_maps(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > 1:
            raise ValueError("one at a time")
        return super().feature_maps(pixels)


@pytest.mark.parametrize(
    ("kind", "why"), [(_Sharing, "gives other gradients than one image"), (_Failing, r"fails \(ValueError\)")]
)
def test_check_refuses_a_network_that_opacus_gets_wrong_and_leaves_no_trace(kind: type[CnnNetwork], why: str) -> None:
    network = kind(8, 1, 4).eval()
    before = traces(network)

    with pytest.raises(ConfigError, match=f"Opacus {why}.*this network: set training.gradients=auto"):
        check_opacus(network, (8, 8, 1), LocalSettings(0.1, 0.0, 1, 8), "this network")

    assert traces(network) == before


class _Folding(CnnNetwork):
    """A network with a layer that sees two rows of each image."""

    def pooled(self, maps: torch.Tensor) -> torch.Tensor:
        twice = torch.relu(self.dense(maps.flatten(1).repeat(2, 1)))
        return (twice[: len(maps)] + twice[len(maps) :]) / 2


def test_gradients_of_other_rows_or_of_none_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network, settings = _Folding(8, 1, 4).eval(), LocalSettings(0.1, 0.0, 1, 8)
    examples = rows_of(5).batch(network, np.arange(5), settings, step=0)
    before = traces(network)

    for _ in ("two rows an image", "none"):
        with pytest.raises(PrivacyError, match="no gradient of each example"):
            list(opacus_gradients(network, examples, settings))
        assert traces(network) == before
        monkeypatch.setattr(provider._Hooks, "capture_backprops_hook", lambda *_, **__: None)


def test_dropout_stays_off_in_the_layers_that_hooks_switch_to_training(make_config: MakeConfig) -> None:
    network, examples, settings = network_of(make_config, "norm")
    for module in list(network.modules()):
        if hasattr(module, "drop"):
            module.drop = nn.Dropout(0.5).eval()  # type: ignore[assignment]

    first, second = (np.stack(list(opacus_gradients(network, examples, settings))) for _ in range(2))

    assert np.array_equal(first, second)


def test_private_training_takes_the_named_gradients_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    network, settings = CnnNetwork(8, 1, 4), LocalSettings(0.1, 0.0, 1, 12)

    def release(local: LocalSettings) -> np.ndarray:
        return flat(train_network_privately(network, start(), rows_of(20), PLAN, local, repeating()))

    alone = release(settings)
    for other in ("gradients_one_by_one", "gradients_in_slots"):
        monkeypatch.setattr(network_sgd, other, None)
    found = release(replace(settings, gradients="opacus"))

    assert np.abs(found - alone).max() <= 1e-5


def test_trainer_checks_each_network_once_before_any_weights_of_a_message(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[AnyNetwork] = []
    monkeypatch.setattr(provider, "check_opacus", lambda network, *_: checked.append(network))
    _local.__dict__.clear()
    trainer = Trainer(make_config(NETWORKS["cnn"][0] | OPACUS), (8, 8, 3), CLASSES)

    for _ in range(2):
        trainer.check_gradients()

    assert checked == [trainer._network()]
    _local.__dict__.clear()
    Trainer(make_config(NETWORKS["cnn"][0]), (8, 8, 3), CLASSES).check_gradients()
    assert len(checked) == 1


def test_client_refuses_before_it_agrees_where_opacus_gets_the_network_wrong(tmp_path: Path) -> None:
    harness = harness_of(tmp_path, WRONG)

    refused = harness.ask("query", harness.images, ledger="one")

    assert refused.failure == "CONFIG"
    assert any("model.backbone='timm:test_vit' and model.tuning='full'" in line for line in refused.lines)
    with harness.session(harness.images, ledger="one").home.holder("one").open_session() as session:  # type: ignore[union-attr]
        assert [entry.kind for entry in session.ledger.entries("1", ())] == ["genesis"]


def test_client_notes_gradients_in_batches_before_it_answers(tmp_path: Path) -> None:
    for named, notes in (("opacus", [NOTE]), ("auto", [])):
        harness = harness_of(tmp_path, MODES["cnn"] | {"training.gradients": named})
        assert not harness.ask("query", harness.images, ledger=named).failure
        with harness.session(harness.images, ledger=named).home.holder(named).open_session() as session:  # type: ignore[union-attr]
            found = session.ledger.entries("kind = 'note'", ())
        assert [entry.event["note"] for entry in found] == notes


def test_importing_opacus_adds_no_handler_that_would_print_each_line_twice() -> None:
    code = (
        "import logging; import client.training.gradients.opacus_gradients; "
        "print(logging.getLogger().handlers, logging.getLogger().level)"
    )

    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)

    assert found.stdout.strip() == f"[] {logging.WARNING}"
