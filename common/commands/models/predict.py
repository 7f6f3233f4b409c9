"""The command `bract predict`."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from common.commands.run_settings import refuse_closed
from common.errors import ConfigError
from common.inference.card import find_model
from common.system.console import bar_factory, plain, plain_errors, say
from common.system.files import write_atomic

if TYPE_CHECKING:
    from common.inference.predictions import Prediction

PREDICT_HELP = """Classify images with the model of a run.

MODEL is the folder of a run, or its model/. Each PATH is an image, a folder of images (or of
Parquet files), a table (CSV, TSV, Excel or Parquet) with the column path or image, or - for a list of
paths on standard input.
Images are decoded and scaled as in training. Nothing leaves this machine, and nothing is written
beside the model.

Exit code: 0; 2 if the model or a PATH cannot be used, and nothing was written; 3 if some images
could not be read, with the reason in their row.

Examples:

  bract predict runs/NAME photos/

  bract predict runs/NAME a.png b.jpg --top-k 3

  bract predict runs/NAME scans.csv --csv predictions.csv --parquet predictions.parquet

  find . -name '*.png' | bract predict runs/NAME - --json
"""
BAD_IMAGES = 3
_MAX_SHOWN = 100
_MAX_FAULTS = 20

Device = Literal["auto", "cpu", "cuda", "mps"]
ModelArgument = Annotated[Path, typer.Argument(metavar="MODEL", help="Folder of a run, or its model/.")]
WeightsOption = Annotated[
    Path | None, typer.Option(metavar="FILE", help="The backbone's weights, where the run had a file in model.weights.")
]
DeviceOption = Annotated[Device, typer.Option(help="Where the model runs.")]


def predict_command(
    model: ModelArgument,
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Images, folders, manifests, or -.")],
    top_k: Annotated[int, typer.Option(min=1, help="How many classes to show for each image.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
    csv: Annotated[Path | None, typer.Option("--csv", metavar="FILE", help="Also write a CSV file.")] = None,
    parquet: Annotated[
        Path | None, typer.Option("--parquet", metavar="FILE", help="Also write a Parquet file.")
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Classify images with the model of a run."""
    console = Console(stderr=as_json)
    with plain_errors("Stopped; nothing was written."):
        check_outputs(find_model(model), {"--csv": csv, "--parquet": parquet})
        from common.inference.classifier import load_model
        from common.inference.inputs import name_images
        from common.inference.predictions import as_csv, as_parquet, predict_images

        images = name_images(paths, sys.stdin)
        classifier = load_model(model, weights=weights, device=device)
        top_k = min(top_k, len(classifier.classes))
        with bar_factory(console) as progress:
            rows = list(predict_images(classifier, images, top_k, progress))
        for file, table in ((csv, as_csv), (parquet, as_parquet)):
            if file is not None:
                write_output(file, table(rows, top_k))
        if as_json:
            typer.echo(json.dumps([row.as_dict() for row in rows], indent=2))
        else:
            _show(rows, top_k, console)
    if any(row.fault for row in rows):
        raise typer.Exit(BAD_IMAGES)


def check_outputs(folder: Path, outputs: Mapping[str, Path | None]) -> None:
    """Refuse output files that lie beside a model or cannot be written.

    Raises:
        ConfigError: An output lies in the model's folder, or in a folder that does not exist or is closed to this user.
    """
    model = folder.resolve()
    passed_on = {model, *([model.parent] if (model.parent / "config.toml").is_file() else [])}
    for option, file in outputs.items():
        if file is None:
            continue
        if file.is_dir() or not file.parent.is_dir():
            raise ConfigError(f"{option} {file}: give a file in a folder that exists")
        # Models and runs are passed on. What a model says of private images must not go along by accident.
        if passed_on & {*file.resolve().parents}:
            raise ConfigError(f"{option} {file} is in the folder of the model, which others may get: write elsewhere")
        refuse_closed(option, file, replaces=True)


def write_output(file: Path, content: bytes) -> None:
    """Write a file about images that its owner alone can read.

    Raises:
        ConfigError: The file cannot be written.
    """
    try:
        # What a model says of a patient's image is for the owner's eyes alone.
        write_atomic(file, content, durable=False, mode=0o600)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror})") from None


def _show(rows: Sequence["Prediction"], top_k: int, console: Console) -> None:
    table = Table("image", box=None, pad_edge=False)
    for rank in range(1, top_k + 1):
        table.add_column("class" if rank == 1 else f"{rank}.")
        table.add_column("", justify="right")
    good, bad = [row for row in rows if not row.fault], [row for row in rows if row.fault]
    for row in rows[:_MAX_SHOWN]:
        ranked = [plain(cell) for name, share in row.top for cell in (name, f"{share:.3f}")]
        table.add_row(plain(row.image), *(ranked or [plain("cannot be used", "red")]))
    console.print(table)
    if len(rows) > _MAX_SHOWN:
        say(console, f"and {len(rows) - _MAX_SHOWN:,} more: --csv, --parquet or --json has all", depth=0)
    show_faults(console, [(row.image, row.fault) for row in bad])
    say(console, f"{len(good):,} of {len(rows):,} images classified", depth=0)


def show_faults(console: Console, faults: Sequence[tuple[str, str]]) -> None:
    """Print images that cannot be used with the reasons, up to 20 of them."""
    for place, reason in faults[:_MAX_FAULTS]:
        say(console, f"{place}: {reason}", "red", depth=0)
    if len(faults) > _MAX_FAULTS:
        say(console, f"and {len(faults) - _MAX_FAULTS:,} more that cannot be used", "red", depth=0)
