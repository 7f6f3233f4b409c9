"""Report of an evaluation, printed for people."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from common.inference.evaluation.figures import BY_CLASS, MEAN_OF, OVERALL
from common.system.console import plain, say

if TYPE_CHECKING:
    from rich.console import Console

_MAX_CLASSES = 60
_BY_GROUP = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "ece")


def show_report(report: Mapping[str, Any], console: "Console") -> None:
    """Print the figures of a whole evaluation, of its groups and of a comparison."""
    say(console, f"{report['images']:,} images, {report['part']}; intervals: {report['intervals']}", depth=0)
    table = Table("figure", box=None, pad_edge=False)
    table.add_column("", justify="right")
    table.add_column("interval", justify="right")
    for key, name in OVERALL.items():
        table.add_row(name, *_cells(report["figures"][key]))
    console.print(table)
    _show_classes(report["classes"], console)
    say(console, _left_out(report), depth=0)
    if "groups" in report:
        _show_groups(report["by"], report["groups"], console)
    if "baseline" in report:
        _show_comparison(report["baseline"], console)


def _cells(figure: Mapping[str, float | None]) -> tuple[str, str]:
    value, low, high = (figure[key] for key in ("value", "low", "high"))
    ends = "-" if low is None or high is None else f"{low:.3f}-{high:.3f}"
    return ("-" if value is None else f"{value:.4f}"), ends


def _show_classes(classes: Sequence[Mapping[str, Any]], console: "Console") -> None:
    table = Table("class", box=None, pad_edge=False)
    table.add_column("support", justify="right")
    for name in BY_CLASS.values():
        table.add_column(name, justify="right", no_wrap=True)
    for row in classes[:_MAX_CLASSES]:
        cells = ["\n".join(_cells(row[key])) for key in BY_CLASS]
        table.add_row(plain(row["class"]), f"{row['support']:,}", *cells)
    console.print(table)
    if len(classes) > _MAX_CLASSES:
        say(console, f"and {len(classes) - _MAX_CLASSES:,} more classes; --json has all", depth=0)


def _left_out(report: Mapping[str, Any]) -> str:
    means = ", ".join(OVERALL[key] for key in MEAN_OF)
    if not report["left_out"]:
        return f"{means}: averages over all classes."
    names = ", ".join(report["left_out"])
    return (
        f"{means}: averages without the classes of fewer than {max(1, report['least_support'])} images "
        f"(--least-support): {names}."
    )


def _show_groups(column: str, groups: Sequence[Mapping[str, Any]], console: "Console") -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(plain(column))
    for name in ("images", *(OVERALL[key] for key in _BY_GROUP)):
        table.add_column(name, justify="right")
    table.add_column("classes with too few images")
    for group in groups:
        cells = ["\n".join(_cells(group["figures"][key])) for key in _BY_GROUP]
        left_out = plain(", ".join(group["left_out"]))
        table.add_row(plain(group["group"] or "(empty)"), f"{group['images']:,}", *cells, left_out)
    console.print(table)
    if any(group["left_out"] for group in groups):
        say(
            console,
            "Averages are over different classes in groups that leave some out: compare those by accuracy or by class.",
            depth=0,
        )


def _show_comparison(found: Mapping[str, Any], console: "Console") -> None:
    difference = found["difference"]
    lines = [
        f"Baseline {found['model']}: accuracy {found['accuracy']:.4f}; difference {difference['value']:+.4f} "
        f"({difference['low']:+.3f} to {difference['high']:+.3f})",
        f"Right here only: {found['right_here_only']:,} images; right in the baseline only: "
        f"{found['right_in_baseline_only']:,}; McNemar's exact test p = {found['p_value']:.3g}",
    ]
    if not found["images_are_independent"]:
        lines.append("Some units have several images, which McNemar's test takes for independent: trust the interval.")
    for line in lines:
        say(console, line, depth=0)
