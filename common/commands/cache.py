"""The commands `bract cache list` and `bract cache clear`."""

import json
import os
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from common.system.console import plain_errors
from common.system.paths import bract_home, check_cache, closed_part

cache_app = typer.Typer(no_args_is_help=True, help="See and clear what is kept of images between runs.")
_MEANING = {
    "scans": "size, format and digest of each image of a source",
    "partitions": "which client holds which image",
    "tables": "images that Parquet tables hold",
    "backbones": "hash and shape of backbones",
}


def cache_facts() -> list[dict[str, Any]]:
    """Return name, meaning, number of images and bytes of each part of the cache.

    Raises:
        ConfigError: The cache is closed to this user.
    """
    root = bract_home() / "cache"
    # What is closed to this user would look empty.
    if os.path.exists(root) or closed_part(root):
        check_cache()
    facts = []
    for folder in sorted((root / "inputs").glob("*")) if (root / "inputs").is_dir() else []:
        about = folder / "about.json"
        inputs = json.loads(about.read_text()) if about.is_file() else {"kind": "unfinished", "side": "?"}
        index = folder / "index.bin"
        # A record of the index has 36 bytes, see `common.system.content_store`.
        images = index.stat().st_size // 36 if index.is_file() else 0
        kind = f"{inputs['kind']} at {inputs['side']} px"
        facts.append({"name": f"inputs/{folder.name}", "what": kind, "images": images, "bytes": _size(folder)})
    for name, meaning in _MEANING.items():
        if (root / name).is_dir():
            facts.append({"name": name, "what": meaning, "images": None, "bytes": _size(root / name)})
    return facts


@cache_app.command("list")
def list_cache(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False) -> None:
    """Show what is kept, its number of images and its size.

    Rows are found by content: every run with the same images, backbone and image size uses them again, with any seed,
    partition or number of clients.
    """
    with plain_errors():
        facts = cache_facts()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    table = Table(title=f"{bract_home() / 'cache'}", title_justify="left")
    for column in ("name", "what", "images", "MB"):
        table.add_column(column, justify="right" if column in ("images", "MB") else "left", no_wrap=column == "name")
    for row in facts:
        images = "" if row["images"] is None else str(row["images"])
        table.add_row(row["name"], row["what"], images, f"{row['bytes'] / 1e6:.1f}")
    console = Console()
    console.print(table)
    total = sum(row["bytes"] for row in facts)
    console.print(f"{total / 1e6:.1f} MB in all; `bract cache clear` removes it, your images stay where they are.")


@cache_app.command("clear")
def clear_cache(
    name: Annotated[
        str | None, typer.Argument(help="One name that `bract cache list` shows; everything if left out.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove what is kept of images.

    The next run makes it again. End running Bract processes first: they have these files open.
    """
    root = bract_home() / "cache"
    with plain_errors():
        known = [row["name"] for row in cache_facts()]
    if name is not None and name not in known:
        Console(stderr=True).print(
            f"{root} does not hold {name!r}, it holds {', '.join(known) or 'nothing'}", markup=False
        )
        raise typer.Exit(2)
    chosen = [root / name] if name else [root]
    freed = sum(_size(path) for path in chosen if path.is_dir())
    if not yes:
        typer.confirm(f"Remove {freed / 1e6:.1f} MB of {', '.join(map(str, chosen))}?", abort=True)
    with plain_errors():
        for path in chosen:
            if path.is_dir():
                shutil.rmtree(path)
    typer.echo(f"{freed / 1e6:.1f} MB removed")


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
