"""Heads, and how an image's features are scaled before them."""

import numpy as np
import pytest
import torch

from common.models.torch_heads import HIDDEN, build_head, scale_features

pytestmark = pytest.mark.numerical


def rows(number: int = 5, width: int = 12) -> torch.Tensor:
    return 3 * torch.randn(number, width, generator=torch.Generator().manual_seed(0)) + 1


def test_power_scaling_equals_the_steps_worked_out() -> None:
    features = rows().double()

    scaled = scale_features(features, "power")

    array = features.numpy()
    rooted = np.sign(array) * np.sqrt(np.abs(array))
    centred = rooted - rooted.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(scaled, centred / np.linalg.norm(centred, axis=1, keepdims=True), rtol=1e-12)


@pytest.mark.parametrize(("scaling", "length"), [("power", 1.0), ("standard", 12**0.5), ("unit", 1.0)])
def test_scaled_rows_have_one_length_whatever_comes_in(scaling: str, length: float) -> None:
    features = torch.cat([rows(), 1e4 * rows(), 0.1 * rows()])

    scaled = scale_features(features, scaling)

    torch.testing.assert_close(scaled.norm(dim=1), torch.full((15,), length), rtol=1e-3, atol=0)


@pytest.mark.parametrize("scaling", ["power", "standard"])
def test_centred_scalings_have_no_mean(scaling: str) -> None:
    torch.testing.assert_close(scale_features(rows(), scaling).mean(dim=1), torch.zeros(5), rtol=0, atol=1e-6)


@pytest.mark.parametrize("scaling", ["power", "standard", "unit"])
@pytest.mark.parametrize("value", [0.0, 3.7])
def test_rows_without_variation_stay_finite(scaling: str, value: float) -> None:
    features = torch.full((2, 12), value, requires_grad=True)

    scaled = scale_features(features, scaling)
    scaled.sum().backward()

    assert torch.isfinite(scaled).all()
    if scaling == "power":
        assert not scaled.any()
    if scaling != "power":  # never trained through: the root has no slope at zero
        assert torch.isfinite(features.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("scaling", ["power", "standard", "unit"])
def test_scaling_sees_each_row_alone_and_gives_float32_for_bfloat16(scaling: str) -> None:
    together = scale_features(rows(), scaling)

    torch.testing.assert_close(together, torch.cat([scale_features(row[None], scaling) for row in rows()]))
    assert scale_features(rows().bfloat16(), scaling).dtype == torch.float32


@pytest.mark.parametrize("kind", ["linear", "text"])
def test_linear_heads_have_a_weight_and_no_bias(kind: str) -> None:
    assert {name: tuple(value.shape) for name, value in build_head(kind, 7, 3).named_parameters()} == {"weight": (3, 7)}


def test_mlp_head_is_dense_256_relu_dense() -> None:
    head = build_head("mlp", 7, 3)

    named = dict(head.named_parameters())
    assert HIDDEN == 256
    assert {name: tuple(value.shape) for name, value in named.items()} == {
        "dense.weight": (256, 7),
        "dense.bias": (256,),
        "output.weight": (3, 256),
        "output.bias": (3,),
    }
    features = rows(4, 7)
    hidden = (features @ named["dense.weight"].T + named["dense.bias"]).clamp_min(0)
    torch.testing.assert_close(head(features), hidden @ named["output.weight"].T + named["output.bias"])
