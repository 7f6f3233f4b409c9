"""Images made ready once, found ready afterwards, and made anew when they changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.config import Scalar
from common.data.prepared import Prepared, prepare, prepared_earlier
from common.errors import DataError, WeightsError
from common.sections import RunConfig

MakeConfig = Callable[..., RunConfig]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("BRACT_HOME", str(folder))
    return folder


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """Six tiny colour images of two classes, with a test set."""
    for part, names in {"train": ("cat/1", "cat/2", "dog/1", "dog/2"), "test": ("cat/3", "dog/3")}.items():
        for name in names:
            _png(tmp_path / "pets" / part / f"{name}.png", seed=len(list(tmp_path.rglob("*.png"))))
    return tmp_path / "pets"


def _png(file: Path, seed: int) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file)


def _settings(source: Path, **more: Scalar) -> dict[str, Scalar]:
    return {"data.source": str(source), "model.backbone": "cnn", "system.device": "cpu"} | more


def _same(one: Prepared, other: Prepared) -> bool:
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in ("inputs", "labels", "digests"))
    return arrays and (one.num_train, one.classes, one.folder) == (other.num_train, other.classes, other.folder)


def test_prepare_holds_the_images_train_first(make_config: MakeConfig, home: Path, pets: Path) -> None:
    prepared = prepare(make_config(_settings(pets)))

    assert (prepared.inputs.shape, prepared.inputs.dtype) == ((6, 8, 8, 3), np.uint8)
    assert (prepared.num_train, prepared.classes) == (4, ("cat", "dog"))
    assert prepared.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert np.array_equal(prepared.inputs[5], np.asarray(Image.open(pets / "test/dog/3.png")))
    assert prepared.seconds > 0
    assert prepared.folder.parent == home / "cache"


def test_prepare_finds_it_ready_the_second_time(
    make_config: MakeConfig, home: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(_settings(pets))
    first = prepare(config)
    monkeypatch.setattr("common.data.prepared._make", lambda *_: pytest.fail("made again"))

    second = prepare(config)

    assert second.seconds == 0
    assert _same(second, first)


def test_prepare_makes_a_changed_folder_anew(make_config: MakeConfig, home: Path, pets: Path) -> None:
    config = make_config(_settings(pets))
    first = prepare(config)

    _png(pets / "train" / "dog" / "9.png", seed=99)
    second = prepare(config)

    assert second.seconds > 0
    assert second.folder != first.folder
    assert (len(second.labels), second.num_train) == (7, 5)
    assert prepared_earlier(config).folder == second.folder


def test_prepare_makes_another_image_size_apart(make_config: MakeConfig, home: Path, pets: Path) -> None:
    small, asis = (prepare(make_config(_settings(pets, **{"data.image-size": side}))) for side in (4, ""))

    assert (small.inputs.shape[1:], asis.inputs.shape[1:]) == ((4, 4, 3), (8, 8, 3))
    assert small.folder != asis.folder
    assert np.array_equal(small.digests, asis.digests), "content is hashed at full size"


def test_prepared_earlier_gives_the_same_without_opening_the_source(
    make_config: MakeConfig, home: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(_settings(pets))
    first = prepare(config)
    monkeypatch.setattr("common.data.sources.open_source", lambda _: pytest.fail("opened the source"))

    earlier = prepared_earlier(config)

    assert earlier.seconds == 0
    assert _same(earlier, first)


@pytest.mark.parametrize("lost", ["pointer", "folder"])
def test_prepared_earlier_prepares_when_there_is_nothing_yet(
    make_config: MakeConfig, home: Path, pets: Path, lost: str
) -> None:
    config = make_config(_settings(pets))
    first = prepare(config)
    if lost == "pointer":
        for file in (home / "cache").glob("request-*.json"):
            file.unlink()
    else:
        first.folder.rename(home / "gone")

    assert np.array_equal(prepared_earlier(config).inputs, first.inputs)


def test_prepare_writes_for_the_owner_only(make_config: MakeConfig, home: Path, pets: Path) -> None:
    prepared = prepare(make_config(_settings(pets)))

    assert {file.name: file.stat().st_mode & 0o777 for file in prepared.folder.glob("*.npy")} == {
        "inputs.npy": 0o600,
        "labels.npy": 0o600,
        "digests.npy": 0o600,
    }
    assert [folder.stat().st_mode & 0o077 for folder in (prepared.folder, home / "cache")] == [0, 0]


def test_prepare_writes_class_names_for_the_owner_only(make_config: MakeConfig, home: Path, pets: Path) -> None:
    prepared = prepare(make_config(_settings(pets)))

    assert (prepared.folder / "meta.json").stat().st_mode & 0o777 == 0o600


def test_prepare_leaves_nothing_behind_when_it_fails(make_config: MakeConfig, home: Path, pets: Path) -> None:
    (pets / "train" / "dog" / "2.png").write_bytes(b"no image")

    with pytest.raises(DataError, match=r"dog/2\.png"):
        prepare(make_config(_settings(pets)))

    assert not [file.name for file in (home / "cache").iterdir() if file.suffix != ".lock"]


def test_prepare_refuses_missing_weights_although_features_are_ready(make_config: MakeConfig, digits: Prepared) -> None:
    with pytest.raises(WeightsError, match="there is no file"):
        prepare(make_config({"model.weights": "/none/weights.pth"}))


def test_prepare_says_how_far_it_is(make_config: MakeConfig, home: Path, pets: Path) -> None:
    announced: list[tuple[int, str]] = []
    steps: list[int] = []

    def progress(total: int, what: str) -> Callable[[int], None]:
        announced.append((total, what))
        return steps.append

    prepare(make_config(_settings(pets)), progress)

    assert announced == [(6, "Reading images")]
    assert sum(steps) == 6


def test_prepare_digits_are_unit_features_and_found_ready(make_config: MakeConfig, digits: Prepared) -> None:
    again = prepare(make_config())

    assert again.seconds == 0
    assert _same(again, digits)
    assert (digits.inputs.shape, digits.inputs.dtype) == ((1797, 1280), np.float32)
    assert np.linalg.norm(digits.inputs, axis=1) == pytest.approx(1, abs=1e-5)
    assert json.loads((digits.folder / "meta.json").read_text())["source"] == "digits"


def test_prepare_accepts_what_another_process_made_meanwhile(
    make_config: MakeConfig, home: Path, pets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here `auto` means `cpu`: two names of one request, so two locks but one target."""
    from common.data import prepared as module

    real = module._make
    monkeypatch.setattr("common.features.choose_device", lambda _: "cpu")

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(module, "_make", real)
        prepare(make_config(_settings(pets, **{"system.device": "auto"})))
        return real(*arguments)

    monkeypatch.setattr(module, "_make", overtaken)

    assert len(prepare(make_config(_settings(pets))).labels) == 6
