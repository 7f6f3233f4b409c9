"""The command `bract data partition`."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from common.commands.run_settings import set_values, show_remarks
from common.config import loading as settings
from common.config.listed_values import join_names
from common.data.partitioning.export import MANIFEST, export_partition
from common.data.sources.registry import open_source
from common.system.console import bar_factory, plain_errors

PARTITION_HELP = """Divide a source among clients and write one folder of images for each.

SOURCE is what data.source takes: a folder with one sub-folder a class,
a table (CSV, TSV, Excel or Parquet), or a known name (`bract list sources`). Each client's
folder holds train/ and test/ with one folder a class, and every image with its original bytes: it
is a source again. Beside the folders are partition.png (who holds what), partition.json (sizes,
settings, seed), classes.txt.

Examples:

  bract data partition photos/ --clients 5 --out parts

  bract data partition digits --clients 3 --out parts --set data.partitioner=pathological

  bract data partition scans.csv --out parts --set data.partitioner=natural
"""


def partition_command(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Folder, manifest or known name.")],
    out: Annotated[Path, typer.Option(help="Folder to write to: a new or an empty one.")],
    clients: Annotated[
        int | None,
        typer.Option(min=1, help="How many clients; left out: 5, or with data.partitioner=natural what SOURCE names."),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a setting, such as data.alpha=0.5; may be repeated."),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Root seed: the same seed gives the same folders.")] = None,
) -> None:
    """Divide a source among clients and write one folder of images for each."""
    with plain_errors("Stopped; nothing was written."):
        changes = set_values(set_ or []) | {"data.source": source}
        changes |= {key: value for key, value in (("num-clients", clients), ("seed", seed)) if value is not None}
        config = settings.parse(settings.override(settings.defaults(), changes))
        opened = open_source(config.data)
        if config.data.partitioner == "natural" and "num-clients" not in changes:
            named = len(set(opened.entries.clients or ()) - {""})
            config = config.model_copy(update={"num_clients": max(1, named)})
        console = Console()
        show_remarks(config.data, console)
        with bar_factory(console) as progress:
            facts = export_partition(config, opened, out, progress)
        for line in closing_lines(facts, out):
            console.print(escape(line), highlight=False, soft_wrap=True)


def closing_lines(facts: Mapping[str, Any], out: Path) -> list[str]:
    """Return the lines about what `export_partition` wrote and what to do next."""
    sizes = [client["train"] + client["test"] for client in facts["clients"]]
    last = facts["clients"][-1]["folder"]
    lines = [
        f"Wrote {sum(sizes):,} images to {out}: {len(sizes)} clients of {min(sizes):,} to {max(sizes):,} images "
        f"(data.partitioner={facts['settings']['data.partitioner']}, seed {facts['settings']['seed']})"
    ]
    if facts["images_unused"]:
        lines.append(f"Unused: {facts['images_unused']:,} training images that this partitioner gives to no client")
    if facts["images_unusable"]:
        lines.append(
            f"Left out: {facts['images_unusable']:,} files that cannot be used; `bract data inspect` lists them"
        )
    lines.append(f"See {out / 'partition.png'} for who holds what, {out / 'partition.json'} for the settings.")
    lines.append(f"Give each operator one folder, {facts['clients'][0]['folder']} to {last}. Each sets up a client:")
    own = f"/path/to/client-00000{'/' + MANIFEST if facts['units'] else ''}"
    lines.append(f"  bract client init NAME --data {own}")
    if facts["units"]:
        lines.append("  (the manifest: it says which images share a unit, which folders alone do not)")
    lines.append("and the run needs the class list of all, because a client may lack images of some class:")
    lines.append(f"  --set {shlex.quote('data.classes=' + join_names(facts['class_folders']))}")
    if facts["class_folders"] != facts["classes"]:
        lines.append(f"Some class names are not folder names; {out / 'classes.txt'} lists the folder of each class.")
    return lines
