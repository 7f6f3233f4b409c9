"""The command `bract export`."""

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

from common.commands.models.predict import BAD_IMAGES, ModelArgument, WeightsOption, show_faults
from common.commands.run_settings import refuse_closed
from common.config import loading
from common.errors import ConfigError
from common.inference.card import find_model
from common.inference.export.metadata import SUFFIXES, Format
from common.system.console import bar_factory, plain_errors, say
from common.system.files import write_atomic

if TYPE_CHECKING:
    import numpy as np

    from common.config.sections import DataConfig
    from common.inference.classifier import Classifier
    from common.inference.evaluation.labelled_images import LabelledImages
    from common.inference.export.accuracy import Hits
    from common.inference.export.formats import Export, Pruning

# Share of unchanged classes below which a file in 8 bits is shown in red.
_FEW_CHANGE = 0.9
# Loss of accuracy by pruning from which on it is shown in red.
_MUCH_LOST = 0.01
EXPORT_HELP = """Write the model of a run as one file that runs without Bract.

MODEL is the folder of a run, or its model/. The file takes RGB images of the model's size,
(n, side, side, 3) uint8, and gives logits (n, classes). Its metadata say the classes, how to scale
images, and the privacy statement. It is written only if its logits equal the model's to 1e-4 of the
largest one.

onnx-int8 computes in 8 bits. The ranges of its activations are measured on the images of
--calibrate and stand in the file, so these images must be public: --public-data says that they are.
What --test measures is shown here and written nowhere.

--prune removes the weakest channels of each block, so that the file is smaller and faster. Where that
is not possible, or with --prune-by weights, it sets the smallest weights to zero, which only makes the
file smaller once it is compressed. The model is not trained again: look at what --test says.

Exit code: 0; 2 if the model or a folder cannot be used, and nothing was written; 3 if some images of
--test could not be used.

Examples:

  bract export runs/NAME --out model.onnx

  bract export runs/NAME --format onnx-int8 --calibrate photos/ --public-data --out small.onnx --test test/

  bract export runs/NAME --prune 0.2 --prune-by weights --out pruned.onnx --test test/

  bract export runs/NAME --format torch-export --out model.pt2
"""


def export_command(
    model: ModelArgument,
    out: Annotated[Path, typer.Option(metavar="FILE", help="File to write, .onnx or .pt2.")],
    kind: Annotated[Format, typer.Option("--format", help="Format of the file.")] = "onnx",
    calibrate: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Public images for onnx-int8, a folder or manifest.")
    ] = None,
    public_data: Annotated[
        bool, typer.Option("--public-data", help="Say that the images of --calibrate are public.")
    ] = False,
    reduce_range: Annotated[
        bool | None,
        typer.Option(help="7-bit weights in onnx-int8, for x86 without VNNI; left out: as this processor needs."),
    ] = None,
    fraction: Annotated[
        float | None, typer.Option("--prune", metavar="FRACTION", help="Share of channels or weights to remove.")
    ] = None,
    part: Annotated[
        Literal["channels", "weights"] | None,
        typer.Option("--prune-by", help="What --prune removes; left out: channels where the backbone allows it."),
    ] = None,
    test: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Labelled images: show the accuracy before and after.")
    ] = None,
    weights: WeightsOption = None,
) -> None:
    """Write the model of a run as one file that runs without Bract."""
    console = Console()
    with plain_errors("Stopped; nothing was written."):
        _check_options(out, kind, calibrate, public_data=public_data, reduce_range=reduce_range)
        pruning = _pruning(fraction, part)
        from common.inference.classifier import load_model
        from common.inference.evaluation.labelled_images import open_labelled
        from common.inference.export.formats import check_format, export_model
        from common.inference.export.quantization import needs_reduced_range

        check_format(kind, pruning)
        classifier = load_model(find_model(model), weights=weights, device="cpu")
        images = None if test is None else open_labelled(_test_settings(test), classifier.classes)
        pixels = None if calibrate is None else _calibration(classifier, calibrate)
        reduced = needs_reduced_range() if reduce_range is None else reduce_range
        export = export_model(classifier, kind, calibration=pixels, reduce_range=reduced, pruning=pruning)
        hits = None if images is None else _test(images, classifier, export, console)
        _write(out, export.content)
        _show(export, hits, classifier.card.side, console)
        _say_more(export, pixels, console, reduced=reduced)
        _say_pruned(export, hits, console)
        say(console, f"Written: {out}", depth=0)
    faults = [] if images is None or hits is None else [*images.unknown, *hits.faults]
    show_faults(console, faults)
    if faults:
        raise typer.Exit(BAD_IMAGES)


