"""The command `bract explain`."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.commands.models.predict import (
    BAD_IMAGES,
    DeviceOption,
    ModelArgument,
    WeightsOption,
    show_faults,
    write_output,
)
from common.config import loading
from common.errors import ConfigError
from common.inference.card import CARD_FILE, find_model
from common.inference.explanation.method_names import MethodChoice
from common.system.console import bar_factory, plain, plain_errors, say
from common.system.files import make_folder
from common.system.paths import check_output, holds_results
from common.system.progress import ProgressFactory

if TYPE_CHECKING:
    from common.inference.classifier import Classifier
    from common.inference.evaluation.labelled_images import LabelledImages
    from common.inference.explanation.explainer import Explainer
    from common.inference.explanation.sanity_check import SanityCheck
    from common.inference.inputs import NamedImages

EXPLAIN_HELP = """Show which parts of images speak for a class of a run's model.

MODEL is the folder of a run, or its model/. Each IMAGE is what bract predict takes: an image, a
folder, a manifest, or - for a list of paths. For each one a PNG file in --out shows the square that
the network saw, and the same square with the parts that speak for its most likely class, or for
--class. The method is Grad-CAM for convolutional backbones and integrated gradients for others;
occlusion goes with any and is slow.

--sheet draws one picture of a labelled source: the most confident mistakes and the least certain
images. --check compares the maps with those of models of random weights, and says whether the
pictures depend on the model at all.

Pictures show your images. Only you can read them, and --out is never in the folder of a run.

Exit code: 0; 1 if --check finds that the pictures do not depend on the model; 2 if the model or an
IMAGE cannot be used; 3 if some images could not be read, with the reason in their row.

Examples:

  bract explain runs/NAME a.png b.jpg --out pictures

  bract explain runs/NAME photos/ --class melanoma --method occlusion --out pictures

  bract explain runs/NAME photos/ --check

  bract explain runs/NAME --sheet photos/ --out pictures
"""
_FAILED = 1
_MAX_SHOWN = 100
# Images of each part of a contact sheet.
_SHEET_IMAGES = 8
_SHEET = "contact-sheet.png"


@dataclass(frozen=True)
class Row:
    """Row of the result for one image.

    A bad image has a fault and no class.
    """

    image: str
    class_name: str | None = None
    probability: float | None = None
    predicted: str | None = None
    picture: str | None = None
    fault: str | None = None


def explain_command(
    model: ModelArgument,
    images: Annotated[
        list[str] | None, typer.Argument(metavar="IMAGE...", help="Images, folders, manifests, or -.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for the pictures, a new or an empty one.")
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="Explain this class, not the most likely one.")
    ] = None,
    method: Annotated[MethodChoice, typer.Option(help="How parts are found; auto: by the backbone.")] = "auto",
    sheet: Annotated[
        str | None, typer.Option(metavar="SOURCE", help="Labelled images: draw mistakes and doubtful ones on a sheet.")
    ] = None,
    check: Annotated[bool, typer.Option("--check", help="Check that the maps depend on the model.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Show which parts of images speak for a class of a run's model."""
    console = Console(stderr=as_json)
    with plain_errors("Stopped. Pictures that were drawn until now stay."):
        _check_options(images or [], out, sheet, class_name, check=check)
        find_model(model)
        if out is not None:
            _check_out(out, [*(images or []), *([sheet] if sheet else [])])
        from common.inference.classifier import load_model
        from common.inference.inputs import name_images

        named = name_images(images, sys.stdin) if images else None
        classifier = load_model(model, weights=weights, device=device)
        explainer = classifier.explainer(method)
        number = None if class_name is None else explainer.class_number(class_name)
        labelled = None if sheet is None else _open_sheet(sheet, classifier)
        with bar_factory(console) as progress:
            checked = _check(explainer, named, number, progress) if check and named else None
            rows = _draw(explainer, named, number, out, progress) if named and out else []
            faults = [(row.image, row.fault) for row in rows if row.fault]
            drawn = out / _SHEET if labelled and out else None
            if labelled and drawn:
                faults += _draw_sheet(classifier, explainer, labelled, drawn, progress)
        if as_json:
            typer.echo(json.dumps(_as_dict(explainer, rows, checked, drawn, faults), indent=2))
        else:
            _show(explainer, rows, checked, drawn, faults, console)
    if checked and not checked.holds:
        raise typer.Exit(_FAILED)
    if faults:
        raise typer.Exit(BAD_IMAGES)


