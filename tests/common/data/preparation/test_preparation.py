"""A preparation in two steps: no image is decoded twice, and no result depends on a second process.

Drives `common.data.preprocessing`, `common.data.tones.row_names`.
"""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data import preprocessing
from common.data.inputs.scaled_copies import ScaledCopies
from common.data.preprocessing import Preparation, Prepared, prepare
from common.errors import DataError, WeightsError
from common.system.console import console_of_caller
from server.reporting.terminal_progress import TerminalProgress
from simulations.app import make_context
from tests.common.data.test_preprocessing import Announced
from tests.support.data.feature_processes import COUNT, TINY, Fake
from tests.support.paths import ROOT

MakeConfig = Callable[..., RunConfig]


def rows_of(prepared: Prepared) -> np.ndarray:
    return prepared.inputs[np.arange(COUNT)]


def test_each_image_is_decoded_once(config: RunConfig, decoded: dict[str, int]) -> None:
    prepare(config)

    assert decoded == {"scan": COUNT, "pass": 0}


def test_images_without_room_are_decoded_again_to_the_same_bits(
    config: RunConfig, decoded: dict[str, int], own_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = rows_of(prepare(config))
    room = 5 * 32 * 32 * 3
    monkeypatch.setattr(preprocessing, "ScaledCopies", lambda wanted: ScaledCopies(wanted, room))
    monkeypatch.setenv("BRACT_HOME", str(own_home / "other"))

    again = rows_of(prepare(config))

    assert decoded == {"scan": 2 * COUNT, "pass": COUNT - 5}
    assert np.array_equal(again, copied)


@pytest.mark.parametrize("tones", [{"data.background": "white"}, {"data.gray-window": "0, 100"}])
def test_an_image_shown_otherwise_is_not_taken_from_the_scan(
    folder: Path, make_config: MakeConfig, decoded: dict[str, int], tones: dict[str, Scalar]
) -> None:
    for number in (0, 1):
        pixels = np.full((50, 40), 77 + number, np.uint8)
        pixels[:9] = number
        shown = Image.fromarray(pixels).convert("LA" if "data.background" in tones else "L")
        if shown.mode == "LA":
            shown.putalpha(Image.fromarray(np.where(pixels == number, 0, 255).astype(np.uint8)))
        shown.save(folder / f"{number}" / f"gray{number}.png")

    prepare(make_config({"data.source": str(folder), "num-clients": 2} | TINY | tones))

    assert decoded == {"scan": COUNT + 2, "pass": 2}


@pytest.mark.parametrize("most", [0, 7])
def test_what_a_failed_process_leaves_is_computed_here(config: RunConfig, fake: type[Fake], most: int) -> None:
    fake.most = most
    warned: list[str] = []

    with Preparation(config, ahead=True, warn=warned.append) as preparation:
        found = preparation.finish()

    assert len(fake.started) == 1
    assert np.array_equal(rows_of(found), rows_of(prepare(config)))
    assert [("ended early" in text, "memory" in text) for text in warned] == [(True, True)]


def test_a_simulation_warns_its_user_of_a_process_that_ended_early(config: RunConfig, fake: type[Fake]) -> None:
    warned: list[str] = []

    make_context(config, warn=warned.append)

    assert ["ended early" in text for text in warned] == [True]


def test_a_process_that_closes_long_after_its_last_row_is_said_to_be_done_once(
    config: RunConfig, fake: type[Fake], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = iter(range(6))

    class Closing(fake):  # type: ignore[misc, valid-type]
        def push_pixels(self, pixels: np.ndarray, digest: bytes) -> None:
            self.digests = [*getattr(self, "digests", ()), digest]

        def wait(self, seconds: float) -> bool:
            super().wait(seconds)
            look = next(looks)
            stored = self.digests[: COUNT // 2 * (look + 1)]
            store = preparation._store()
            row = store.rows_of(np.zeros((0, 32), np.uint8)).shape[1:]
            store.append(stored, np.zeros((len(stored), *row), np.float32))
            return look == 5

    monkeypatch.setattr(preprocessing, "FeatureProcess", Closing)
    progress = TerminalProgress(console_of_caller(quiet=False))

    with Preparation(config, progress.work, ahead=True) as preparation:
        assert not preparation.finish().inputs.absent.any()

    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"Reading images: {COUNT} done", f"Backbone pass (timm:test_resnet): {COUNT} done"]


def test_the_errors_of_a_failed_process_are_told_during_the_scan(
    folder: Path, make_config: MakeConfig, fake: type[Fake], decoded: dict[str, int]
) -> None:
    config = make_config({"data.source": str(folder), "num-clients": 2} | TINY | {"model.weights-sha256": "0" * 64})
    fake.most = -1

    with pytest.raises(WeightsError, match="weights-sha256"), Preparation(config, ahead=True):
        pass

    assert decoded["scan"] < COUNT, "it did not wait for the end of the scan"


def test_a_process_is_started_only_where_features_are_missing(config: RunConfig, fake: type[Fake]) -> None:
    prepare(config)

    announced = Announced()
    with Preparation(config, announced, ahead=True) as preparation:
        preparation.finish()
    assert (fake.started, announced.work) == ([], [])


@pytest.mark.parametrize("more", [{"model.head": "mlp"}, {"model.tuning": "full"}, {"model.backbone": "cnn"}])
def test_a_run_that_needs_torch_itself_starts_no_process(
    config: RunConfig, fake: type[Fake], make_config: MakeConfig, more: dict[str, Scalar]
) -> None:
    settings = {"data.source": config.data.source, "num-clients": 2, "privacy.mechanism": "none"} | TINY | more

    with Preparation(make_config(settings), ahead=True):
        pass

    assert fake.started == []


def test_an_interruption_between_the_steps_ends_the_process(config: RunConfig, fake: type[Fake]) -> None:
    with pytest.raises(KeyboardInterrupt), Preparation(config, ahead=True):
        raise KeyboardInterrupt

    assert [process.killed for process in fake.started] == [True]


def test_an_unusable_source_ends_the_process(config: RunConfig, fake: type[Fake], folder: Path) -> None:
    for file in folder.rglob("*.png"):
        file.write_bytes(b"no image")

    with pytest.raises(DataError, match="cannot be used"), Preparation(config, ahead=True):
        pass

    assert [process.killed for process in fake.started] == [True]


_AHEAD = """
import sys
from common.config.loading import defaults, override, parse
from common.data.preprocessing import Preparation
told = []
def progress(total, label):
    told.append([label, total, 0])
    def advance(amount):
        told[-1][2] += amount
    return advance
config = parse(override(defaults(), {settings!r}))
with Preparation(config, progress, ahead=True) as preparation:
    assert preparation._process is not None
    found = preparation.finish()
    assert not preparation._process.failed
assert "torch" not in sys.modules
print(told)
"""


@pytest.mark.slow
def test_features_of_the_process_are_those_of_this_one_to_the_bit(
    config: RunConfig, own_home: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"data.source": str(folder), "num-clients": 2} | TINY

    told = subprocess.run(
        [sys.executable, "-c", _AHEAD.replace("{settings!r}", repr(settings))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"BRACT_HOME": str(own_home / "other")},
        check=False,
    )

    assert told.returncode == 0, told.stderr
    assert told.stdout == f"[['Reading images', {COUNT}, {COUNT}], ['Backbone pass (timm:test_resnet)', 40, 40]]\n"
    own = prepare(config)
    monkeypatch.setenv("BRACT_HOME", str(own_home / "other"))
    announced = Announced()
    stored = prepare(config, announced)
    assert announced.work == [], "the process has stored all"
    assert np.array_equal(rows_of(stored), rows_of(own))


def test_rows_that_a_process_left_out_without_failing_are_computed_without_a_false_warning(
    config: RunConfig, fake: type[Fake]
) -> None:
    fake.most = 10**9
    warned: list[str] = []

    with Preparation(config, ahead=True, warn=warned.append) as preparation:
        found = preparation.finish()

    assert np.array_equal(rows_of(found), rows_of(prepare(config)))
    assert warned == []
