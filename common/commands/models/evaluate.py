"""The command `bract evaluate`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console

from common.commands.models.predict import (
    BAD_IMAGES,
    DeviceOption,
    ModelArgument,
    WeightsOption,
    check_outputs,
    show_faults,
    write_output,
)
from common.commands.run_settings import check_picture, set_values
from common.config import loading
from common.config.sections import DataConfig
from common.errors import ConfigError
from common.inference.card import find_model
from common.system.console import bar_factory, plain_errors, say

EVALUATE_HELP = """Evaluate the model of a run on labelled images, with an interval for each figure.

MODEL is the folder of a run, or its model/. SOURCE is what data.source takes: a folder with one
sub-folder a class, a table (CSV, TSV, Excel or Parquet), or a known name. If it has a test part of its own,
that part is used. Images of one unit (a patient) count together in the intervals. Nothing leaves
this machine, and nothing is written beside the model.

Exit code: 0; 2 if model or source cannot be used; 3 if some images could not be used.

Examples:

  bract evaluate runs/NAME photos/ --out evaluation.png

  bract evaluate runs/NAME scans.csv --by scanner --least-support 20

  bract evaluate runs/NEW photos/ --baseline runs/OLD --json
"""


def evaluate_command(
    model: ModelArgument,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, manifest or known name.")],
    by: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Also a row for each value of a manifest's column.")
    ] = None,
    baseline: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="Compare with another model on the same images (McNemar).")
    ] = None,
    least_support: Annotated[
        int, typer.Option(min=1, help="Leave classes with fewer images out of averages over classes.")
    ] = 10,
    part: Annotated[
        Literal["test", "train", "all"] | None,
        typer.Option(help="Part of the source; left out: its test part, or all."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=100, max=100_000, help="Resamples of the bootstrap.")] = 1000,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw confusion matrix and reliability diagram.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting of the source, such as data.path."),
    ] = None,
    weights: WeightsOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate the model of a run on labelled images."""
    console = Console(stderr=as_json)
    with plain_errors():
        data = _source_settings(source, set_ or [])
        check_picture("--out", out, data)
        check_outputs(find_model(model), {"--out": out})
        from common.inference.classifier import load_model
        from common.inference.evaluation.labelled_images import PARTS, open_labelled, score_labelled
        from common.inference.evaluation.report import full_report

        models = [load_model(place, weights=weights, device=device) for place in (model, baseline) if place is not None]
        classes = models[0].classes
        images = open_labelled(data, classes, part=part, by=by)
        with bar_factory(console) as progress:
            scored = score_labelled(images, models, progress)
        faults = [*images.unknown, *scored.faults]
        report: dict[str, Any] = {"model": str(model), "source": source, "part": PARTS[images.part]}
        report |= full_report(
            scored.models,
            classes,
            groups=[images.groups[at] for at in scored.rows.tolist()] if by else [],
            names=(by or "", str(baseline)),
            least_support=least_support,
            resamples=resamples,
        )
        report["faults"] = [{"image": place, "reason": reason} for place, reason in faults]
        _show(report, faults, out, as_json=as_json)
    if faults:
        raise typer.Exit(BAD_IMAGES)


def _source_settings(source: str, pairs: Sequence[str]) -> DataConfig:
    """Return the settings of a source, refusing those that SOURCE and MODEL decide."""
    given = set_values(pairs)
    for key, decider in (("data.source", "SOURCE stands"), ("data.classes", "the classes of MODEL stand")):
        if key in given:
            raise ConfigError(f"--set {key}: {decider} in its place: leave --set {key} out")
    return loading.parse(loading.override(loading.defaults(), given | {"data.source": source})).data


def _show(report: Mapping[str, Any], faults: Sequence[tuple[str, str]], out: Path | None, *, as_json: bool) -> None:
    if out is not None:
        from common.inference.evaluation.plot import draw_evaluation

        write_output(out, draw_evaluation(report, f"{Path(report['source']).name}: {report['images']:,} images"))
    if as_json:
        typer.echo(json.dumps(report, indent=2))
        return
    from common.inference.evaluation.view import show_report

    console = Console()
    show_report(report, console)
    show_faults(console, faults)
    say(console, f"Picture: {out}" if out else "--out FILE.png draws it.", depth=0)
