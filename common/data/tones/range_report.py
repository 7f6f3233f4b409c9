"""Report on the values that images use.

It is for the terminal of the machine that holds the images. A client that has joined shows none of it to a server.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from common.data.tones.rendering import Tones
from common.data.tones.value_facts import BLACK_BELOW, OPAQUE

if TYPE_CHECKING:
    from common.data.scan import Scan

_DEPTHS = (8, 10, 12, 14, 16)
# A range whose upper quarter no image reaches is most likely not the range that the images use.
_REACHED = 0.75


def value_ranges(scan: "Scan", rows: np.ndarray | None = None) -> list[dict[str, Any]]:
    """Return the ranges of stored values by bits of a channel and sign.

    Usable images count; `rows`, an (n,) bool mask, chooses some of them. Each range has `bits`, `signed`, `images`,
    `min` and `max`.
    """
    chosen = scan.usable if rows is None else scan.usable & rows
    depths = scan.depths.astype(np.int64)
    ranges = []
    for depth in np.unique(depths[chosen]).tolist():
        of_depth = chosen & (depths == depth)
        ranges.append(
            {
                "bits": abs(depth),
                "signed": depth < 0,
                "images": int(of_depth.sum()),
                "min": int(scan.lows[of_depth].min()),
                "max": int(scan.highs[of_depth].max()),
            }
        )
    return sorted(ranges, key=lambda row: (row["bits"], row["signed"]))


def range_lines(ranges: Sequence[dict[str, Any]]) -> list[str]:
    """Return the lines of `value_ranges` for people, each with the setting that fits."""
    lines = []
    for row in ranges:
        kind = f"{'signed ' if row['signed'] else ''}{row['bits']} bits"
        lines.append(f"Values   {kind}: {row['min']:,} to {row['max']:,} in {row['images']:,} images{_advice(row)}")
    return lines


def unused_range(scan: "Scan", rows: np.ndarray, tones: Tones) -> str:
    """Return a warning about an empty upper quarter of the range.

    `rows`, an (n,) bool mask, chooses the images of one client or more. The range is what the tones spread over black
    to white. The warning is empty if an image reaches that quarter.
    """
    chosen = rows & scan.usable
    if not chosen.any():
        return ""
    first, last = _ends(scan, chosen, tones)
    if _reach(scan, chosen, tones).any():
        return ""
    depths, highs = scan.depths[chosen].astype(np.int64), scan.highs[chosen].astype(np.int64)
    top = int(np.argmax((highs - first) / (last - first)))
    kind = (abs(depths[top]), depths[top] < 0)
    row = next(row for row in value_ranges(scan, chosen) if (row["bits"], row["signed"]) == kind)
    advice = "" if tones.gray_window else _advice(row)
    return (
        f"The upper quarter of the range of values is empty in all {int(chosen.sum()):,} images: the largest value is "
        f"{int(highs[top]):,}, and white is {int(last[top]):,}{advice}."
    )


def unused_ranges(scan: "Scan", owner: np.ndarray, tones: Tones) -> list[str]:
    """Return warnings about simulated clients that all have an empty upper quarter.

    `owner` is (n,) int32, the client of each entry, -1 for none.
    """
    chosen = (owner >= 0) & scan.usable
    clients = np.unique(owner[chosen]).tolist()
    # All clients at once: one pass over the images for each takes minutes with 100,000 of them.
    found = np.setdiff1d(clients, owner[chosen][_reach(scan, chosen, tones)]).tolist()
    if not found:
        return []
    warning = unused_range(scan, np.isin(owner, found), tones)
    return [warning if found == clients else f"{len(found)} of {len(clients)} clients: {warning}"]


def _ends(scan: "Scan", chosen: np.ndarray, tones: Tones) -> tuple[np.ndarray, np.ndarray]:
    """Return the values of black and of white, one for each chosen image."""
    depths = scan.depths[chosen].astype(np.int64)
    bits = np.minimum(np.abs(depths), tones.bit_depth)
    first = np.where(depths < 0, -(1 << bits - 1), 0)
    last = first + (1 << bits) - 1
    if tones.gray_window is None:
        return first, last
    gray = scan.channels[chosen] == 1
    black, white = tones.gray_window
    return np.where(gray, black, first), np.where(gray, white, last)


def _reach(scan: "Scan", chosen: np.ndarray, tones: Tones) -> np.ndarray:
    """Return whether each chosen image reaches the upper quarter of its range."""
    first, last = _ends(scan, chosen, tones)
    return np.asarray(scan.highs[chosen] >= first + _REACHED * (last - first))


def _advice(row: dict[str, Any]) -> str:
    """Return the setting by which values fill the range."""
    if row["signed"] and row["min"] < row["max"]:
        return f"; data.gray-window={row['min']},{row['max']} spreads them over black to white"
    used = next(bits for bits in _DEPTHS if row["max"] < 1 << bits)
    if row["signed"] or used >= row["bits"]:
        return ""
    return f"; {used} bits are used (data.bit-depth={used})"


def special_images(scan: "Scan") -> dict[str, np.ndarray]:
    """Return rows of images that a model may see nothing in, by kind."""
    return {
        "constant": np.flatnonzero(scan.usable & scan.constant),
        "transparent": np.flatnonzero(scan.usable & (scan.transparency != OPAQUE)),
        "black_below_transparency": np.flatnonzero(scan.usable & (scan.transparency == BLACK_BELOW)),
    }
