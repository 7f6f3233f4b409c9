"""The key of cached inputs changes with everything that the inputs follow from.

A key without one of its parts serves the features of another backbone, and nothing looks wrong but the accuracy.
Drives `common.data.preprocessing`, `common.models.backbone`.
"""

import os
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from common.config.schema import RunConfig
from common.data import preprocessing, scan
from common.data.inputs import input_format
from common.data.preprocessing import prepare
from common.data.sources import base_source
from common.data.sources.base_source import ImageSource
from common.data.tones.rendering import Tones
from common.data.tones.row_names import row_names
from common.models import backbone_info
from common.models.backbone_info import BackboneInfo
from common.models.names import BackboneSpec

MakeConfig = Callable[..., RunConfig]
INFO = BackboneInfo("ab" * 32, "packaged", 8, 32, 128, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), "bicubic", "eager-float32")
OTHER: dict[str, Any] = {
    "sha256": "cd" * 32,
    "image_size": 160,
    "mean": (1.0, 2.0, 3.5),
    "std": (4.0, 5.0, 6.5),
    "interpolation": "bilinear",
    "engine": "fused-float32",
}
# They follow from the weights, or say only where the weights came from.
FOLLOWS = {"origin", "num_features", "num_flattened"}
NO_IMAGES: dict[str, Any] = {
    "digests": np.zeros((0, 32), np.uint8),
    **{name: np.zeros(0, np.int8) for name in ("depths", "channels", "transparency")},
    "plain": np.zeros(0, bool),
}


def test_feature_key_changes_with_every_fact_about_the_backbone(make_config: MakeConfig) -> None:
    model = make_config().model

    keys = {
        field: input_format.features_format(replace(INFO, **{field: OTHER[field]}), model, "cpu").key for field in OTHER
    }

    assert {field.name for field in fields(BackboneInfo)} == set(OTHER) | FOLLOWS, "a new fact belongs to the key, too"
    assert len({*keys.values(), input_format.features_format(INFO, model, "cpu").key}) == 1 + len(OTHER)


