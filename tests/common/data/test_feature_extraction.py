"""Features: an image's row is its own, whatever came with it and however many threads ran.

Drives `common.commands.cache`, `common.system.threads`.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data.decoding import pixel_digest
from common.data.feature_extraction import CHUNK, FeatureExtractor, PixelCollector, choose_device, scaled, square
from common.data.preprocessing import Prepared, prepare
from common.errors import DataError
from common.models.classifier import Network, feature_network
from common.models.engines.acceleration import accelerated
from common.system.content_store import ContentStore
from common.system.paths import bract_home
from tests.support.paths import ROOT

MakeConfig = Callable[[dict[str, Scalar]], RunConfig]
SIDE = 32


def pictures(count: int, seed: int = 0) -> list[Image.Image]:
    rng = np.random.default_rng(seed)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)) for _ in range(count)]


@pytest.fixture(scope="module")
def network(make_config: MakeConfig) -> Network:
    config = make_config({"data.image-size": SIDE})
    return feature_network(config.model, config.backbone_spec)


def extract(network: Network, folder: Path, images: list[Image.Image], seen: list[int] | None = None) -> np.ndarray:
    store = ContentStore(folder, (1280,), np.dtype(np.float32))
    report = (seen if seen is not None else []).append
    fast, dtype = accelerated(network, "cpu")
    with FeatureExtractor(
        fast, store, side=SIDE, interpolation="bicubic", device="cpu", progress=report, dtype=dtype
    ) as extractor:
        for image in images:
            extractor.push(image, pixel_digest(image))
    digests = np.frombuffer(b"".join(map(pixel_digest, images)), dtype=np.uint8).reshape(-1, 32)
    return store.rows_of(digests)[np.arange(len(images))]


@pytest.mark.numerical
def test_features_do_not_depend_on_the_other_images_to_the_bit(network: Network, tmp_path: Path) -> None:
    images = pictures(CHUNK + 5)

    together = extract(network, tmp_path / "together", images)
    reverse = extract(network, tmp_path / "reverse", images[::-1])[::-1]
    alone = extract(network, tmp_path / "alone", images[7:8])

    assert np.array_equal(together, reverse)
    assert np.array_equal(together[7:8], alone)
    assert np.allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)


def test_equal_images_pass_the_backbone_once(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []
    features = network.features

    def counting(inputs: object) -> object:
        passed.append(1)
        return features(inputs)  # type: ignore[arg-type]

    monkeypatch.setattr(network, "features", counting)
    one = pictures(1)
    found = extract(network, tmp_path, one * 100)

    assert len(passed) == 1
    assert (found == found[0]).all()


def test_progress_tells_what_is_safely_stored(network: Network, tmp_path: Path) -> None:
    seen: list[int] = []

    extract(network, tmp_path, pictures(CHUNK + 5), seen)

    assert sum(seen) == CHUNK + 5


def test_a_stored_image_is_not_extracted_again(network: Network, tmp_path: Path) -> None:
    images = pictures(CHUNK)
    extract(network, tmp_path, images)
    rows = (tmp_path / "rows.bin").stat().st_size

    extract(network, tmp_path, [*images, *pictures(3, seed=9)])

    assert (tmp_path / "rows.bin").stat().st_size == rows + 3 * 1280 * 4


def test_square_scales_the_shorter_side_and_cuts_the_middle() -> None:
    wide = Image.fromarray(np.tile(np.arange(0, 200, dtype=np.uint8), (100, 1)))

    cut = np.asarray(square(wide, 100))

    assert cut.shape == (100, 100)
    assert abs(int(cut[50, 0]) - 50) <= 1
    assert abs(int(cut[50, 99]) - 149) <= 1


def test_pixels_are_kept_with_the_channels_asked_for(tmp_path: Path) -> None:
    images = pictures(3)
    for channels in (1, 3):
        store = ContentStore(tmp_path / str(channels), (8, 8, channels), np.dtype(np.uint8))
        with PixelCollector(store, lambda _: None) as to:
            for image in images:
                to.push_pixels(scaled(image, 8, channels, "bicubic"), pixel_digest(image))
        assert len(store) == 3


def test_choose_device_refuses_what_is_not_there() -> None:
    assert choose_device("cpu") == "cpu"
    with pytest.raises(DataError, match="not present"):
        choose_device("mps")


def test_a_second_run_re_uses_features_with_another_seed(digits: Prepared, make_config: MakeConfig) -> None:
    again = prepare(make_config({"seed": 5, "num-clients": 9}))

    assert again.seconds < 1
    assert np.array_equal(again.inputs[np.arange(50)], digits.inputs[np.arange(50)])


_KILLED = """
import sys
from common.config.loading import defaults, override, parse
from common.data.preprocessing import prepare
def progress(total, what):
    done = []
    def advance(amount):
        done.append(amount)
        if "Backbone" in what:
            print(sum(done), flush=True)
    return advance
prepare(parse(override(defaults(), {"data.image-size": 48})), progress)
"""


@pytest.mark.slow
def test_killing_extraction_loses_nothing_that_was_reported(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(ROOT)
    environment = os.environ | {"BRACT_HOME": str(tmp_path), "PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, env=environment, cwd=root, text=True
    )
    assert process.stdout is not None
    reported = 0
    for line in process.stdout:
        reported = int(line)
        if reported >= 900:
            break
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()

    monkeypatch.setenv("BRACT_HOME", str(tmp_path))
    kept = sum(file.stat().st_size // 36 for file in (bract_home() / "cache").rglob("index.bin"))
    passes: list[int] = []

    def progress(total: int, what: str) -> Callable[[int], None]:
        if "Backbone" in what:
            passes.append(total)
        return lambda _: None

    whole = prepare(make_config({"data.image-size": 48}), progress)

    assert reported <= kept < 1797
    assert passes == [1797 - kept]
    assert len(whole.inputs[np.arange(1797)]) == 1797
