"""Every gap that a statement can name has a grade."""

from pathlib import Path

import pytest

from common.config.loading import Scalar
from common.privacy.batched_gradients import GAP
from common.privacy.mechanisms.registry import MECHANISMS
from server.reporting.run_page.gaps import GRADES, NOT_PRIVATE, NOT_PRIVATE_SUMS, gap_of
from server.reporting.run_page.run_files import read_run
from tests.support.server.report_pages import in_sums
from tests.support.server.run_folders import OPEN, PRIVATE


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_gap_of_every_mechanism_is_graded(name: str) -> None:
    stated = MECHANISMS[name].not_protected(num_clients=5, num_unpinned=2)

    for gap in (*stated, *NOT_PRIVATE, "held-out images: their exact counts left", GAP):
        found = gap_of(gap)
        assert found is not None, gap
        assert found.grade in GRADES
        assert found.meaning.endswith(".")


@pytest.mark.parametrize("settings", [OPEN, PRIVATE], ids=["exact", "noised"])
def test_every_gap_of_secure_sums_is_graded(settings: dict[str, Scalar], tmp_path: Path) -> None:
    in_sums(settings).write(tmp_path)
    files = read_run(tmp_path)

    assert [gap for gap in files.not_protected if gap_of(gap) is None] == []
    roster = next(gap for gap in files.not_protected if "a client whose roster" in gap)
    # Under noise the second figure bounds what clients learn that the server invented.
    found = gap_of(roster)
    assert found is not None
    assert found.grade == ("critical" if settings is OPEN else "theoretical")
    alone = [gap for gap in files.not_protected if "one client alone" in gap]
    assert len(alone) == (settings is OPEN), "under noise no value is in the sum as it is"
    assert not any("exact update" in gap for gap in files.not_protected)
    assert (NOT_PRIVATE_SUMS[0] in files.not_protected) == (settings is OPEN)


def test_a_gap_that_this_version_does_not_know_is_not_graded() -> None:
    assert gap_of("something new") is None


def test_whoever_sees_images_or_exact_updates_is_critical() -> None:
    critical = (
        "anything, against a server that changes the code clients run: 5 of 5 clients have not pinned it",
        "anything, against the server: it sees each client's exact update and must be trusted",
        "each client's exact update",
    )
    found = [gap_of(gap) for gap in critical]

    assert {gap.grade for gap in found if gap} == {"critical"}
    assert len({gap.meaning for gap in found if gap}) == 3  # the longest beginning decides