def _check_options(
    images: Sequence[str], out: Path | None, sheet: str | None, class_name: str | None, *, check: bool
) -> None:
    """Refuse options that do not go together, before anything is read."""
    if not images and sheet is None:
        raise ConfigError("there is nothing to explain: name images, or a labelled source with --sheet")
    if out is None and (sheet is not None or not check):
        raise ConfigError("say where the pictures go: --out FOLDER")
    for option, given in (("--check", check), ("--class", class_name is not None)):
        if given and not images:
            raise ConfigError(f"{option} is about images that are named: add IMAGE")


def _check_out(out: Path, sources: Iterable[str]) -> None:
    """Refuse a folder of pictures that others may get or that is read.

    Raises:
        ConfigError: The folder is not empty, or is in the folder of a model, a run or a source.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out {out}: give a new or an empty folder")
    whole = out.resolve()
    for folder in (whole, *whole.parents):
        # Runs and models are passed on. Pictures of private images must not go along by accident.
        if _is_passed_on(folder):
            raise ConfigError(
                f"--out {out} is in the folder of a run or a model, which others may get: write elsewhere"
            )
    for source in sources:
        if _is_among(whole, Path(source)):
            raise ConfigError(
                f"--out {out} is in {source}, where the pictures would be read as images: write elsewhere"
            )
    check_output(out)


def _is_among(out: Path, source: Path) -> bool:
    """Return whether a folder is where a source's images are read."""
    if source.is_dir():
        return out.is_relative_to(source.resolve())
    # Beside an image lie more of its class. The working folder may hold an image and everything else too.
    place = source.parent.resolve()
    return source.is_file() and place != Path.cwd() and out.is_relative_to(place)


def _is_passed_on(folder: Path) -> bool:
    """Return whether a folder is that of a run or of a model."""
    cards = (folder / CARD_FILE, folder / "model" / CARD_FILE)
    # A folder above can be closed to this user, and then is not one of their runs.
    names = os.listdir(folder) if folder.is_dir() and os.access(folder, os.R_OK) else []
    return holds_results(names) or any(card.is_file() for card in cards)


def _open_sheet(source: str, model: "Classifier") -> "LabelledImages":
    from common.inference.evaluation.labelled_images import open_labelled

    settings = loading.parse(loading.override(loading.defaults(), {"data.source": source})).data
    return open_labelled(settings, model.classes)


def _check(
    explainer: "Explainer", images: "NamedImages", number: int | None, progress: ProgressFactory
) -> "SanityCheck":
    from common.inference.explanation.sanity_check import check_explainer

    return check_explainer(explainer, (cell for _, cell in images), number, progress)


def _draw(
    explainer: "Explainer", images: "NamedImages", number: int | None, out: Path, progress: ProgressFactory
) -> list[Row]:
    """Write a picture for each image that can be read."""
    return list(_rows(explainer, images, number, out, progress(images.number, "Explaining")))


def _rows(explainer: "Explainer", images: "NamedImages", number: int | None, out: Path, advance: Any) -> Iterator[Row]:
    from common.data.decoding import BadImage
    from common.inference.explanation.overlay import as_png

    names: list[str] = []

    def cells() -> Iterator[Any]:
        for name, cell in images:
            names.append(name)
            yield cell

    for at, found in enumerate(explainer.explain(cells(), repeat(number))):
        advance(1)
        if isinstance(found, BadImage):
            yield Row(names[at], fault=str(found))
            continue
        file = out / _file_name(at, names[at])
        _write(file, as_png(found.overlay()))
        yield Row(names[at], found.class_name, found.probability, found.predicted, str(file))


