"""The tables of a benchmark's results."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from common.system.console import say
from simulations.benchmarks.contract import Benchmark, Figure
from simulations.benchmarks.measuring.machine import in_one_line


def shown(value: float) -> str:
    """Return a number with three digits.

    >>> shown(0.01234), shown(12.345), shown(12345.6), shown(0.0)
    ('0.0123', '12.3', '12,346', '0')
    """
    if value == 0:
        return "0"
    decimals = next((digits for limit, digits in ((0.01, 5), (0.1, 4), (1, 3), (10, 2), (100, 1)) if value < limit), 0)
    return f"{value:,.{decimals}f}"


def with_ends(spread: Mapping[str, float] | None, unit: str = "") -> str:
    """Return a median and the ends, such as `3 (2 to 5)`."""
    if spread is None:
        return ""
    low, middle, high = (shown(spread[key]) for key in ("min", "median", "max"))
    return f"{middle}{unit}" if low == high else f"{middle}{unit} ({low} to {high})"


def columns_of(benchmark: Benchmark) -> list[str]:
    """Return the titles of the columns."""
    figures = benchmark.figures
    return ["case", "variant", *(title for figure in figures for title in _titles(figure))]


def rows_of(benchmark: Benchmark, results: Mapping[str, Any]) -> Iterator[list[str]]:
    """Yield the cells of each variant.

    The row of a variant that was left out ends after its third cell, which says so.
    """
    for case in results["cases"]:
        for place, row in enumerate(case["variants"]):
            cells = [case["name"] if place == 0 else "", row["name"]]
            if row["skipped"]:
                yield [*cells, "not measured"]
                continue
            if not row["samples"]:
                yield [*cells, "failed" if "failed" in row else "not measured"]
                continue
            for figure in benchmark.figures:
                cells.append(with_ends(row["figures"].get(figure.key)))
                if figure.compared:
                    cells.append(with_ends(row["ratios"].get(figure.key), " x"))
            yield cells


def print_results(benchmark: Benchmark, results: Mapping[str, Any], console: Console) -> None:
    """Print the machine, the table and its notes."""
    say(console, in_one_line(results["machine"]), depth=0)
    skipped: dict[str, None] = {}
    for case in results["cases"]:
        table = Table(title=case["name"], title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
        for title in ("variant", "figure", "median (least to greatest)", "x (least to greatest)"):
            table.add_column(title)
        for row in case["variants"]:
            for place, cells in enumerate(_lines_of(benchmark, row)):
                table.add_row(row["name"] if place == 0 else "", *cells)
            if row["skipped"]:
                skipped[f"{row['name']} is not measured: it {row['skipped']}"] = None
        console.print(table)
    for line in (*_remarks(benchmark, results), *skipped):
        say(console, line, depth=0)


def _lines_of(benchmark: Benchmark, row: Mapping[str, Any]) -> Iterator[list[str]]:
    for figure in benchmark.figures:
        if figure.key in row["figures"]:
            ratio = with_ends(row["ratios"].get(figure.key), " x")
            yield [figure.label, with_ends(row["figures"][figure.key]), ratio]


def markdown(benchmark: Benchmark, results: Mapping[str, Any]) -> str:
    """Return a section of a page with date, machine and command."""
    columns = columns_of(benchmark)
    lines = [f"## {benchmark.name}", "", results["about"], "", _line(columns), _line(["---"] * len(columns))]
    lines += [_line([*row, *[""] * (len(columns) - len(row))]) for row in rows_of(benchmark, results)]
    where = f"{results['date'][:10]}, `{results['command']}`, {in_one_line(results['machine'])}"
    return "\n".join([*lines, "", *_remarks(benchmark, results), "", where, ""])


def _remarks(benchmark: Benchmark, results: Mapping[str, Any]) -> Sequence[str]:
    # Of a case that was stopped there are fewer.
    most = "at most " if "stopped" in results else ""
    pairs = f"{most}{results['pairs']} pair{'s' if results['pairs'] > 1 else ''}"
    quick = " Quick sizes: they show that it works, not how fast it is." if results["quick"] else ""
    first = f"Medians of {pairs} with least and greatest value; x is how many times better the first variant is.{quick}"
    stopped = f"It was stopped in {results['stopped']}." if "stopped" in results else ""
    return (first, *filter(None, [stopped]), *_failures(results), *benchmark.notes)


def _failures(results: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence on each variant that failed."""
    for case in results["cases"]:
        for row in case["variants"]:
            if "failed" in row:
                number = len(row["samples"])
                of = f"its figures are of {number} pair{'s' * (number > 1)}" if number else "it has no figures"
                yield f"{row['name']} failed in {row['failed'].partition(':')[0]} of {case['name']}: {of}."


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _titles(figure: Figure) -> tuple[str, ...]:
    return (figure.label, "x") if figure.compared else (figure.label,)
