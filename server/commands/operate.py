"""`bract server`: run a federation of real clients from this machine."""

import json
import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from common.errors import ConfigError
from common.system.console import plain_errors

INIT_HELP = """Make a server's folder: certificate authority, certificate, settings.

Example: bract server init federation --name fl.example.org

Names are what clients reach the server by; left out, they are this machine's own. ca.pem goes to every client, and
its fingerprint is compared by telephone. ca.key and server.key never leave this machine.
"""
START_HELP = """Run the server in the foreground, until Ctrl-C.

Only clients' nodes with an admitted key may ask it from other machines; all else (admitting, starting runs) is for
this machine. Whoever can log in here is trusted, and so is a proxy or tunnel that ends here.
"""
ADMIT_HELP = """Let a client take part: it sends its public key (.pub) and never the other one.

Example: bract server admit ward-7.pub --server federation

Compare the key's fingerprint with the client's operator by telephone.
"""
LIST_HELP = "Show the clients: who is admitted, who is online, who was revoked."
REVOKE_HELP = """Cut a client off. Its node is refused at its next request, within seconds, and cannot come back.

What it has contributed to runs stays in them.
"""
BUNDLE_HELP = """Write the bundle of code that this server sends to clients, for their operators to review and pin.

Example: bract server bundle bundle.fab
"""
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
Server = Annotated[Path, typer.Option("--server", metavar="DIR", help="The server's folder.")]


def mount(app: typer.Typer) -> None:
    """Add `bract server` to the front door."""
    server = typer.Typer(no_args_is_help=True, help="Run a federation of real clients from this machine.")
    server.command("init", help=INIT_HELP)(init_command)
    server.command("start", help=START_HELP)(start_command)
    server.command("admit", help=ADMIT_HELP)(admit_command)
    server.command("list", help=LIST_HELP)(list_command)
    server.command("revoke", help=REVOKE_HELP)(revoke_command)
    server.command("bundle", help=BUNDLE_HELP)(bundle_command)
    app.add_typer(server, name="server")


def init_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the server; new or empty.")],
    name: Annotated[
        list[str] | None, typer.Option("--name", metavar="HOST_OR_IP", help="How clients reach it; may be repeated.")
    ] = None,
    port: Annotated[int, typer.Option(help="The one port it listens at.")] = 9443,
    days: Annotated[int | None, typer.Option(help="How long its certificate is valid.", show_default="825")] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make a new certificate for a server that is there; same authority.")
    ] = False,
) -> None:
    """Make a server's folder, or renew its certificate."""
    from server.deployment import setup as making
    from server.deployment.certificates import fingerprint

    with plain_errors():
        if renew:
            home = making.renew(folder, names=name or [], days=days)
        else:
            home = making.make_home(folder, names=name or [], port=port, days=825 if days is None else days)
    where = shlex.quote(str(folder))
    _say(f"Server       {home.folder}, port {home.port}")
    _say(f"Certificate  {home.certificate_file}, for {', '.join([*home.names, 'localhost'])}")
    _say(f"Authority    {home.authority_file}: send it to every client")
    _say(f"SHA-256      {fingerprint(home.authority_file.read_bytes())}")
    if renew:
        _say("The authority is the same. Start the server again: until then it shows the old certificate.")
        return
    _say("             compare it by telephone with what `bract client init` prints")
    reached = home.names[0] if home.names else "HOST"
    _say(f"Next         bract server start {where}")
    _say(f"             bract client init CLIENT --data IMAGES --server {reached}:{home.port} --authority ca.pem")
    _say(f"             bract server admit node.pub --name CLIENT --server {where}")


def start_command(folder: Folder) -> None:
    """Check everything, then become the server."""
    import os

    from server.deployment import start as starting
    from server.deployment import start_checks as checks
    from server.deployment.server_folder import load_home

    with plain_errors():
        home = load_home(folder)
        for warning in checks.check_start(home):
            Console(stderr=True).print(Text.assemble(("Warning", "yellow"), f": {warning}"), soft_wrap=True)
        changes = starting.start_changes(home, os.environ)
        _say(f"cd {shlex.quote(str(home.folder))}")
        _say(" ".join([*(f"{key}={shlex.quote(value)}" for key, value in changes.items()), "\\"]))
        _say(f"  {shlex.join(starting.start_command(home))}")
        _flush()
        starting.run_server(home)


def admit_command(
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The client's public key.")],
    name: Annotated[
        str | None, typer.Option(help="What it is called here; else the file's stem, or what a node.pub says.")
    ] = None,
    server: Server = Path(),
    again: Annotated[bool, typer.Option("--again", help="Admit a key that was revoked.")] = False,
) -> None:
    """Let a client take part."""
    from server.deployment.admission import admit
    from server.deployment.server_folder import load_home

    with plain_errors():
        client = admit(load_home(server), key, name, again=again)
    _say(f"Admitted     {client.name}, node {client.node_id}")
    _say(f"Key          {client.key}: compare it with the client's operator by telephone")


def list_command(
    server: Server = Path(),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, nothing else.")] = False,
) -> None:
    """Show the clients."""
    from server.deployment.client_list import list_clients
    from server.deployment.server_folder import load_home

    with plain_errors():
        clients, runs = list_clients(load_home(server))
    if as_json:
        typer.echo(json.dumps({"running": runs, "clients": [asdict(client) for client in clients]}, indent=2))
        return
    if not runs:
        _say("The server does not run: this is what its files say.")
    if not clients:
        _say("No client is admitted yet.")
    for client in clients:
        _say(f"{client.name}: {client.status}{f' since {client.seen}' if client.seen else ''}")
        node = "no node" if client.node_id is None else f"node {client.node_id}"
        _say(f"    {node}{f', admitted {client.admitted}' if client.admitted else ''}")
        _say(f"    {client.key}")


def revoke_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `bract server list` shows it.")],
    server: Server = Path(),
) -> None:
    """Cut a client off."""
    from server.deployment.admission import revoke
    from server.deployment.server_folder import load_home

    with plain_errors():
        client = revoke(load_home(server), name)
    _say(f"Revoked      {client.name}: its node is refused from now on")
    _say(f"Key          {client.key}, kept in clients/revoked")


def bundle_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")] = Path("bundle.fab"),
) -> None:
    """Write the bundle of the Bract that is installed here; a ConfigError says why it cannot be written."""
    from common.system.app_bundle import bundle_digest, installed_bundle
    from common.system.files import write_atomic

    with plain_errors():
        bundle = installed_bundle()
        try:
            write_atomic(file, bundle, durable=True, mode=0o600)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written ({error.strerror})") from None
    _say(f"Bundle       {file}: clients see what it changes with `bract client review CLIENT {file.name}`")
    _say(f"Digest       {bundle_digest(bundle)}: read it to them by telephone")


def _say(line: str) -> None:
    Console().print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)


def _flush() -> None:
    import sys

    sys.stdout.flush()
    sys.stderr.flush()