def _file_name(number: int, image: str) -> str:
    """Return a name for the picture of one image alone.

    >>> _file_name(0, "scans/left eye.tif")
    '00001-left-eye.png'
    """
    return f"{number + 1:05d}-{re.sub('[^A-Za-z0-9._]+', '-', Path(image).stem)[:60]}.png"


def _write(file: Path, content: bytes) -> None:
    # Made with the first picture, so that a refused model or source leaves no folder behind.
    make_folder(file.parent, mode=0o700)
    write_output(file, content)


def _draw_sheet(
    model: "Classifier", explainer: "Explainer", images: "LabelledImages", file: Path, progress: ProgressFactory
) -> list[tuple[str, str]]:
    """Write a contact sheet and return the images that it lacks."""
    from common.inference.evaluation.labelled_images import score_labelled
    from common.inference.explanation.contact_sheet import draw_sheet
    from common.inference.explanation.doubtful_images import choose_doubtful
    from common.inference.explanation.sheet_tiles import make_tiles

    scored = score_labelled(images, [model], progress)
    chosen = choose_doubtful(scored.models[0], _SHEET_IMAGES)
    parts = [
        (name, make_tiles(explainer, images, scored, rows, progress))
        for name, rows in (("most confident mistakes", chosen.mistakes), ("least certain images", chosen.unsure))
    ]
    _write(file, draw_sheet(f"{len(scored.rows):,} images, {explainer.method} of the predicted class", parts))
    return [*images.unknown, *scored.faults]


def _as_dict(
    explainer: "Explainer",
    rows: Sequence[Row],
    checked: "SanityCheck | None",
    sheet: Path | None,
    faults: Sequence[tuple[str, str]],
) -> dict[str, Any]:
    images = [{"class" if key == "class_name" else key: value for key, value in asdict(row).items()} for row in rows]
    check = None if checked is None else asdict(checked) | {"holds": checked.holds}
    listed = [{"image": place, "reason": reason} for place, reason in faults]
    return {
        "method": explainer.method,
        "images": images,
        "check": check,
        "sheet": None if sheet is None else str(sheet),
        "faults": listed,
    }


def _show(
    explainer: "Explainer",
    rows: Sequence[Row],
    checked: "SanityCheck | None",
    sheet: Path | None,
    faults: Sequence[tuple[str, str]],
    console: Console,
) -> None:
    if rows:
        table = Table("image", "class", "", "picture", box=None, pad_edge=False)
        for row in rows[:_MAX_SHOWN]:
            shown = "" if row.probability is None else f"{row.probability:.3f}"
            name = plain("cannot be used", "red") if row.fault else plain(str(row.class_name))
            table.add_row(plain(row.image), name, shown, plain(row.picture or ""))
        console.print(table)
    if len(rows) > _MAX_SHOWN:
        say(console, f"and {len(rows) - _MAX_SHOWN:,} more: --json has all", depth=0)
    show_faults(console, faults)
    if rows:
        good = sum(not row.fault for row in rows)
        say(console, f"{good:,} of {len(rows):,} images explained by {explainer.method}", depth=0)
    if sheet is not None:
        say(console, f"Contact sheet: {sheet}", depth=0)
    if checked is not None:
        _show_check(checked, console)


def _show_check(checked: "SanityCheck", console: Console) -> None:
    """Print whether the pictures depend on the model."""
    from common.inference.explanation.sanity_check import ALIKE, DRAWS

    say(
        console,
        f"Check on {checked.images:,} images: rank correlation of the maps with those of {DRAWS} models with a random "
        f"head {checked.head:.2f}, with a random backbone {checked.backbone:.2f} (1: the same picture; {ALIKE} fails).",
        depth=0,
    )
    if checked.holds:
        say(console, "The pictures depend on the model, on its head and on its backbone.", "green", depth=0)
        return
    parts = {"its head": checked.depends_on_head, "its backbone": checked.depends_on_backbone}
    kept = " nor on ".join(name for name, depends in parts.items() if not depends)
    say(
        console,
        f"The pictures do not depend on {kept}: a model with random weights there gives nearly the same ones. They "
        "say nothing about what this model has learned.",
        "bold red",
        depth=0,
    )
