"""The command `bract data inspect`."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.commands.run_settings import ClassNames, check_picture, class_option, given_settings
from common.config import loading as settings
from common.data.sources.registry import open_source
from common.system.console import bar_factory, plain_errors

INSPECT_HELP = """Look at every image of a source: counts, sizes, formats, bad files, duplicates.

SOURCE is what data.source takes: a folder with one sub-folder a class,
a table (CSV, TSV, Excel or Parquet), or a known name (`bract list sources`). Nothing is changed and nothing
leaves this machine.

Examples:

  bract data inspect photos/

  bract data inspect photos/ --out photos.png --set data.classes=cat,dog

  bract data inspect photos/ --class "ape, great" --class dog

  bract data inspect scans.csv --set data.subgroup-column=sex --set data.subgroups=f,m

  bract data inspect cifar10 --json --set data.path=/path/to/cifar10
"""


def inspect_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, manifest or known name.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE.png", help="Also draw counts and examples of each class.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as data.classes=a,b; may be repeated."),
    ] = None,
    class_: ClassNames = None,
) -> None:
    """Look at every image of a source before it is used."""
    console = Console(stderr=as_json)
    with plain_errors():
        changes = given_settings(set_ or [], None, class_option(class_)) | {"data.source": source}
        config = settings.parse(settings.override(settings.defaults(), changes))
        check_picture("--out", out, config.data)
        opened = open_source(config.data)
        from common.data.partitioning.subgroups import subgroups_of
        from common.data.scan import scan_source
        from common.data.source_report import inspect_source, show_facts, subgroup_facts
        from common.data.tones.rendering import tones_of

        # Before the images are decoded, which takes minutes: a column may be missing.
        subgroups_of(config.data, len(opened.entries.labels))
        with bar_factory(console) as progress:
            tones = tones_of(config.data)
            facts = inspect_source(opened, progress, tones)
            if config.data.subgroup_names:
                facts["subgroups"] = subgroup_facts(config.data, scan_source(opened, progress=progress))
            if out is not None:
                from common.data.source_plot import draw_source

                draw_source(out, opened, scan_source(opened, progress=progress), facts, tones=tones)
        if as_json:
            typer.echo(json.dumps(facts, indent=2))
            return
        show_facts(facts, console)
        console.print(f"Picture: {out}" if out else "--out FILE.png draws it.", markup=False, highlight=False)
