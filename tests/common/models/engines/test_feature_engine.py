"""Choice of an engine: only one that is right is taken, and the original network stays as it is.

Drives `common.models.engines.acceleration`.
"""

import copy
import logging
from typing import Any

import pytest
import torch
from torch import nn

from common.models.backbone import Backbone
from common.models.backbone_info import load_backbone
from common.models.classifier import Network
from common.models.engines import feature_engine, fused_convolutions
from common.models.engines.acceleration import accelerated
from common.models.engines.feature_engine import CHUNK, choose_engine, fast_dtype, processor
from common.models.engines.fused_convolutions import FusedConvolution
from tests.support.data.weights import SMALL, MakeConfig, config_of

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="needs oneDNN")
SIDE = 32
EAGER = f"eager-{fast_dtype('cpu')}"


def body_of(make_config: MakeConfig) -> Backbone:
    return load_backbone(config_of(make_config, SMALL).backbone_spec)


@pytest.fixture(scope="module")
def body(make_config: MakeConfig) -> Backbone:
    return body_of(make_config)


@pytest.mark.numerical
def test_fused_engine_is_taken_when_it_is_right(body: Backbone) -> None:
    before, threads = copy.deepcopy(body.state_dict()), torch.get_num_threads()

    assert choose_engine(body, SIDE) == f"fused-{fast_dtype('cpu')}"
    assert torch.get_num_threads() == threads
    assert all(torch.equal(before[name], tensor) for name, tensor in body.state_dict().items())


def larger(out: torch.Tensor) -> torch.Tensor:
    return out * 1.002


def by_neighbour(out: torch.Tensor) -> torch.Tensor:
    return out + 2e-5 * out.roll(1, 0) if len(out) == CHUNK else out


def by_place(out: torch.Tensor) -> torch.Tensor:
    return out * (1 + 1e-2 * (torch.arange(len(out)) == CHUNK // 2 - 1)).view(-1, 1, 1, 1)


def not_a_number(out: torch.Tensor) -> torch.Tensor:
    return out * float("nan")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (larger, "in float32 it differs by 0.0"),
        (not_a_number, "in float32 it differs by nan"),
        (by_neighbour, "depend on the other images"),
        (by_place, "depend on the other images"),
    ],
)
def test_wrong_engine_is_not_taken(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: Any, words: str
) -> None:
    forward = FusedConvolution.forward
    caplog.clear()

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING, "bract"):
        patch.setattr(FusedConvolution, "forward", lambda self, maps: fault(forward(self, maps)))
        assert choose_engine(body_of(make_config), SIDE) == EAGER
    assert words in caplog.text


def test_wrong_engine_in_bfloat16_is_not_taken(body: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    forward = FusedConvolution.forward

    def coarse(self: FusedConvolution, maps: torch.Tensor) -> torch.Tensor:
        out = forward(self, maps)
        return out if out.dtype == torch.float32 else torch.round(out)

    monkeypatch.setattr(feature_engine, "fast_dtype", lambda _: "bfloat16")
    monkeypatch.setattr(FusedConvolution, "forward", coarse)

    assert choose_engine(body, SIDE) == "eager-bfloat16"


@pytest.mark.parametrize("error", [AttributeError("no such operator"), RuntimeError("not implemented")])
def test_missing_operators_leave_pytorchs_layers(
    body: Backbone, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(fused_convolutions, "fuse_convolutions", fail)

    assert choose_engine(body, SIDE) == EAGER


@pytest.mark.parametrize(
    ("engine", "device", "dtype", "fused"),
    [
        ("fused-float32", "cpu", "float32", True),
        ("eager-bfloat16", "cpu", "bfloat16", False),
        ("fused-float32", "mps", "float32", False),
    ],
)
def test_accelerated_network_is_of_the_engine_and_the_original_stays(
    body: Backbone, engine: str, device: str, dtype: str, fused: bool
) -> None:
    network = Network(body, nn.Identity(), scaling="power", flat=False, rotation=None)
    network.engine = engine

    fast, number_format = accelerated(network, device)

    assert number_format == dtype
    for each, expected in ((fast, fused), (network, False)):
        assert any(isinstance(layer, FusedConvolution) for layer in each.modules()) == expected


def test_processor_names_limits_that_a_user_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    found = {processor()}
    for name in names:
        monkeypatch.setenv(name, "avx2")
        found.add(processor())

    assert len(found) == 3
