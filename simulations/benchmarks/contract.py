"""The parts of a benchmark, as one file of this folder declares them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """Quantity that is measured.

    Every process has `wall_seconds`, `cpu_seconds` (its children included) and `peak_mb` (of its largest process)
    without a variant's help. All other keys come from what a variant returns.

    Args:
        key: Key in a variant's result.
        label: Column title with its unit.
        larger_is_better: False for a cost such as seconds.
        compared: Show the ratio to the first variant.
    """

    key: str
    label: str
    larger_is_better: bool = False
    compared: bool = True


@dataclass(frozen=True)
class Variant:
    """Way to do a case's job, run in a fresh process.

    Args:
        name: Shown in tables.
        run: `package.module:function`, or a script's name in the folder `peers`.
        parameters: Plain values for it, with `repeat` (the number of the pair, from 0) and `scratch` (a folder that all
            processes of one benchmark share). A function gets those that it takes, as keyword arguments. A script gets
            all as JSON in its first argument and writes its result as JSON to the file of its second. A result is
            figures by their keys, or `not_possible` with the reason why the job cannot be done this way.
        needs: Packages that must be there, else the variant is skipped with a message.
        environment: Name of a separate environment whose Python runs it, given by `--environment NAME=FOLDER`.
        install: What to install where a need is missing.
    """

    name: str
    run: str
    parameters: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    environment: str = ""
    install: str = ""


@dataclass(frozen=True)
class Case:
    """Job and the variants that do it in turn.

    Ratios say how many times better the first variant is, so above 1 means that the first is ahead.

    Args:
        name: Shown in tables, for instance `100 clients`.
        variants: Measured one after another within each pair, in reverse order in every second pair.
        prepare: Run once before the first pair, untimed, as a variant's `run`. It has the first variant's parameters.
    """

    name: str
    variants: tuple[Variant, ...]
    prepare: str = ""


@dataclass(frozen=True)
class Options:
    """Choices of the command line that a benchmark's cases follow from.

    Args:
        quick: Small sizes that show that everything works.
        data: Folder with CIFAR-10 that `--data` names, or empty.
    """

    quick: bool = False
    data: str = ""


@dataclass(frozen=True)
class Benchmark:
    """A named list of cases.

    Args:
        name: As `bract bench` takes it.
        about: One sentence.
        duration: About how long five pairs take on two cores, in words.
        figures: Columns of the table, the most important one first.
        cases: Makes the cases. It imports nothing heavy.
        draw: Draws pictures of its own into a folder. Left out, a bar chart of the first figure is drawn.
        notes: Sentences below the table.
    """

    name: str
    about: str
    duration: str
    figures: tuple[Figure, ...]
    cases: Callable[[Options], Sequence[Case]]
    draw: Callable[[Mapping[str, Any], Path], None] | None = None
    notes: tuple[str, ...] = ()
