"""Images made ready once, found ready afterwards, and only what changed made anew."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared, prepare
from common.errors import DataError, WeightsError
from tests.support.paths import ROOT

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


def _png(file: Path, seed: int, mode: str = "RGB", side: int = 8) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(256, size=(side, side, 3), dtype=np.uint8)
    Image.fromarray(pixels).convert(mode).save(file)


def _settings(source: Path, **more: Scalar) -> dict[str, Scalar]:
    return {"data.source": str(source), "model.backbone": "cnn", "system.device": "cpu"} | more


def _all(prepared: Prepared) -> np.ndarray:
    return prepared.inputs[np.flatnonzero(prepared.scan.usable)]


class Announced:
    """Remembers what work was announced, and how much of it was reported."""

    def __init__(self) -> None:
        self.work: list[tuple[int, str]] = []
        self.steps: list[int] = []

    def __call__(self, total: int, what: str) -> Callable[[int], None]:
        self.work.append((total, what))
        return self.steps.append

    def of(self, word: str) -> list[int]:
        return [total for total, what in self.work if word in what]


def test_prepare_holds_the_images_train_first(make_config: MakeConfig, home: Path, pets: Path) -> None:
    prepared = prepare(make_config(_settings(pets)))

    assert (prepared.inputs.shape, prepared.inputs.dtype) == ((6, 8, 8, 3), np.uint8)
    assert (prepared.scan.num_train, prepared.scan.classes) == (4, ("cat", "dog"))
    assert prepared.scan.labels.tolist() == [0, 0, 1, 1, 0, 1]
    assert np.array_equal(_all(prepared)[5], np.asarray(Image.open(pets / "test/dog/3.png")))
    assert prepared.seconds > 0


def test_prepare_finds_it_ready_the_second_time(make_config: MakeConfig, home: Path, pets: Path) -> None:
    config = make_config(_settings(pets))
    first = prepare(config)
    announced = Announced()

    second = prepare(config, announced)

    assert announced.work == []
    assert np.array_equal(_all(second), _all(first))
    assert second.key == first.key


def test_a_new_image_is_the_only_one_that_is_read(make_config: MakeConfig, home: Path, pets: Path) -> None:
    config = make_config(_settings(pets))
    first, announced = prepare(config), Announced()

    _png(pets / "train" / "dog" / "9.png", seed=99)
    second = prepare(config, announced)

    assert (announced.of("Reading"), announced.of("Scaling")) == ([1], [1])
    assert second.key != first.key
    assert (len(second.scan.labels), second.scan.num_train) == (7, 5)


def test_a_changed_image_invalidates_only_itself(make_config: MakeConfig, home: Path, pets: Path) -> None:
    config = make_config(_settings(pets))
    first, announced = prepare(config), Announced()

    _png(pets / "train" / "dog" / "2.png", seed=99, side=8)
    second = prepare(config, announced)

    assert (announced.of("Reading"), announced.of("Scaling")) == ([1], [1])
    assert [bool((a != b).any()) for a, b in zip(_all(first), _all(second), strict=True)] == [0, 0, 0, 1, 0, 0]


def test_a_moved_folder_needs_no_second_reading(make_config: MakeConfig, home: Path, pets: Path) -> None:
    prepare(make_config(_settings(pets)))
    announced = Announced()

    prepare(make_config(_settings(pets.rename(pets.with_name("animals")))), announced)

    assert announced.of("Scaling") == []


def test_prepare_keeps_another_image_size_apart(make_config: MakeConfig, home: Path, pets: Path) -> None:
    small, asis = (prepare(make_config(_settings(pets, **{"data.image-size": side}))) for side in (4, ""))

    assert (small.inputs.shape[1:], asis.inputs.shape[1:]) == ((4, 4, 3), (8, 8, 3))
    assert np.array_equal(small.scan.digests, asis.scan.digests), "content is hashed at full size"


def test_gray_images_get_three_channels_when_others_have_them(make_config: MakeConfig, home: Path, pets: Path) -> None:
    _png(pets / "train" / "dog" / "gray.png", seed=3, mode="L")

    prepared = prepare(make_config(_settings(pets)))

    assert prepared.inputs.shape == (7, 8, 8, 3)


def test_gray_images_keep_one_channel_when_all_are_gray(make_config: MakeConfig, home: Path, tmp_path: Path) -> None:
    for name in ("a/1", "a/2", "b/1", "b/2"):
        _png(tmp_path / "scans" / f"{name}.png", seed=len(name), mode="L")

    assert prepare(make_config(_settings(tmp_path / "scans"))).inputs.shape == (4, 8, 8, 1)


def test_prepare_refuses_sizes_that_differ_when_none_was_set(make_config: MakeConfig, home: Path, pets: Path) -> None:
    _png(pets / "train" / "dog" / "wide.png", seed=3, side=16)

    with pytest.raises(DataError, match=r"set data\.image-size"):
        prepare(make_config(_settings(pets)))
    assert prepare(make_config(_settings(pets, **{"data.image-size": 8}))).inputs.shape == (7, 8, 8, 3)


def test_a_bad_file_is_skipped_and_listed(make_config: MakeConfig, home: Path, pets: Path) -> None:
    (pets / "train" / "dog" / "2.png").write_bytes(b"no image")

    prepared = prepare(make_config(_settings(pets, **{"data.max-bad-fraction": 0.5})))

    assert prepared.scan.usable.tolist() == [True, True, True, False, True, True]
    assert [fault.place for fault in prepared.scan.faults] == ["train/dog/2.png"]
    with pytest.raises(DataError, match="unusable image"):
        prepared.inputs[np.array([3])]


def test_too_many_bad_files_are_refused_with_the_list(make_config: MakeConfig, home: Path, pets: Path) -> None:
    (pets / "train" / "dog" / "2.png").write_bytes(b"no image")

    with pytest.raises(DataError, match=r"dog/2\.png"):
        prepare(make_config(_settings(pets)))


def test_files_are_for_the_owner_only(make_config: MakeConfig, home: Path, pets: Path) -> None:
    prepare(make_config(_settings(pets)))

    files = [path for path in (home / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert len(files) >= 3
    assert {path.name: oct(path.stat().st_mode & 0o077) for path in files if path.stat().st_mode & 0o077} == {}
    assert (home / "cache" / "inputs").stat().st_mode & 0o077 == 0


def test_prepare_refuses_missing_weights_although_features_are_ready(make_config: MakeConfig, digits: Prepared) -> None:
    with pytest.raises(WeightsError, match="there is no file"):
        prepare(make_config({"model.weights": "/none/weights.pth"}))


def test_prepare_says_how_far_it_is(make_config: MakeConfig, home: Path, pets: Path) -> None:
    announced = Announced()

    prepare(make_config(_settings(pets)), announced)

    assert (announced.of("Reading"), announced.of("Scaling")) == ([6], [6])
    assert sum(announced.steps) == sum(total for total, _ in announced.work)


def test_digits_are_unit_features(digits: Prepared) -> None:
    rows = _all(digits)

    assert (rows.shape, rows.dtype) == ((1797, 1280), np.float32)
    assert np.linalg.norm(rows, axis=1) == pytest.approx(1, abs=1e-5)


def test_what_is_ready_is_found_without_heavy_libraries(make_config: MakeConfig, digits: Prepared) -> None:
    prepare(make_config())  # other tests may have looked at the digits with another class list
    code = (
        "import sys\n"
        "from common.config.loading import defaults, parse\n"
        "from common.data.preprocessing import prepare\n"
        "prepared = prepare(parse(defaults()))\n"
        "assert len(prepared.scan.labels) == 1797\n"
        "print(sorted({'torch', 'timm', 'torchvision', 'datasets', 'sklearn', 'PIL', 'flwr'} & set(sys.modules)))\n"
    )
    root = ROOT

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)

    assert found.stdout.strip() == "[]"
