"""The command `bract list tunings`."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from rich.console import Console

from common.config.loading import defaults, override, parse
from common.errors import ConfigError
from common.models.tuning import TUNINGS as _ROWS
from common.system.console import bar_factory, plain_errors
from common.system.progress import ProgressFactory, no_progress

BACKBONES = ("efficientnet_lite0", "mobilenet_v3_small", "resnet18", "convnext_atto", "vit_tiny_patch16_224", "vgg16")
TUNINGS = tuple(name.replace("<n>", "1") for name in _ROWS)
_BYTES = 4
TABLE_HELP = """Show what each backbone trains and sends under each way of tuning.

Without names: a backbone of each family. Architectures are built with random weights, so
nothing is downloaded. Example: bract list tunings timm:resnet34 vgg16 --num-classes 3
"""


@dataclass(frozen=True)
class TuningRow:
    """A cell of the table for one backbone and one way of tuning.

    `parameters` counts trained values, with those of a linear head; `num_bytes` is what one client sends in a round.
    Impossible pairs have a refusal.
    """

    backbone: str
    tuning: str
    parameters: int
    num_bytes: int
    refusal: str


def tuning_table(
    backbones: Sequence[str],
    tunings: Sequence[str],
    *,
    num_classes: int = 10,
    progress: ProgressFactory = no_progress,
) -> list[TuningRow]:
    """Count the trained values of each network under each way of tuning.

    `progress` counts the networks.

    Raises:
        ConfigError: A backbone is unknown.
    """
    from common.models.names import resolve_name

    for backbone in backbones:
        resolve_name(backbone)
    advance, rows = progress(len(backbones) * len(tunings), "Building networks"), []
    for backbone, tuning in itertools.product(backbones, tunings):
        rows.append(_row(backbone, tuning, num_classes))
        advance(1)
    return rows


def _row(backbone: str, tuning: str, num_classes: int) -> TuningRow:
    from common.models.backbone_info import backbone_info
    from common.models.classifier import build_network

    changes = {"model.backbone": backbone, "model.tuning": tuning, "model.weights": "random"}
    try:
        config = parse(override(defaults(), changes))
        facts = backbone_info(config.backbone_spec)
        side = facts.image_size
        shape = (facts.num_features,) if config.caches_features else (side, side, 3)
        network = build_network(config, shape, num_classes)
    except ConfigError as error:
        return TuningRow(backbone, tuning, 0, 0, str(error))
    named = dict(network.named_parameters())
    count = sum(named[name].numel() for name in network.trained)
    return TuningRow(backbone, tuning, count, _BYTES * count, "")


def markdown(rows: Sequence[TuningRow]) -> str:
    """Return the rows as a Markdown table, with a line for each backbone."""
    tunings = list(dict.fromkeys(row.tuning for row in rows))
    cells = {(row.backbone, row.tuning): row for row in rows}
    header = " | ".join(f"`{tuning}`" for tuning in tunings)
    lines = [f"| backbone | {header} |", "|---" * (len(tunings) + 1) + "|"]
    for backbone in dict.fromkeys(row.backbone for row in rows):
        words = [_cell(cells[backbone, tuning]) for tuning in tunings]
        lines.append(f"| `{backbone}` | " + " | ".join(words) + " |")
    return "\n".join(lines)


def _cell(row: TuningRow) -> str:
    return "no such layers" if row.refusal else f"{_short(row.parameters).strip()}, {_short(row.num_bytes)}B, DP yes"


def _short(amount: int) -> str:
    """Return an amount with three digits and a unit.

    >>> _short(12_800), _short(3_379_968), _short(640)
    ('12.8 k', '3.38 M', '640 ')
    """
    for size, unit in ((1_000_000, "M"), (1_000, "k")):
        if amount >= size:
            return f"{amount / size:.3g} {unit}"
    return f"{amount} "


def table_command(
    backbones: Annotated[list[str] | None, typer.Argument(help="Names as in model.backbone.")] = None,
    num_classes: Annotated[int, typer.Option(min=2, help="Size of the linear head.")] = 10,
) -> None:
    """Show what each backbone trains and sends under each way of tuning."""
    with plain_errors():
        with bar_factory(Console(stderr=True)) as progress:
            rows = tuning_table(backbones or BACKBONES, TUNINGS, num_classes=num_classes, progress=progress)
        typer.echo("Trained parameters, and bytes a client sends in a round (float32)\n")
        typer.echo(markdown(rows))
        for row in rows:
            if row.refusal:
                typer.echo(f"\n{row.refusal}")
        typer.echo("")
        for name, tuning in _ROWS.items():
            typer.echo(f"{name:<8}  {tuning.description}")
