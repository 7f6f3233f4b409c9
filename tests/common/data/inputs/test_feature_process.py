"""The process that computes features ahead: what it gets, and what is left when it fails."""

import io
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from common.config.schema import RunConfig
from common.data.decoding import BadImage
from common.data.feature_extraction import CHUNK
from common.data.inputs import feature_process
from common.data.inputs.feature_process import FeatureProcess
from tests.support.paths import ROOT

MakeConfig = Callable[..., RunConfig]
Start = Callable[[str], FeatureProcess]
SIDE = 4


@pytest.fixture(name="start")
def start_fixture(make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """Starts a process that runs some lines instead, with the file to which it may write as `sys.argv[2]`."""
    processes: list[FeatureProcess] = []

    def begin(lines: str) -> FeatureProcess:
        monkeypatch.setattr(feature_process, "_CODE", f"import os, signal, sys, time\n{lines}")
        config = make_config()
        processes.append(FeatureProcess(config.model, config.backbone_spec, "cpu"))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()


def pictures(count: int) -> list[tuple[np.ndarray, bytes]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (SIDE, SIDE, 3)).astype(np.uint8), rng.bytes(32)) for _ in range(count)]


def send(images: list[tuple[np.ndarray, bytes]]) -> Callable[[FeatureProcess], None]:
    def feed(process: FeatureProcess) -> None:
        for image in images:
            process.push_pixels(*image)

    return feed


def test_every_image_arrives_as_it_was_sent(start: Start, tmp_path: Path) -> None:
    images, file = pictures(CHUNK + 3), tmp_path / "sent"
    process = start(
        f"""os.write(1, b'ready\\n')
content = b''
while not content.endswith(bytes(4)):
    content += os.read(0, 65536)
open({str(file)!r}, 'wb').write(content)"""
    )

    process.start(send(images))
    assert process.wait(30)

    sent = io.BytesIO(file.read_bytes().split(b"\n", 1)[1])
    found = list(feature_process._received(sent, (SIDE, SIDE, 3)))
    assert len(found) == len(images)
    assert all(np.array_equal(a[0], b[0]) and a[1] == b[1] for a, b in zip(found, images, strict=True))
    assert not process.failed


def test_a_message_that_is_cut_short_is_no_end(start: Start) -> None:
    content = (2).to_bytes(4, "big") + b"x" * (2 * 32 + SIDE * SIDE * 3)

    with pytest.raises(BrokenPipeError):
        list(feature_process._received(io.BytesIO(content), (SIDE, SIDE, 3)))
    with pytest.raises(BrokenPipeError):
        list(feature_process._received(io.BytesIO(b""), (SIDE, SIDE, 3)))


@pytest.mark.parametrize(
    ("lines", "ready"),
    [("sys.exit(1)", False), ("os.write(1, b'ready\\n'); os.kill(os.getpid(), signal.SIGKILL)", True)],
    ids=["an error", "killed while it computes"],
)
def test_a_process_that_ends_early_has_failed(start: Start, lines: str, ready: bool) -> None:
    process = start(lines)

    process.start(send(pictures(CHUNK * 100)))

    assert process.wait(30)
    assert (process.failed, process.ready) == (True, ready)


def test_a_process_whose_images_cannot_be_read_has_failed(start: Start) -> None:
    def feed(process: FeatureProcess) -> None:
        send(pictures(CHUNK))(process)
        raise BadImage("the file was closed")

    process = start("os.write(1, b'ready\\n'); sys.exit(not sys.stdin.buffer.read().endswith(bytes(4)))")

    process.start(feed)

    assert process.wait(30)
    assert (process.failed, process.ready) == (True, True)


def test_kill_ends_a_process_that_is_still_loading_and_one_that_is_not_fed(start: Start) -> None:
    for lines in ("time.sleep(600)", "os.write(1, b'ready\\n'); time.sleep(600)"):
        process = start(lines)
        process.kill()
        assert process.wait(0)


@pytest.mark.parametrize(
    ("weights", "home"), [("/none/weights.pth", ""), ("random", "file")], ids=["no weights", "no folder for them"]
)
def test_facts_that_cannot_be_had_end_the_process_without_a_traceback(tmp_path: Path, weights: str, home: str) -> None:
    (tmp_path / "file").touch()
    code = (
        "from common.config.loading import defaults, override, parse\n"
        "from common.data.inputs.feature_process import FeatureProcess\n"
        f"config = parse(override(defaults(), {{'model.weights': {weights!r}}}))\n"
        "process = FeatureProcess(config.model, config.backbone_spec, 'cpu')\n"
        "process.wait(60)\n"
        "process._process.wait()\n"
        "print(process.failed, process.ready)\n"
        "process.kill()\n"
    )

    found = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
        env=os.environ | {"BRACT_HOME": str(tmp_path / home)},
    )

    assert (found.stdout, found.stderr) == ("True False\n", "")
