"""The commands `identity` and `roster` of `bract client`."""

from pathlib import Path
from typing import Annotated

import typer

from client.commands.operate import Folder
from common.system.console import plain_errors

IDENTITY_HELP = """Show this client's line for the roster of secure sums.

Each holder sends the line to the others by a channel that is not the server's, and puts all lines into one file. The
key belongs to this user, so two clients of one user cannot take part in the same secure sum.

Example: bract client identity ward-7
"""
ROSTER_HELP = """Take a roster into the client's folder, and show the lines for its policy.

The roster has one line for each client of the secure sums, as `bract client identity` shows it. Compare its digest with
the other holders: a client that the server invented would learn this client's update.

Example: bract client roster ward-7 roster.txt
"""


def identity_command(folder: Folder) -> None:
    """Show a client's line for the roster."""
    from client.client_config import load_site
    from client.secure.roster_file import roster_line
    from common.ledger.identity_key import own_identity

    with plain_errors():
        site = load_site(folder.expanduser().resolve())
        line = roster_line(site.name, own_identity().public_key)
    typer.echo(line)


def roster_command(
    folder: Folder,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The roster, one line for each client.")],
) -> None:
    """Take a roster into a client's folder."""
    from client.client_config import load_site
    from client.secure.roster_file import policy_lines, take_roster

    with plain_errors():
        site = load_site(folder.expanduser().resolve())
        roster = take_roster(site, file.expanduser())
    typer.echo(f"Roster    {len(roster)} clients: {', '.join(roster.names)}")
    typer.echo(f"Next      put these lines into {site.policy_file}, in place of those that are there:")
    for line in policy_lines(roster):
        typer.echo(f"          {line}")
