"""The commands of this room."""

import json
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from common.commands import listing
from common.commands.audit_ledger import audit_app
from common.commands.cache import cache_app
from common.commands.inspect_source import INSPECT_HELP, inspect_command
from common.commands.models.evaluate import EVALUATE_HELP, evaluate_command
from common.commands.models.explain import EXPLAIN_HELP, explain_command
from common.commands.models.export import EXPORT_HELP, export_command
from common.commands.models.predict import PREDICT_HELP, predict_command
from common.commands.partition import PARTITION_HELP, partition_command
from common.commands.tunings import TABLE_HELP, table_command
from common.system.console import busy, plain_errors

_LISTS: dict[str, tuple[str, Callable[[], listing.Table]]] = {
    "backbones": ("Show the backbones that model.backbone may name.", listing.list_backbones),
    "sources": ("Show what data.source may be.", listing.list_sources),
    "strategies": ("Show the strategies that strategy.name may name.", listing.list_strategies),
    "partitioners": ("Show the partitioners that data.partitioner may name.", listing.list_partitioners),
}


def mount(app: typer.Typer) -> None:
    """Add this room's commands to the command line."""
    lists = typer.Typer(no_args_is_help=True, help="Show what a setting may name.")
    for name, (text, table) in _LISTS.items():
        lists.command(name, help=text)(_list_command(table))
    lists.command("tunings", help=TABLE_HELP)(table_command)
    data = typer.Typer(no_args_is_help=True, help="Look at a source of images, or divide it into folders.")
    data.command("inspect", help=INSPECT_HELP)(inspect_command)
    data.command("partition", help=PARTITION_HELP)(partition_command)
    app.command("evaluate", help=EVALUATE_HELP)(evaluate_command)
    app.command("explain", help=EXPLAIN_HELP)(explain_command)
    app.command("export", help=EXPORT_HELP)(export_command)
    app.command("predict", help=PREDICT_HELP)(predict_command)
    app.add_typer(lists, name="list")
    app.add_typer(data, name="data")
    app.add_typer(cache_app, name="cache")
    app.add_typer(audit_app, name="audit")


def _list_command(make: Callable[[], listing.Table]) -> Callable[[bool], None]:
    def show(as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False) -> None:
        with plain_errors(), busy("Looking up"):
            title, columns, rows = make()
        if as_json:
            typer.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
            return
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column, no_wrap=column in ("name", "settings"), overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell if isinstance(cell, str) else "\n".join(cell)) for cell in row))
        Console().print(table)

    return show
