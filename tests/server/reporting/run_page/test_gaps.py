"""Every gap that a statement can name has a grade."""

import pytest

from common.privacy.mechanisms import MECHANISMS
from server.reporting.run_page.gaps import GRADES, NOT_PRIVATE, gap_of


@pytest.mark.parametrize("name", MECHANISMS)
def test_every_gap_of_every_mechanism_is_graded(name: str) -> None:
    stated = MECHANISMS[name].not_protected(num_clients=5, num_unpinned=2)

    for gap in (*stated, *NOT_PRIVATE, "held-out images: their exact counts left"):
        found = gap_of(gap)
        assert found is not None, gap
        assert found.grade in GRADES
        assert found.meaning.endswith(".")


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