def _check_options(
    out: Path, kind: Format, calibrate: Path | None, *, public_data: bool, reduce_range: bool | None
) -> None:
    """Refuse options that do not go together, before anything is computed."""
    # The suffix also keeps the command from replacing a card or weights.
    if out.suffix != SUFFIXES[kind] or not out.parent.is_dir() or out.is_dir():
        raise ConfigError(f"--out {out}: give a file ending in {SUFFIXES[kind]} in a folder that exists")
    refuse_closed("--out", out, replaces=True)
    if kind != "onnx-int8":
        reduced = "--no-reduce-range" if reduce_range is False else "--reduce-range"
        given = {"--calibrate": calibrate is not None, "--public-data": public_data, reduced: reduce_range is not None}
        if wrong := [option for option, is_given in given.items() if is_given]:
            raise ConfigError(f"{wrong[0]} goes with --format onnx-int8, not with {kind}")
        return
    if calibrate is None:
        raise ConfigError("--format onnx-int8 needs images to measure ranges on: --calibrate FOLDER --public-data")
    # The file states the ranges of activations, so it tells about every image that widened one.
    if not public_data:
        raise ConfigError(
            f"--calibrate {calibrate}: what is measured on these images becomes part of the file, and no privacy "
            "statement covers it. If the images are public, say so with --public-data; else take public ones"
        )


def _pruning(fraction: float | None, part: 'Literal["channels", "weights"] | None') -> "Pruning | None":
    from common.inference.export.formats import Pruning

    if fraction is None:
        if part is not None:
            raise ConfigError("--prune-by goes with --prune FRACTION")
        return None
    # Written so that NaN is refused.
    if not 0 < fraction < 1:
        raise ConfigError(f"--prune {fraction:g}: give a share above 0 and below 1, such as 0.2")
    return Pruning(fraction, part)


def _test_settings(source: str) -> "DataConfig":
    return loading.parse(loading.override(loading.defaults(), {"data.source": source})).data


def _calibration(model: "Classifier", place: Path) -> "np.ndarray":
    from common.inference.export.pixel_batches import calibration_pixels
    from common.inference.inputs import name_images

    return calibration_pixels(model.card, model.interpolation, name_images([str(place)], ()))


def _test(images: "LabelledImages", model: "Classifier", export: "Export", console: Console) -> "Hits":
    from common.inference.export.accuracy import count_hits

    runners = [stage.run for stage in export.stages]
    with bar_factory(console) as progress:
        return count_hits(images, model.card, model.interpolation, runners, progress)


def _write(out: Path, content: bytes) -> None:
    try:
        write_atomic(out, content, durable=False, mode=0o666)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written ({error.strerror})") from None


def _show(export: "Export", hits: "Hits | None", side: int, console: Console) -> None:
    """Print a table of the original and each form of the file."""
    from common.inference.evaluation.intervals import wilson
    from common.inference.export.comparison import images_a_second

    table = Table("", box=None, pad_edge=False)
    for title in ("MB", "of PyTorch", "images/s", *(("accuracy", "interval") if hits else ())):
        table.add_column(title, justify="right")
    whole = export.stages[0].size
    for at, stage in enumerate(export.stages):
        cells = [f"{stage.size / 1e6:.2f}", f"{stage.size / whole:.2f} x", f"{images_a_second(stage.run, side):,.0f}"]
        if hits:
            low, high = wilson(hits.right[at], hits.images)
            cells += [f"{hits.right[at] / hits.images:.4f}", f"{low:.3f}-{high:.3f}"]
        table.add_row(stage.name, *cells)
    console.print(table)
    if hits:
        say(console, f"Accuracy on {hits.images:,} images of --test. It is written nowhere.", depth=0)


def _say_more(export: "Export", pixels: "np.ndarray | None", console: Console, *, reduced: bool) -> None:
    """Print how near the file is to the original."""
    from common.inference.export.comparison import TOLERANCE
    from common.inference.export.formats import agreement

    if pixels is None:
        say(
            console,
            f"Largest difference of a logit: {export.error:.1e} of the largest ({TOLERANCE:g} allowed).",
            depth=0,
        )
        return
    same = agreement(export, pixels)
    style = "" if same >= _FEW_CHANGE else "bold red"
    say(console, f"{same:.1%} of {len(pixels):,} images of --calibrate keep their class.", style, depth=0)
    weights = "7 bits, for x86 without VNNI" if reduced else "8 bits: on x86 without VNNI, use --reduce-range"
    say(console, f"Weights have {weights}.", depth=0)


def _say_pruned(export: "Export", hits: "Hits | None", console: Console) -> None:
    """Print what a pruning removed and what it cost."""
    if not export.pruned:
        return
    say(console, f"Pruned: {export.pruned}.", depth=0)
    if export.part == "weights":
        zipped = len(zlib.compress(export.content)) / 1e6
        say(console, f"The file is as large and as fast as before. Compressed it has {zipped:.2f} MB.", depth=0)
    if hits is None:
        risk = "A pretrained backbone rarely bears the loss of channels. " if export.part == "channels" else ""
        text = f"{risk}What it costs in accuracy was not measured: --test SOURCE does it."
        say(console, text, "bold yellow", depth=0)
        return
    lost = (hits.right[0] - hits.right[1]) / hits.images
    style = "bold red" if lost >= _MUCH_LOST else ""
    say(console, f"Pruning cost {100 * lost:.1f} points of accuracy on these images.", style, depth=0)
    if style:
        instead = "use --prune-by weights, " if export.part == "channels" else ""
        say(console, f"Remove less, {instead}or train with a smaller backbone.", style, depth=0)