def test_feature_key_changes_with_backbone_head_device_and_format(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [
        make_config(settings).model for settings in ({}, {"model.head": "mlp"}, {"model.backbone": "timm:test_resnet"})
    ]

    keys = [input_format.features_format(INFO, model, "cpu").key for model in models]
    keys.append(input_format.features_format(INFO, models[0], "cuda").key)
    monkeypatch.setattr(input_format, "FORMAT", input_format.FORMAT + 1)
    keys.append(input_format.features_format(INFO, models[0], "cpu").key)

    assert len(set(keys)) == 5


def test_pixel_key_changes_with_side_channels_interpolation_and_format(monkeypatch: pytest.MonkeyPatch) -> None:
    # 12 and 3 make the same digits as 1 and 23.
    wanted = [(12, 3, "bicubic"), (1, 23, "bicubic"), (12, 1, "bicubic"), (8, 3, "bicubic"), (12, 3, "bilinear")]

    keys = [input_format.pixels_format(*parts).key for parts in wanted]
    monkeypatch.setattr(input_format, "FORMAT", input_format.FORMAT + 1)
    keys.append(input_format.pixels_format(*wanted[0]).key)

    assert len(set(keys)) == 6


def test_prepared_key_changes_with_the_content_and_the_class_list(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = [
        SimpleNamespace(fingerprint=content, classes=classes, usable=np.zeros(0, bool), **NO_IMAGES)
        for content, classes in (("a", ("cat", "dog")), ("b", ("cat", "dog")), ("a", ("dog", "cat")))
    ]
    monkeypatch.setenv("BRACT_HOME", str(tmp_path))
    monkeypatch.setattr(preprocessing, "scan_source", lambda *_, **__: scans[0])
    config = make_config({"model.backbone": "cnn", "data.image-size": 8, "data.classes": "cat,dog"})

    keys = []
    while scans:
        keys.append(prepare(config, shows_nothing=True).key)
        del scans[0]

    assert len(set(keys)) == 3


def spec(**more: Any) -> BackboneSpec:
    given: dict[str, Any] = {"name": "resnet18", "weights": "random", "weights_sha256": "", "image_size": 64, "seed": 0}
    return BackboneSpec(**given | more)


def test_key_of_remembered_facts_changes_with_the_request_libraries_and_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    specs = [spec(), spec(name="resnet34"), spec(weights=""), spec(image_size=96), spec(seed=1)]

    keys = [backbone_info._request(each) for each in specs]
    for library in ("none of them", "timm", "torchvision", "torch"):
        with monkeypatch.context() as patch:
            patch.setattr(backbone_info, "version", lambda name, newer=library: f"{name} {name == newer}")
            keys.append(backbone_info._request(spec()))
    monkeypatch.setattr(backbone_info, "_FORMAT", backbone_info._FORMAT + 1)
    keys.append(backbone_info._request(spec()))
    monkeypatch.setattr(backbone_info, "processor", lambda: ("another",))
    keys.append(backbone_info._request(spec()))

    assert len(set(keys)) == 11


def test_key_of_remembered_facts_changes_with_the_weights_file(tmp_path: Path) -> None:
    file, other = tmp_path / "weights.pth", tmp_path / "other.pth"
    for each, content, seconds in ((file, b"1", 1), (other, b"1", 1)):
        each.write_bytes(content)
        os.utime(each, (seconds, seconds))
    keys = [backbone_info._request(spec(weights=str(each))) for each in (file, other)]

    os.utime(file, (2, 2))
    keys.append(backbone_info._request(spec(weights=str(file))))
    file.write_bytes(b"12")
    os.utime(file, (1, 1))
    keys.append(backbone_info._request(spec(weights=str(file))))

    assert len(set(keys)) == 4


def test_key_of_a_file_changes_with_its_path_target_size_and_time(tmp_path: Path) -> None:
    def key(file: Path) -> bytes:
        return bytes(base_source.file_keys([file])[0])

    file, link = tmp_path / "a.png", tmp_path / "link.png"
    for each, seconds in ((file, 1), (tmp_path / "b.png", 1), (tmp_path / "c.png", 1)):
        each.write_bytes(b"1")
        os.utime(each, (seconds, seconds))
    keys = [key(file), key(tmp_path / "b.png")]
    for target in ("b.png", "c.png"):
        link.unlink(missing_ok=True)
        link.symlink_to(tmp_path / target)
        keys.append(key(link))
    os.utime(file, (2, 2))
    keys.append(key(file))
    file.write_bytes(b"12")
    os.utime(file, (1, 1))
    keys.append(key(file))

    assert len(set(keys)) == 6


def test_scan_file_changes_with_place_name_and_format(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path))
    sources = [ImageSource(name, "", lambda: None, place) for name, place in (("a", "x"), ("b", "x"), ("a", "y"))]  # type: ignore[arg-type, return-value]

    files = [scan._scan_file(source) for source in sources]
    monkeypatch.setattr(scan, "FORMAT", scan.FORMAT + 1)
    files.append(scan._scan_file(sources[0]))

    assert len(set(files)) == 4


KINDS = ("opaque", "inverted", "deep", "gray", "transparent")
TONES = {
    "neutral": Tones(16, None, "keep"),
    "depth": Tones(12, None, "keep"),
    "other depth": Tones(10, None, "keep"),
    "window": Tones(16, (0, 900), "keep"),
    "other window": Tones(16, (0, 901), "keep"),
    "white": Tones(16, None, "white"),
    "black": Tones(16, None, "black"),
}
# Kind of image -> tones that show something else than the canonical decode.
CHANGED = {
    "opaque": set(),
    "inverted": set(TONES),
    "deep": {"depth", "other depth", "window", "other window"},
    "gray": {"window", "other window"},
    "transparent": {"white", "black"},
}


def names_of(tones: Tones, *, file: int = 1) -> dict[str, bytes]:
    """What one image of each kind is stored under."""
    count = len(KINDS)
    found = SimpleNamespace(
        digests=np.repeat(np.arange(count, dtype=np.uint8)[:, None], 32, axis=1),
        file_digests=np.full((count, 32), file, np.uint8),
        usable=np.ones(count, bool),
        channels=np.array([3, 1, 3, 1, 3]),
        depths=np.array([8, 16, -16, 8, 8]),
        transparency=np.array([0, 0, 0, 0, 2]),
        plain=np.array([True, False, True, True, True]),
    )
    return dict(zip(KINDS, map(bytes, row_names(found, tones)), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_name_of_an_input_changes_with_every_tone_that_shows_something_else(kind: str) -> None:
    names = {case: names_of(tones)[kind] for case, tones in TONES.items()}
    pixels = bytes([KINDS.index(kind)] * 32)

    assert {case for case, name in names.items() if name != pixels} == CHANGED[kind]
    changed = [names[case] for case in CHANGED[kind]]
    assert len(set(changed)) == len(changed)


def test_name_of_an_input_shown_otherwise_changes_with_its_file() -> None:
    assert names_of(TONES["depth"], file=1)["deep"] != names_of(TONES["depth"], file=2)["deep"]
    assert names_of(TONES["neutral"], file=1)["deep"] == names_of(TONES["neutral"], file=2)["deep"]
