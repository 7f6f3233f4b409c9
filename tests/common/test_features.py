"""Features that depend on one image alone, whatever came with it."""

import hashlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, Features
from datasets import Image as ImageColumn
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image

from common.data.prepared import no_progress
from common.errors import DataError
from common.features import CHUNK, choose_device, extract_features, normalise
from common.models.backbones import BACKBONES, load_backbone

_INFO = BACKBONES["efficientnet_lite0"]
_SILENT = no_progress(0, "")
_MATRICES = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-100, 100, width=32)
)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return load_backbone(_INFO.name)


@pytest.fixture
def threads() -> Iterator[None]:
    """Put torch's number of threads back afterwards."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _images(count: int, *, seed: int = 0, side: int = 40) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)) for _ in range(count)]


def _rows(images: list[Image.Image]) -> Dataset:
    return Dataset.from_dict({"image": images}, features=Features({"image": ImageColumn()}))


def _extract(
    backbone: Any, images: list[Image.Image], progress: Callable[[int], None] = _SILENT
) -> tuple[np.ndarray, np.ndarray]:
    features = np.full((len(images), _INFO.num_features), np.nan, dtype=np.float32)
    digests = np.zeros((len(images), 32), dtype=np.uint8)
    extract_features(
        _rows(images),
        backbone,
        _INFO,
        side=32,
        device="cpu",
        features=features,
        digests=digests,
        progress=progress,
    )
    return features, digests


def test_features_do_not_depend_on_position_or_company(backbone: Any) -> None:
    probe, others = _images(3, seed=1), _images(CHUNK + 4, seed=2)
    alone = np.concatenate([_extract(backbone, [image])[0] for image in probe])

    together, _ = _extract(backbone, [*others, *probe])
    first, _ = _extract(backbone, [*probe[::-1], *others[:7]])

    assert alone.any(axis=1).all()
    assert np.array_equal(together[-3:], alone)
    assert np.array_equal(first[:3][::-1], alone)


@pytest.mark.parametrize("count", [1, CHUNK, CHUNK + 1])
def test_features_come_from_chunks_of_one_size(backbone: Any, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """On some machines the kernels, and so the last bits, change with the size of the batch."""
    sizes: list[int] = []
    real = backbone.forward_features

    def watched(pixels: torch.Tensor) -> torch.Tensor:
        sizes.append(len(pixels))
        maps: torch.Tensor = real(pixels)
        return maps

    monkeypatch.setattr(backbone, "forward_features", watched)
    _extract(backbone, _images(count))

    assert set(sizes) == {CHUNK}


def test_features_do_not_depend_on_the_number_of_threads(
    backbone: Any, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = _images(CHUNK + 1)

    torch.set_num_threads(1)
    one, _ = _extract(backbone, images)
    torch.set_num_threads(2)
    two, _ = _extract(backbone, images)
    monkeypatch.setattr("os.cpu_count", lambda: 1)
    alone, _ = _extract(backbone, images)

    assert np.array_equal(one, two)
    assert np.array_equal(one, alone)
    assert torch.get_num_threads() == 2


def test_features_keep_their_order_when_chunks_run_side_by_side(backbone: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 3)
    probe, others = _images(1, seed=1), _images(1, seed=2)
    one, other = _extract(backbone, probe)[0], _extract(backbone, others)[0]

    features, _ = _extract(backbone, [*others * 7 * CHUNK, *probe])

    assert np.array_equal(features[-1:], one)
    assert (features[:-1] == other).all()


def test_features_are_normalised_and_come_with_digests_of_the_pixels(backbone: Any) -> None:
    images = _images(2)

    features, digests = _extract(backbone, images)

    assert (features.shape, features.dtype) == ((2, 1280), np.float32)
    assert np.linalg.norm(features, axis=1) == pytest.approx([1, 1], abs=1e-5)
    expected = hashlib.sha256(f"RGB{(40, 40)}".encode() + images[1].tobytes()).digest()
    assert digests[1].tobytes() == expected


def test_features_progress_adds_up_to_the_number_of_images(backbone: Any) -> None:
    steps: list[int] = []

    _extract(backbone, _images(2 * CHUNK + 3), steps.append)

    assert steps == [CHUNK, CHUNK, 3]


@given(_MATRICES)
def test_normalise_gives_centred_rows_of_at_most_unit_length(features: np.ndarray) -> None:
    varied = np.ptp(features, axis=1) > 0.1

    rows = normalise(features)

    assert (rows.shape, rows.dtype) == (features.shape, np.float32)
    assert np.linalg.norm(rows, axis=1).max() < 1 + 1e-6
    assert (np.abs(rows.mean(axis=1)) < 1e-3)[varied].all()
    assert (np.linalg.norm(rows, axis=1) > 1 - 1e-6)[varied].all()


@given(_MATRICES)
def test_normalise_treats_each_row_alone(features: np.ndarray) -> None:
    rows = normalise(features)

    assert np.array_equal(normalise(features[::-1])[::-1], rows)
    assert np.array_equal(normalise(features[:1]), rows[:1])


def test_normalise_does_not_depend_on_the_scale_of_the_features() -> None:
    features = np.random.default_rng(0).standard_normal((5, 40)).astype(np.float32)

    np.testing.assert_allclose(normalise(16 * features), normalise(features), rtol=1e-6, atol=1e-7)


def test_normalise_keeps_signs_and_takes_roots() -> None:
    rows = normalise(np.array([[9.0, -9.0, 4.0, -4.0]], dtype=np.float32))

    assert rows[0] == pytest.approx(np.array([3, -3, 2, -2]) / np.sqrt(26), rel=1e-6)


def test_normalise_makes_a_row_of_zeros_zero() -> None:
    assert not normalise(np.zeros((2, 1280), dtype=np.float32)).any()


@pytest.mark.parametrize("value", [0.1, 0.3, 5.5])
def test_normalise_makes_a_row_without_variation_zero(value: float) -> None:
    assert not normalise(np.full((2, 1280), value, dtype=np.float32)).any()


def test_normalise_gives_float32_for_float64() -> None:
    assert normalise(np.array([[4.0, 0.0]])).dtype == np.float32


def test_choose_device_refuses_what_is_not_present(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)

    for wanted in ("cuda", "mps"):
        with pytest.raises(DataError, match=f"system.device='{wanted}' is not present here"):
            choose_device(wanted)
    assert choose_device("auto") == choose_device("cpu") == "cpu"


def test_choose_device_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert choose_device("auto") == "cuda"

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "mps"
    assert choose_device("cpu") == "cpu"
