"""Charts are drawn where their figures are.

Drives `common.page.blocks`.
"""

import base64
import io
import math

import numpy as np
import pytest
from PIL import Image

from common.page.blocks import Cell, LineChart, Series, Table, name_cell
from common.page.chart_geometry import nice_ticks, pixel_image, plot_lines

EMPTY = Table("", ("x",), ())


def chart(x: tuple[float, ...], *series: Series, limits: tuple[float, float] | None = (0.0, 1.0)) -> LineChart:
    return LineChart("title", "x", "y", x, series, EMPTY, limits)


def test_a_line_passes_through_its_values_and_keeps_gaps() -> None:
    plot = plot_lines(chart((1.0, 2.0, 3.0, 5.0), Series("a", (0.0, 0.5, None, 1.0))))

    assert plot.places == (0.0, 25.0, 50.0, 100.0)
    assert plot.drawn[0].line == "M0.0 1000.0L250.0 500.0M1000.0 0.0"


def test_a_band_spans_its_ends_and_stops_at_a_gap() -> None:
    series = Series("a", (0.5, None, 0.5), low=(0.25, None, 0.0), high=(0.75, None, 2.0))
    band = plot_lines(chart((0.0, 1.0, 2.0), series)).drawn[0].band

    assert band == "M0.0 250.0L0.0 750.0ZM1000.0 0.0L1000.0 1000.0Z"


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_not_drawn(value: float) -> None:
    plot = plot_lines(chart((0.0, 1.0), Series("a", (value, 3.0)), limits=None))

    assert plot.drawn[0].line == "M1000.0 0.0"


def test_one_round_and_no_round_have_a_plot() -> None:
    assert plot_lines(chart((7.0,), Series("a", (0.5,)))).places == (50.0,)
    assert plot_lines(chart((), Series("a", ()))).drawn[0].line == ""


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.003), (1, 30), (0, 123_456), (0, 1e-9), (-3, 3), (0.5, 2)])
def test_ticks_are_round_few_and_span_all(low: float, high: float) -> None:
    ticks = nice_ticks(low, high, 5)

    assert 2 <= len(ticks) <= 5
    assert ticks[0] <= low
    assert ticks[-1] >= high - 1e-9


def test_a_picture_has_one_pixel_a_cell_darker_for_more() -> None:
    content = base64.b64decode(pixel_image(np.array([[0.0, 0.25], [1.0, 2.0], [0.5, 0.0]])).partition(",")[2])
    image = Image.open(io.BytesIO(content))

    assert image.size == (2, 3)
    assert [image.getpixel(at)[3] for at in ((0, 0), (1, 0), (0, 1), (1, 1))] == [0, 128, 255, 255]  # type: ignore[index]


@pytest.mark.parametrize("name", ["n" * 10_000, "a" * 61, "x" * 400])
def test_a_long_name_keeps_both_ends_and_says_its_length(name: str) -> None:
    cell = name_cell(f"first{name}last")

    assert len(cell.text) <= 60
    assert cell.text.startswith("first")
    assert cell.text.endswith("last")
    assert len(cell.title) < 420


def test_an_empty_name_can_be_seen() -> None:
    assert name_cell("") == Cell("(no name)", is_name=True)
