"""A folder of every format and every fault: what is good is read, each fault is listed once."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from bract import app
from common.config.schema import RunConfig
from common.data.decoding import FORMATS
from common.data.scan import Scan, refuse_if_too_bad, scan_source
from common.data.sources.registry import open_source
from common.errors import DataError
from common.system.progress import no_progress
from tests.support.data.hostile_files import BAD, GOOD, build_hostile_folder, picture


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """The folder, and the faults that it holds."""
    root = tmp_path_factory.mktemp("hostile") / "pets"
    return root, build_hostile_folder(root)


@pytest.fixture(scope="module")
def scan(hostile: tuple[Path, dict[str, str]], make_config: Callable[..., RunConfig]) -> Scan:
    """What a scan finds in it."""
    return scan_source(open_source(make_config({"data.source": str(hostile[0])}).data), progress=no_progress)


def test_hostile_folder_lists_each_fault_exactly_once(scan: Scan, hostile: tuple[Path, dict[str, str]]) -> None:
    _, expected = hostile

    assert len(expected) == len(BAD)
    assert sorted(fault.place for fault in scan.faults) == sorted(expected)
    for fault in scan.faults:
        assert expected[fault.place] in fault.reason, fault.line


def test_hostile_folder_gives_every_good_image(scan: Scan) -> None:
    assert int(scan.usable.sum()) == 52
    assert np.bincount(scan.labels[scan.usable]).tolist() == [26, 26]
    assert set(scan.formats) == {*FORMATS, ""}
    assert {1, 3} == set(scan.channels[scan.usable].tolist())
    assert set(scan.widths[scan.usable].tolist()) == {24}
    assert len(GOOD) <= 26  # each format comes in each class


def test_hostile_folder_decodes_alike_under_all_lossless_colour_formats(scan: Scan) -> None:
    lossless = ("png", "webp", "bmp", "tiff", "tiff-lzw", "png-turned", "png-rgba")
    kinds = [name for name in sorted(GOOD) if name.partition(".")[0] in lossless]
    digests = {bytes(digest) for digest in scan.digests}

    from common.data.decoding import pixel_digest

    for kind in kinds:
        assert pixel_digest(picture(128, seed=sorted(GOOD).index(kind))) in digests, kind


def test_hostile_folder_is_refused_above_the_fraction_that_is_allowed(scan: Scan) -> None:
    num_bad, num_all = len(BAD), len(BAD) + 52
    refuse_if_too_bad(scan, max_bad_fraction=num_bad / num_all + 0.001)

    said = rf"{num_bad} of {num_all} images cannot be used \({num_bad / num_all:.1%}\)"
    with pytest.raises(DataError, match=said) as caught:
        refuse_if_too_bad(scan, max_bad_fraction=num_bad / num_all - 0.001)
    assert all(fault.line in str(caught.value) for fault in scan.faults)


def test_hostile_folder_passes_inspection_with_each_fault_listed_once(
    hostile: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    root, expected = hostile

    shown = CliRunner().invoke(app, ["data", "inspect", str(root), "--out", str(tmp_path / "pets.png")])
    told = CliRunner().invoke(app, ["data", "inspect", str(root), "--json"])

    assert shown.exit_code == told.exit_code == 0, shown.output + told.output
    facts = json.loads(told.stdout)
    assert sorted(fault["place"] for fault in facts["bad"]) == sorted(expected)
    lines = shown.stdout.splitlines()
    assert all(sum(line.startswith(f"  {place}: ") for line in lines) == 1 for place in expected)
    assert (tmp_path / "pets.png").read_bytes().startswith(b"\x89PNG")
