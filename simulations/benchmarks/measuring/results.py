"""The arithmetic of pairs, from the figures of each process to ratios."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from simulations.benchmarks.contract import Figure

Sample = Mapping[str, float]
# Every process has these, whatever its variant returns.
OF_PROCESS = (
    Figure("wall_seconds", "wall s"),
    Figure("cpu_seconds", "CPU s"),
    Figure("peak_mb", "peak MB", compared=False),
)


def spread(values: Iterable[float]) -> dict[str, float]:
    """Return least, median and greatest value.

    >>> spread([3.0, 1.0, 2.0])
    {'min': 1.0, 'median': 2.0, 'max': 3.0}
    """
    ordered = sorted(values)
    return {"min": ordered[0], "median": statistics.median(ordered), "max": ordered[-1]}


def pair_ratios(first: Sequence[Sample], other: Sequence[Sample], figure: Figure) -> list[float]:
    """Return how many times better the first variant was, pair by pair.

    Pairs in which a value is missing or zero are left out, and the last ones of a variant that outlived the other.

    >>> seconds = Figure("s", "seconds")
    >>> pair_ratios([{"s": 2.0}, {"s": 1.0}], [{"s": 6.0}, {"s": 4.0}], seconds)
    [3.0, 4.0]
    """
    ratios = []
    for ours, theirs in zip(first, other, strict=False):
        values = ours.get(figure.key), theirs.get(figure.key)
        if values[0] and values[1]:
            ratios.append(values[0] / values[1] if figure.larger_is_better else values[1] / values[0])
    return ratios


def summarize(names: Sequence[str], samples: Sequence[Sequence[Sample]], figures: Sequence[Figure]) -> list[Any]:
    """Return each variant's samples, spreads and ratios to the first variant.

    Args:
        names: Names of the variants.
        samples: Per variant one sample a pair, and none if it was skipped.
        figures: What to summarize.
    """
    summary = []
    for name, own in zip(names, samples, strict=True):
        spreads = {}
        ratios = {}
        for figure in figures:
            values = [sample[figure.key] for sample in own if sample.get(figure.key) is not None]
            if values:
                spreads[figure.key] = spread(values)
            if figure.compared and own is not samples[0] and own and samples[0]:
                found = pair_ratios(samples[0], own, figure)
                if found:
                    ratios[figure.key] = spread(found)
        summary.append({"name": name, "samples": list(own), "figures": spreads, "ratios": ratios})
    return summary
