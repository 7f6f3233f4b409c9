"""Inputs of a folder under other tones: what a model trains on, what is kept, and what is computed anew."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared, prepare
from tests.common.data.test_preprocessing import Announced
from tests.support.data.deep_files import WHITE_IS_ZERO, png, scan_values, tiff
from tests.support.data.hostile_files import encode, picture

Look = Callable[..., Prepared]


@pytest.fixture
def look(tmp_path: Path, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> Look:
    """Prepare a folder of files as pixels."""
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))

    def looked(name: str, files: list[bytes], announced: Announced | None = None, **settings: Scalar) -> Prepared:
        for number, content in enumerate(files):
            file = tmp_path / name / "ab"[number % 2] / str(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file = file.with_suffix(".png" if content.startswith(b"\x89PNG") else ".tif")
            # A file that is written again counts as changed.
            if not file.exists():
                file.write_bytes(content)
        given = {"data.source": str(tmp_path / name), "model.backbone": "cnn", "data.image-size": 20}
        tones = {f"data.{key.replace('_', '-')}": value for key, value in settings.items()}
        return prepare(make_config(given | tones), announced or Announced())

    return looked


def pixels(prepared: Prepared) -> np.ndarray:
    return prepared.inputs[np.arange(len(prepared.scan.usable))].astype(int)


def test_twelve_bits_give_the_inputs_of_the_same_pictures_in_sixteen(look: Look) -> None:
    shares = [np.random.default_rng(number).random((20, 20)) for number in range(4)]
    full = look("full", [png(np.rint(share * 65535).astype(np.uint16)) for share in shares])

    files = [png(np.rint(share * 4095).astype(np.uint16)) for share in shares]
    by_depth, by_window = look("twelve", files, bit_depth=12), look("twelve", files, gray_window="0,4095")
    as_stored = look("twelve", files)

    assert np.abs(pixels(by_depth) - pixels(full)).max() <= 1
    assert np.abs(pixels(by_window) - pixels(full)).max() <= 1
    assert pixels(as_stored).max() == 15


def test_settings_change_inputs_and_nothing_that_names_an_image(look: Look) -> None:
    values = scan_values(12, shape=(20, 20))
    files = [png(values), tiff(values, white=WHITE_IS_ZERO), tiff(values // 2), png(values // 4)]
    settings: list[dict[str, Scalar]] = [{}, {"bit_depth": 12}, {"bit_depth": 10}, {"gray_window": "9,99"}]
    seen = [look("scans", files, **more) for more in settings]

    assert len({pixels(each).tobytes() for each in seen}) == 4
    for name in ("digests", "earlier_digests", "file_digests", "usable"):
        assert all(np.array_equal(getattr(each.scan, name), getattr(seen[0].scan, name)) for each in seen), name
    assert len({each.key for each in seen}) == 1


def test_only_images_that_look_different_are_computed_anew(look: Look) -> None:
    colours = [encode(picture(0, seed=number)) for number in range(3)]
    files = [*colours, png(scan_values(12)), tiff(scan_values(12, seed=2))]
    counts = []
    for more in ({}, {}, {"bit_depth": 12}, {"bit_depth": 12}, {"background": "white"}, {"gray_window": "0,9"}, {}):
        announced = Announced()
        look("mixed", files, announced, **more)
        counts.append(sum(announced.of("Scaling")))

    assert counts == [5, 0, 2, 0, 0, 2, 0]


def test_files_that_are_equal_in_their_upper_bits_get_inputs_of_their_own(look: Look) -> None:
    first, second = scan_values(8, shape=(20, 20)), scan_values(8, seed=1, shape=(20, 20))
    # In the upper 8 bits both are all 7.
    prepared = look("dark", [png(first + 7 * 256), png(second + 7 * 256)], gray_window="1792,2047")

    assert np.array_equal(pixels(prepared)[..., 0], [first, second])
    assert len(np.unique(prepared.scan.digests, axis=0)) == 2
    assert len(np.unique(prepared.scan.earlier_digests, axis=0)) == 1
