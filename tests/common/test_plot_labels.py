"""Labels of many classes are thinned out, and say so."""

import pytest

from common.plot_labels import short_label, thinned_labels


@pytest.mark.parametrize(
    ("count", "places", "remark"),
    [
        (0, [], ""),
        (1, [0], ""),
        (40, list(range(40)), ""),
        (41, list(range(0, 41, 2)), " (one name in 2)"),
        (200, list(range(0, 200, 5)), " (one name in 5)"),
        (1_000, list(range(0, 1_000, 25)), " (one name in 25)"),
    ],
)
def test_thinned_labels_are_at_most_forty(count: int, places: list[int], remark: str) -> None:
    found, labels, said = thinned_labels([f"class {number}" for number in range(count)])

    assert list(found) == places
    assert labels == [f"class {place}" for place in places]
    assert said == remark


def test_short_label_is_no_formula_and_not_long() -> None:
    assert short_label("$" * 40) == r"\$" * 21 + "..."
