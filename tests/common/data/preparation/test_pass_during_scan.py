"""The backbone pass of images while others are still scanned."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from common.config.schema import RunConfig
from common.data import preprocessing, scan
from common.data.preprocessing import Preparation, prepare
from common.errors import DataError
from common.models.backbone_info import backbone_info
from tests.common.data.test_preprocessing import Announced
from tests.support.data.feature_processes import COUNT, TINY, Eager

MakeConfig = Callable[..., RunConfig]


@pytest.mark.parametrize("known", [False, True], ids=["backbone not known yet", "backbone known"])
def test_the_process_gets_images_while_others_are_scanned(
    known: bool,
    config: RunConfig,
    eager: type[Eager],
    decoded: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if known:
        backbone_info(config.backbone_spec)
    at_last = list[int]()
    read = scan.read_image

    def slow(cell: Any) -> Any:
        # Nothing is known of the order of threads, so each of the last images waits.
        if decoded["scan"] >= COUNT - 2:
            until = time.monotonic() + 60
            while eager.started[0].rows <= COUNT // 2 and time.monotonic() < until:
                time.sleep(0.01)
            at_last.append(eager.started[0].rows)
        return read(cell)

    monkeypatch.setattr(scan, "read_image", slow)

    with Preparation(config, ahead=True, warn=lambda _: None) as preparation:
        preparation.finish()

    assert at_last[0] > COUNT // 2
    # Once each, and the rest after the scan.
    assert eager.started[0].rows == COUNT
    assert decoded["scan"] == COUNT


def test_a_scan_that_fails_leaves_no_thread_behind(
    config: RunConfig, eager: type[Eager], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise DataError("the folder is gone")

    monkeypatch.setattr(preprocessing, "refuse_if_too_bad", fails)

    with pytest.raises(DataError, match="gone"), Preparation(config, ahead=True):
        pass

    assert not eager.started[0].thread.is_alive()


def test_what_is_stored_under_other_tones_starts_no_process_again(
    folder: Path, make_config: MakeConfig, eager: type[Eager]
) -> None:
    for file in folder.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(file))[..., 0]).save(file)
    config = make_config({"data.source": str(folder), "num-clients": 2} | TINY | {"data.gray-window": "0, 100"})
    prepare(config)
    # As a copied folder: all is scanned again.
    for file in folder.rglob("*.png"):
        os.utime(file, (1, 1))

    with Preparation(config, ahead=True) as preparation:
        assert not preparation.finish().inputs.absent.any()

    assert eager.started == []


def test_a_process_that_cannot_be_started_is_tried_once(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    tries = list[int]()

    def refused(*_: object) -> None:
        tries.append(1)
        raise OSError("no more processes")

    backbone_info(config.backbone_spec)
    monkeypatch.setattr(preprocessing, "FeatureProcess", refused)
    monkeypatch.setattr(preprocessing, "_has_torch", lambda: False)

    with Preparation(config, ahead=True) as preparation:
        assert not preparation.finish().inputs.absent.any()

    assert len(tries) == 1


def test_progress_of_the_pass_is_shown_while_copies_wait(
    config: RunConfig, eager: type[Eager], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone_info(config.backbone_spec)
    announced, at_bar = Announced(), list[int]()

    class Slow(eager):  # type: ignore[misc, valid-type]
        def push_pixels(self, pixels: np.ndarray, digest: bytes) -> None:
            until = time.monotonic() + 60
            # As a backbone that is much slower than the scan.
            while self.rows == 3 and not at_bar and time.monotonic() < until:
                time.sleep(0.01)
            super().push_pixels(pixels, digest)

    def progress(total: int, label: str) -> Callable[[int], None]:
        if label.startswith("Backbone"):
            at_bar.append(eager.started[0].rows)
        return announced(total, label)

    monkeypatch.setattr(preprocessing, "FeatureProcess", Slow)
    with Preparation(config, progress, ahead=True, warn=lambda _: None) as preparation:
        preparation.finish()

    assert at_bar[0] == 3
