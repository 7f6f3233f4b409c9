"""Geometry of charts, in percent of the plot's width and height.

Lines are drawn in a square of 1,000 units that the browser stretches. Labels are text of the page beside it, so they
keep their size on every screen.
"""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from common.page.blocks import LineChart, PixelMap, Series, TimeLine

_SIZE = 1000.0
_X_TICKS, _Y_TICKS = 6, 5
# Colour of a full cell, which stands out from light and from dark paper.
_FULL = (47, 139, 104)


@dataclass(frozen=True)
class Tick:
    """Label of an axis at a place in percent."""

    place: float
    text: str


@dataclass(frozen=True)
class Drawn:
    """Paths of one series in a square of 1,000 units."""

    name: str
    look: int
    line: str
    band: str
    dots: str


@dataclass(frozen=True)
class Plot:
    """Chart as it is drawn.

    `places` are the places of the table's rows in percent of the width, `heights` those of a time line's marks.
    """

    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    drawn: tuple[Drawn, ...]
    places: tuple[float, ...]
    heights: tuple[float, ...] = ()


def nice_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """Return up to `most` round numbers that span an interval.

    >>> nice_ticks(0, 1, 5), nice_ticks(1, 30, 6, whole=True)
    ([0.0, 0.25, 0.5, 0.75, 1.0], [0.0, 10.0, 20.0, 30.0])
    """
    span = max(high - low, 1e-12)
    raw = span / (most - 1)
    unit = 10.0 ** math.floor(math.log10(raw))
    steps = [unit * factor for factor in (1, 2, 2.5, 5, 10, 20, 50)]
    for step in (step for step in steps if not whole or step == round(step) >= 1):
        first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        if last - first + 1 <= most and step >= raw * 0.999:
            return [round(number * step, 10) for number in range(first, last + 1)]
    return [low, high]


def plot_lines(chart: LineChart) -> Plot:
    """Return the paths and labels of a chart."""
    x_low, x_high = _limits(chart.x)
    known = [value for series in chart.series for part in (series.values, series.low, series.high) for value in part]
    finite = [value for value in known if value is not None and math.isfinite(value)]
    low, high = chart.limits or (0.0, max(finite, default=1.0) or 1.0)
    ticks = nice_ticks(low, high, _Y_TICKS)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    places = tuple(round(100 * (x - x_low) / (x_high - x_low), 2) for x in chart.x)
    heights = (low, high)
    inside = [tick for tick in nice_ticks(x_low, x_high, _X_TICKS, whole=True) if x_low <= tick <= x_high]
    return Plot(
        tuple(Tick(100 * (tick - x_low) / (x_high - x_low), f"{tick:,.0f}") for tick in inside),
        tuple(Tick(100 * (tick - low) / (high - low), _label(tick, high)) for tick in ticks),
        tuple(_drawn(series, places, heights) for series in chart.series),
        places,
    )


def plot_timeline(chart: TimeLine) -> Plot:
    """Return the marks and labels of a time line."""
    low, high = chart.limits
    span = max(high - low, 1e-9)
    lanes = len(chart.lanes)
    heights = tuple(round(100 * (lanes - lane - 0.5) / lanes, 2) for lane in range(lanes))
    places = tuple(round(100 * (x - low) / span, 2) for x in chart.x)
    inside = [tick for tick in nice_ticks(low, high, _X_TICKS, whole=True) if low <= tick <= high]
    marks = []
    for lane in range(lanes):
        own = [place for place, of in zip(places, chart.lane_of, strict=True) if of == lane]
        dots = "".join(f"M{10 * place:.0f} {10 * (100 - heights[lane]):.0f}h0" for place in dict.fromkeys(own))
        ends = [span for span, of in zip(chart.spans, chart.lane_of, strict=False) if of == lane]
        band = "".join(
            _bar(1000 * (left - low) / span, 1000 * (right - low) / span, heights[lane]) for left, right in ends
        )
        # Lanes with intervals are of one kind, so they have one colour.
        marks.append(Drawn(chart.lanes[lane], 1 if chart.spans else lane % 4 + 1, "", band, dots))
    return Plot(
        tuple(Tick(100 * (tick - low) / span, f"{tick:,.0f}") for tick in inside),
        tuple(Tick(height, name) for height, name in zip(heights, chart.lanes, strict=True)),
        tuple(marks),
        places,
        tuple(heights[lane] for lane in chart.lane_of),
    )


def _bar(left: float, right: float, height: float) -> str:
    top, bottom = 10 * (100 - height) - 25, 10 * (100 - height) + 25
    return f"M{left:.0f} {top:.0f}H{right:.0f}V{bottom:.0f}H{left:.0f}Z"


def _limits(x: Sequence[float]) -> tuple[float, float]:
    low, high = min(x, default=0.0), max(x, default=1.0)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _label(value: float, largest: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= 2 * size:
            return f"{value / size:g}{unit if value else ''}"
    return f"{value:g}"


def _drawn(series: Series, places: Sequence[float], limits: tuple[float, float]) -> Drawn:
    points = [_point(place, value, limits) for place, value in zip(places, series.values, strict=True)]
    dots = "".join(f"M{point}h0" for point in points if point)
    shown = [point for point in points if point is not None] if series.bridged else points
    line = _joined(shown) if series.joined else ""
    # Dots hide a line of many rounds.
    few = sum(point is not None for point in points) <= 60
    return Drawn(series.name, series.look, line, _band(series, places, limits), dots if few or not line else "")


def _point(place: float, value: float | None, limits: tuple[float, float]) -> str | None:
    if value is None or not math.isfinite(value):
        return None
    height = (min(max(value, limits[0]), limits[1]) - limits[0]) / (limits[1] - limits[0])
    return f"{10 * place:.1f} {_SIZE * (1 - height):.1f}"


def _joined(points: Sequence[str | None]) -> str:
    path, pen = "", "M"
    for point in points:
        # A gap stays a gap: nothing was measured there.
        path, pen = (path, "M") if point is None else (f"{path}{pen}{point}", "L")
    return path


def _band(series: Series, places: Sequence[float], limits: tuple[float, float]) -> str:
    if not series.low:
        return ""
    path = ""
    run: list[tuple[str, str]] = []
    for place, low, high in [*zip(places, series.low, series.high, strict=True), (0.0, None, None)]:
        ends = _point(place, low, limits), _point(place, high, limits)
        if ends[0] is not None and ends[1] is not None:
            run.append((ends[0], ends[1]))
            continue
        if run:
            path += f"M{'L'.join([upper for _, upper in run] + [lower for lower, _ in reversed(run)])}Z"
        run = []
    return path


def pixel_image(shares: np.ndarray) -> str:
    """Return a picture of shares in [0, 1] as a data address.

    It has one pixel a cell.
    """
    from PIL import Image

    # The square root lifts rare errors out of the paper.
    alpha = np.rint(255 * np.sqrt(np.clip(shares, 0.0, 1.0))).astype(np.uint8)
    pixels = np.dstack([np.full_like(alpha, part) for part in _FULL] + [alpha])
    stream = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(stream, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def plot_of(chart: LineChart | TimeLine | PixelMap) -> Plot:
    """Return a chart as it is drawn."""
    if isinstance(chart, PixelMap):
        return Plot((), (), (), ())
    return plot_lines(chart) if isinstance(chart, LineChart) else plot_timeline(chart)
