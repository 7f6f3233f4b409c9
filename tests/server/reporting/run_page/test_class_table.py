"""Figures by class have the intervals that counting or noise gives them.

Drives `server.reporting.run_page.class_table`.
"""

import numpy as np
import pytest

from server.reporting.run_page.class_table import exact_figures, noised_figures


def test_figures_of_exact_counts_have_wilsons_intervals() -> None:
    found = exact_figures(np.array([[8, 2], [0, 0]]))

    # Wilson's interval of 8 in 10, as scipy and every textbook have it.
    assert (found["recall"].low[0], found["recall"].high[0]) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    # Right among all that are of the class or predicted as it: 8 in 10. F1 is 2 x 8 / (2 x 8 + 2).
    assert found["f1"].values[0] == pytest.approx(16 / 18)
    assert found["f1"].low[0] == pytest.approx(2 * 0.4902 / 1.4902, abs=1e-4)
    assert np.isnan(found["recall"].low[1])  # no image of that class


def test_figures_of_noised_counts_spread_as_the_noise_says() -> None:
    """The linear error against 4,000 draws."""
    rng = np.random.default_rng(3)
    cells = np.array([[400, 60, 40], [30, 500, 70], [10, 20, 600]])
    draws = cells + rng.normal(0, 8, (4000, 3, 3))
    found = noised_figures(cells, 8.0)
    drawn = [noised_figures(draw, 8.0) for draw in draws]

    for key, of in found.items():
        spread = np.std([figures[key].values for figures in drawn], axis=0)
        assert of.high - of.values == pytest.approx(spread, rel=0.06)
    assert np.isnan(noised_figures(np.array([[3, 1], [1, 3]]), 8.0)["recall"].values).all()


def test_f1_of_noised_counts_does_not_contradict_precision_and_recall() -> None:
    """The noise has made the first class' false alarms negative."""
    found = noised_figures(np.array([[36, 4, 3], [-5, 60, 2], [-2, 1, 50]]), 1.0)
    precision, recall = found["precision"].values, found["recall"].values

    assert precision[0] == 1.0
    assert found["f1"].values == pytest.approx(2 * precision * recall / (precision + recall))
