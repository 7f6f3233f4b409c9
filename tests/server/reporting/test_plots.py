"""Pictures of many classes stay small and can be read.

Drives `common.confusion_plot` and `common.data.partition_plot`.
"""

import subprocess
import sys
from pathlib import Path

import matplotlib.figure
import numpy as np
import pytest
from PIL import Image

from common.data.partition_plot import draw_partition
from server.reporting.plots import draw_confusion, frequent_errors

_PROGRAM = """
import re, sys
from pathlib import Path
import numpy as np
from common.data.partition_plot import draw_partition
from server.reporting.plots import draw_confusion
count, folder = int(sys.argv[1]), Path(sys.argv[2])
counts = np.arange(count * count).reshape(count, count) % 7
names = [f"class {number}" for number in range(count)]
draw_confusion(folder / "confusion.png", counts, names, "title")
draw_partition(folder / "partition.png", counts[:, :5], names)
# Not ru_maxrss: a child process begins with that of its parent.
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


def confusion_of(count: int) -> np.ndarray:
    confusion = 50 * np.eye(count, dtype=np.int64)
    confusion[1, 0], confusion[0, count - 1] = 9, 7
    return confusion


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
@pytest.mark.parametrize("count", [100, 200, 1_000])
def test_pictures_of_many_classes_take_under_300_megabytes(count: int, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, str(count), str(tmp_path)], capture_output=True, text=True, check=True
    )

    assert int(done.stdout) < 300_000
    for name in ("confusion.png", "partition.png"):
        with Image.open(tmp_path / name) as picture:
            assert max(picture.size) <= 2_200


@pytest.mark.parametrize(
    ("count", "labels", "cells", "errors"),
    [
        (2, 2, 4, []),
        (20, 20, 22, []),
        (21, 21, 0, ["1 > 0", "0 > 20"]),
        (100, 34, 0, ["1 > 0", "0 > 99"]),
        (1_000, 40, 0, ["1 > 0", "0 > 999"]),
    ],
)
def test_draw_confusion_names_what_is_confused_most(
    count: int, labels: int, cells: int, errors: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures: list[matplotlib.figure.Figure] = []
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda self, *_, **__: figures.append(self))

    draw_confusion(tmp_path / "c.png", confusion_of(count), [str(number) for number in range(count)], "title")

    matrix, *others = figures[0].axes
    assert len(matrix.get_xticklabels()) == len(matrix.get_yticklabels()) == labels
    assert len(matrix.texts) == cells
    listed = [text.get_text() for axes in others for text in axes.get_yticklabels() if ">" in text.get_text()]
    assert listed == errors


def test_draw_confusion_without_an_error_lists_none(tmp_path: Path) -> None:
    draw_confusion(tmp_path / "c.png", np.eye(30, dtype=np.int64), [str(number) for number in range(30)], "title")

    assert (tmp_path / "c.png").is_file()


def test_frequent_errors_begin_with_the_largest_and_leave_out_what_is_right() -> None:
    confusion = np.array([[90, 2, 0], [0, 90, 5], [2, 1, 0]])

    assert frequent_errors(confusion, 3) == [(1, 2, 5), (0, 1, 2), (2, 0, 2)]
    assert frequent_errors(np.diag([3, 4]), 3) == []


@pytest.mark.parametrize("shape", [(1_000, 5), (100, 1_000), (2, 1)])
def test_draw_partition_draws_any_number_of_classes_and_clients(shape: tuple[int, int], tmp_path: Path) -> None:
    draw_partition(tmp_path / "p.png", np.ones(shape, dtype=np.int64), [f"c{row}" for row in range(shape[0])])

    with Image.open(tmp_path / "p.png") as picture:
        assert max(picture.size) <= 1_800
