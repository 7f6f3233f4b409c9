"""`bract client`: set up a client on a machine of its own."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from common.terminal import bar_factory, plain_errors

_HELP = """Set up a client on this machine: its folder, its policy, and this user's ledger and keys.

Example: bract client init ward-7 --data /data/xrays --name "Ward 7"

What is written: DIR/client.toml (where the images lie, and how many are declared) and DIR/policy.toml (what may be done
with them: read it). The ledger and its keys lie in $BRACT_HOME/holder and belong to this user: all clients share them,
so that no second client, renamed folder or copy resets a budget.
"""


def mount(app: typer.Typer) -> None:
    """Add this room's commands to the front door."""
    client = typer.Typer(no_args_is_help=True, help="Take part in a federation with images of your own.")
    client.callback()(_client)
    client.command("init", help=_HELP)(init_command)
    app.add_typer(client, name="client")


def _client() -> None:
    """Take part in a federation with images of your own."""


def init_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the client; made if it is not there.")],
    data: Annotated[str, typer.Option(metavar="SOURCE", help="A folder of images, a manifest, or a known source.")],
    path: Annotated[str, typer.Option(help="Where a known source or a manifest finds its files.")] = "",
    name: Annotated[
        str | None, typer.Option(help="What servers call the client; the folder's name if left out.")
    ] = None,
) -> None:
    """Set up a client on this machine."""
    from client.init import init_client

    console = Console()
    with plain_errors(), bar_factory(Console(stderr=True)) as progress:
        wanted = folder.expanduser().resolve()
        site, holder = init_client(wanted, data, path=path, name=name or wanted.name, progress=progress)
    lines = [
        f"Client    {site.name}, {site.num_images} training images declared, in {site.folder}",
        f"Policy    {site.policy_file}: read it; a server gets nothing beyond it",
        f"Ledger    {holder.ledger_file}, id {holder.keys.ledger_id}: back it up with the .key files",
        f"Node      --node-config 'bract-client=\"{site.folder}\"' makes a Flower SuperNode this client",
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
