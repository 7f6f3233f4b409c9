"""Command that shows a run while it goes on."""

from pathlib import Path
from typing import Annotated

import typer

from common.system.console import plain_errors

WATCH_HELP = """Show a run, or a federation with its newest run, in the browser while it goes on.

DIR is a run's folder or a server's. The page is the report, with each round a moment after its end. While a run waits,
it says for which clients, why, and when it goes on. For a server it lists who is connected, last seen or late. It is
read-only, and this machine alone can open it, at the address that is printed. Ctrl-C ends the page, not the run.

Examples:

  bract watch runs/NAME

  bract watch federation
"""


def watch_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a run, or of a server.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port of the page; a free one if 0.")] = 0,
) -> None:
    """Show a run while it goes on."""
    from common.live_page.serve import serve_page
    from server.reporting.live.watched_folder import WatchedFolder

    with plain_errors("The page is closed. The run goes on."):
        serve_page(WatchedFolder(folder), port=port)
