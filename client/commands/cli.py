"""The command group `bract client`."""

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from client.client_config import POLICY_FILE
from client.commands.operate import (
    CHECK_HELP,
    LEAVE_HELP,
    REVIEW_HELP,
    START_HELP,
    STATUS_HELP,
    check_command,
    leave_command,
    review_command,
    start_command,
    status_command,
)
from client.commands.secure import IDENTITY_HELP, ROSTER_HELP, identity_command, roster_command
from common.system.console import bar_factory, plain_errors

_HELP = """Set up a client on this machine: its folder, its policy, its key, and this user's ledger.

Needs no network. You can fill in later what the server's operator has not told you yet.

Examples:

  bract client init ward-7 --data /data/xrays --name "Ward 7"

  bract client init ward-7 --data /data/xrays --server fl.example.org:9443 --authority ca.pem

It writes DIR/client.toml (the place and declared number of the images, the server's address), DIR/policy.toml (what may
be done with the images: read it), and DIR/node.key and DIR/node.pub (by which the server knows this client). The ledger
and its keys are in $BRACT_HOME/holder and belong to this user. All clients share them, so no second client, renamed
folder or copy resets a budget.
"""


def mount(app: typer.Typer) -> None:
    """Add the commands of a client's operator to the command line."""
    client = typer.Typer(no_args_is_help=True, help="Take part in a federation with images of your own.")
    client.callback()(_client)
    client.command("init", help=_HELP)(init_command)
    client.command("identity", help=IDENTITY_HELP)(identity_command)
    client.command("roster", help=ROSTER_HELP)(roster_command)
    client.command("check", help=CHECK_HELP)(check_command)
    client.command("start", help=START_HELP)(start_command)
    client.command("status", help=STATUS_HELP)(status_command)
    client.command("review", help=REVIEW_HELP)(review_command)
    client.command("leave", help=LEAVE_HELP)(leave_command)
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
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where the federation's server listens.")] = "",
    authority: Annotated[
        Path | None, typer.Option(metavar="CA.pem", help="Certificate that the server's own must be signed by.")
    ] = None,
    class_: Annotated[
        list[str] | None,
        typer.Option("--class", metavar="NAME", help="A class of the federation, in its order; repeat for each."),
    ] = None,
    validation: Annotated[
        Literal["drop", "train", "test"], typer.Option(help="Use of a part val/ beside train/.")
    ] = "drop",
    roster: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Names and identity keys of the clients of secure sums.")
    ] = None,
) -> None:
    """Set up a client on this machine."""
    from client.checks.inputs import check_values
    from client.setup.init_client import init_client
    from client.setup.init_report import report_lines
    from client.site_images import own_images
    from common.system.progress import no_progress

    wanted = folder.expanduser().resolve()
    with plain_errors():
        policy_was_there = (wanted / POLICY_FILE).exists()
        with bar_factory(Console(stderr=True)) as progress:
            site, holder = init_client(
                wanted,
                data,
                path=path,
                name=name or wanted.name,
                progress=progress,
                server=server,
                authority=None if authority is None else authority.expanduser(),
                classes=class_ or (),
                validation=validation,
                roster=None if roster is None else roster.expanduser(),
            )
        images, _ = own_images(site, class_ or ())
        # Read from the scan that was just made.
        values = [f"Values    {row.found}; {row.remedy}" for row in check_values(site, no_progress, class_ or ())]
        remarks = [*images.remarks(), *values]
        lines = report_lines(site, holder, shown=folder, policy_was_there=policy_was_there, remarks=remarks)
    for line in lines:
        Console().print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
