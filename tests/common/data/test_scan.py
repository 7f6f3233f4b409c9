"""What a scan keeps and decodes again, what it refuses, and what survives races and kills.

Drives `common.data.array_files`.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.schema import RunConfig
from common.data import scan as scanning
from common.data.decoding import FORMATS, pixel_digest
from common.data.scan import Scan, refuse_if_too_bad, refuse_single_class, scan_source
from common.data.sources.base_source import ImageSource
from common.data.sources.registry import open_source
from common.errors import DataError
from common.system.progress import no_progress
from tests.support.data.hostile_files import encode, picture

Look = Callable[..., tuple[Scan, list[int]]]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "bract"))
    return tmp_path / "bract"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of six pictures of two classes, one of them damaged."""
    for number in range(6):
        file = tmp_path / "pets" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encode(picture(0, seed=number)))
    (tmp_path / "pets" / "cat" / "4.png").write_bytes(b"damaged")
    return tmp_path / "pets"


@pytest.fixture
def look(home: Path, make_config: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch) -> Look:
    """Scan a folder; also gives the rows that were decoded well, and counts all that were tried."""

    def looked(root: Path, classes: str = "") -> tuple[Scan, list[int]]:
        rows: list[int] = []
        config = make_config({"data.source": str(root), "data.classes": classes}).data
        scan = scan_source(open_source(config), progress=no_progress, sink=lambda row, *_: rows.append(row))
        return scan, rows

    return looked


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are decoded, in whatever order."""
    names: list[str] = []
    read = scanning.read_image

    def counted(cell: Any) -> Any:
        names.append(Path(cell["path"]).name)
        return read(cell)

    monkeypatch.setattr(scanning, "read_image", counted)
    return names


def test_scan_says_what_every_entry_is(look: Look, root: Path) -> None:
    (root / "dog" / "5.png").write_bytes(encode(picture(0, seed=5).convert("L").resize((30, 10)), "JPEG"))

    scan, rows = look(root)

    assert rows == [0, 1, 3, 4, 5]
    assert scan.classes == ("cat", "dog")
    assert scan.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert scan.usable.tolist() == [True, True, False, True, True, True]
    assert scan.widths.tolist() == [24, 24, 0, 24, 24, 30]
    assert scan.heights.tolist() == [20, 20, 0, 20, 20, 10]
    assert scan.channels.tolist() == [3, 3, 0, 3, 3, 1]
    assert scan.formats == ("PNG", "PNG", "", "PNG", "PNG", "JPEG")
    assert scan.digests[0].tobytes() == pixel_digest(picture(0, seed=0))
    assert not scan.digests[2].any()
    assert (scan.num_train, scan.unit_digests, scan.owners) == (6, None, None)
    assert [fault.line for fault in scan.faults] == [
        f"cat/4.png: not an image of a known format ({', '.join(FORMATS)})"
    ]


def test_scan_gives_the_sink_each_good_image_with_its_digest(root: Path, home: Path, make_config: Any) -> None:
    seen: dict[int, Any] = {}
    source = open_source(make_config({"data.source": str(root)}).data)

    scan = scan_source(source, progress=no_progress, sink=lambda row, *found: seen.update({row: found}))

    assert sorted(seen) == np.flatnonzero(scan.usable).tolist()
    assert all(digest == scan.digests[row].tobytes() == pixel_digest(image) for row, (image, digest) in seen.items())


def test_scan_is_read_back_when_nothing_changed(look: Look, root: Path, tried: list[str]) -> None:
    first, _ = look(root)
    assert len(tried) == 6

    again, rows = look(root)

    assert (len(tried), rows) == (6, [])
    for name, value in vars(first).items():
        assert np.array_equal(value, getattr(again, name)), name


def test_scan_decodes_only_what_changed(look: Look, root: Path, tried: list[str]) -> None:
    before, _ = look(root)
    tried.clear()
    (root / "cat" / "2.png").write_bytes(encode(picture(128, seed=9)))
    (root / "dog" / "new.png").write_bytes(encode(picture(128, seed=8)))
    (root / "dog" / "1.png").unlink()

    scan, rows = look(root)

    assert sorted(tried) == ["2.png", "new.png"]
    assert rows == [1, 5]
    assert scan.digests[1].tobytes() == pixel_digest(picture(128, seed=9))
    assert np.array_equal(scan.digests[[0, 3, 4]], before.digests[[0, 4, 5]])
    assert scan.widths.tolist() == [24, 24, 0, 24, 24, 24]
    assert scan.faults == before.faults


def test_scan_forgets_a_fault_that_was_mended(look: Look, root: Path) -> None:
    look(root)
    (root / "cat" / "4.png").write_bytes(encode(picture(0, seed=4)))

    scan, rows = look(root)

    assert rows == [2]
    assert scan.usable.all()
    assert scan.faults == ()


def test_scan_under_another_class_list_decodes_only_what_it_did_not_need(
    look: Look, root: Path, tried: list[str]
) -> None:
    scan, _ = look(root, "cat,emu")
    assert [fault.place for fault in scan.faults] == ["cat/4.png", "dog/1.png", "dog/3.png", "dog/5.png"]
    assert scan.faults[1].reason == "unknown class 'dog': not in data.classes"
    assert sorted(tried) == ["0.png", "2.png", "4.png"]
    tried.clear()

    scan, rows = look(root, "dog,cat")

    assert sorted(tried) == ["1.png", "3.png", "5.png"]
    assert rows == [3, 4, 5]
    assert scan.labels.tolist() == [1, 1, 1, 0, 0, 0]
    assert [fault.place for fault in scan.faults] == ["cat/4.png"]


def test_scan_of_two_folders_of_one_name_are_two_scans(look: Look, root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "other" / "pets")
    look(root)
    look(tmp_path / "other" / "pets")

    assert look(root)[1] == look(tmp_path / "other" / "pets")[1] == []


def test_scan_file_is_for_its_owner_only(look: Look, root: Path, home: Path) -> None:
    look(root)

    folder = home / "cache" / "scans"
    files = [file for file in folder.iterdir() if file.suffix == ".npz"]
    assert len(files) == 1
    assert files[0].stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("kept", [0, 100, -30])
def test_scan_starts_afresh_when_its_file_is_damaged(look: Look, root: Path, home: Path, kept: int) -> None:
    first, _ = look(root)
    file = next((home / "cache" / "scans").glob("*.npz"))
    file.write_bytes(file.read_bytes()[:kept])

    scan, rows = look(root)

    assert rows == [0, 1, 3, 4, 5]
    assert np.array_equal(scan.digests, first.digests)


def test_scan_that_is_interrupted_leaves_nothing_broken(
    look: Look, root: Path, home: Path, make_config: Callable[..., RunConfig]
) -> None:
    source = open_source(make_config({"data.source": str(root)}).data)

    def interrupt(row: int, *_: Any) -> None:
        if row == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        scan_source(source, progress=no_progress, sink=interrupt)

    assert not [file for file in (home / "cache" / "scans").iterdir() if file.suffix != ".lock"]
    assert look(root)[1] == [0, 1, 3, 4, 5]


def test_scan_that_cannot_be_written_keeps_the_earlier_one(
    look: Look, root: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look(root)
    file = next((home / "cache" / "scans").glob("*.npz"))
    before = file.read_bytes()
    os.utime(root / "cat" / "0.png", ns=(1, 1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left"):
        look(root)

    assert file.read_bytes() == before
    assert not list(file.parent.glob("*.part"))


def test_scan_by_two_processes_at_once_decodes_each_image_once(root: Path, home: Path) -> None:
    program = (
        "import sys; from common.config.loading import defaults, override, parse;"
        "from common.data.sources.registry import open_source; from common.data.scan import scan_source;"
        "from common.system.progress import no_progress; rows = [];"
        f"source = open_source(parse(override(defaults(), {{'data.source': {str(root)!r}}})).data);"
        "scan = scan_source(source, progress=no_progress, sink=lambda row, *_: rows.append(row));"
        "print(len(rows), scan.usable.sum(), scan.digests.tobytes().hex())"
    )

    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0].split() for process in both]

    assert sorted(line[0] for line in said) == ["0", "5"]
    assert said[0][1:] == said[1][1:]
    assert said[0][1] == "5"


def test_scan_reports_progress_of_what_is_decoded(look: Look, root: Path, make_config: Any) -> None:
    totals: list[int] = []
    done: list[int] = []

    def progress(total: int, what: str) -> Callable[[int], None]:
        totals.append(total)
        return done.append

    source = open_source(make_config({"data.source": str(root)}).data)
    scan_source(source, progress=progress)

    assert (totals, sum(done)) == ([6], 6)


def _made(bad: int, total: int, unknown: int = 0) -> Scan:
    usable = np.arange(total) >= bad + unknown
    labels = np.where(np.arange(total) < unknown, -1, np.arange(total) % 2)
    faults = tuple(scanning.Fault(f"{row}.png", "truncated") for row in range(bad + unknown))
    zeros = np.zeros(total, np.int32)
    digests = np.zeros((total, 32), np.uint8)
    return Scan(
        "f",
        labels,
        *[digests] * 3,
        usable,
        *[zeros] * 9,
        ("",) * total,
        total,
        ("a", "b"),
        None,
        None,
        (),
        faults,
    )


@pytest.mark.parametrize(("bad", "total", "limit"), [(0, 10, 0.0), (5, 100, 0.05), (0, 0, 0.0), (10, 10, 1.0)])
def test_refuse_if_too_bad_allows_the_limit_itself(bad: int, total: int, limit: float) -> None:
    refuse_if_too_bad(_made(bad, total), max_bad_fraction=limit)


def test_refuse_if_too_bad_gives_counts_and_the_first_twenty() -> None:
    with pytest.raises(DataError) as caught:
        refuse_if_too_bad(_made(30, 100), max_bad_fraction=0.29)

    message = str(caught.value)
    assert "30 of 100 images cannot be used (30.0%), more than data.max-bad-fraction=0.29" in message
    assert message.count(".png: truncated") == 20
    assert "and 10 more" in message
    assert "bract data inspect" in message


def test_refuse_if_too_bad_does_not_count_unknown_classes() -> None:
    refuse_if_too_bad(_made(1, 100, unknown=80), max_bad_fraction=0.05)

    with pytest.raises(DataError, match=r"2 of 20 images cannot be used \(10\.0%\)(.|\n)*80\.png") as caught:
        refuse_if_too_bad(_made(2, 100, unknown=80), max_bad_fraction=0.05)
    assert " 79.png" not in str(caught.value)


def test_refuse_if_too_bad_does_not_pass_on_terminal_codes() -> None:
    scan = replace(_made(1, 2), faults=(scanning.Fault("\x1b[31mred\n.png", "truncated"),))

    with pytest.raises(DataError) as caught:
        refuse_if_too_bad(scan, max_bad_fraction=0.0)

    assert "\x1b" not in str(caught.value)
    assert "red\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "said"), [([0, 0, 1], "1 class, a:"), ([1, 1, 0], "1 class, b:"), ([-1] * 3, "0 class")]
)
def test_refuse_single_class_counts_usable_training_images(labels: list[int], said: str) -> None:
    scan = replace(_made(0, 3), labels=np.array(labels), usable=np.array([True, True, False]) & (np.array(labels) >= 0))

    with pytest.raises(DataError, match=said):
        refuse_single_class(scan)
    with pytest.raises(DataError, match="at least two"):
        refuse_single_class(replace(_made(0, 4), num_train=1))
    refuse_single_class(replace(_made(0, 4), num_train=2))


def test_scan_of_a_source_without_keys_is_made_anew(home: Path, make_config: Callable[..., RunConfig]) -> None:
    source = open_source(make_config({"data.source": "digits"}).data)
    rows: list[int] = []
    few = ImageSource("few", "1", lambda: replace(source.entries, labels=source.entries.labels), "here")

    scan_source(few, progress=no_progress)
    scan_source(replace(few, fingerprint="2"), progress=no_progress, sink=lambda row, *_: rows.append(row))

    assert len(rows) == 1797
