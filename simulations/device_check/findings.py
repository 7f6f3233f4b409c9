"""The figures of a device check with their limits."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from simulations.benchmarks.measuring.tables import shown


@dataclass(frozen=True)
class Finding:
    """Figure of the device.

    Args:
        part: What was examined, such as `features`.
        figure: What the value says, with its unit.
        value: The device's value.
        limit: Largest value that passes; None for a measurement.
        processor: The same figure of the machine's processor, None where there is none.
    """

    part: str
    figure: str
    value: float
    limit: float | None = None
    processor: float | None = None

    @property
    def passed(self) -> bool:
        """True unless the value is above its limit or is not a number."""
        return self.limit is None or self.value <= self.limit


@dataclass(frozen=True)
class Sizes:
    """Sizes of the examined work.

    Args:
        side: Pixels of an image's side for networks that are trained.
        images: Images of the timed feature pass on the device; the processor takes an eighth, three chunks at least.
        examples: Images whose gradients are compared.
        batch: Expected images of a private step.
        tunings: Parts of the backbone that are trained.
        rounds: Rounds of a whole run.
    """

    side: int = 128
    images: int = 2048
    examples: int = 16
    batch: int = 32
    tunings: tuple[str, ...] = ("norm", "full")
    rounds: int = 5


QUICK = Sizes(side=32, images=192, examples=6, batch=4, tunings=("norm",), rounds=1)


def in_words(found: Finding) -> str:
    """Return a line for a figure as soon as it is found.

    >>> in_words(Finding("features", "images/s", 700.0, processor=60.0))
    'features: images/s 700 (processor 60.0)'
    """
    beside = "" if found.processor is None else f" (processor {shown(found.processor)})"
    return f"{found.part}: {found.figure} {shown(found.value)}{beside}"


def failures(findings: Iterable[Finding]) -> list[str]:
    """Return a sentence for each figure that does not pass."""
    return [
        f"{found.part}: {found.figure} is {shown(found.value)}, at most {shown(found.limit or 0.0)} passes"
        for found in findings
        if not found.passed
    ]


def table_of(findings: Sequence[Finding], device: str) -> Table:
    """Return the findings as a table, part by part."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("part", "figure", device, "processor", "limit", ""):
        table.add_column(title, justify="right" if title in (device, "processor", "limit") else "left")
    before = ""
    for found in findings:
        cells = [found.figure, shown(found.value), *_optional(found.processor, found.limit)]
        verdict = "" if found.limit is None else "ok" if found.passed else "FAILS"
        table.add_row(found.part if found.part != before else "", *cells, verdict)
        before = found.part
    return table


def plain(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """Return the findings as values for JSON."""
    return [{**asdict(found), "passed": found.passed} for found in findings]


def _optional(*values: float | None) -> Iterator[str]:
    for value in values:
        yield "" if value is None else shown(value)
