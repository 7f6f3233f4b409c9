"""Commands below `bract server`."""

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

Clients reach the server by its names; without --name they are this machine's own. Send ca.pem to every client and
compare its fingerprint by telephone. ca.key and server.key never leave this machine.
"""
START_HELP = """Run the server in the foreground, until Ctrl-C.

From other machines it accepts only requests of client nodes with an admitted key. Everything else (admitting clients,
starting runs) is accepted from this machine only. All users of this machine are trusted, and so is a proxy or tunnel
that ends here.
"""
ADMIT_HELP = """Admit a client by its public key (.pub). The client must never send its private key.

Example: bract server admit ward-7.pub --server federation

Compare the key's fingerprint with the client's operator by telephone.
"""
LIST_HELP = "List the clients that are admitted, online or revoked."
REVOKE_HELP = """Revoke a client's key. Its node is refused from its next request on, within seconds.

Its contributions to earlier rounds stay in the model.
"""
BUNDLE_HELP = """Write the bundle of code that this server sends to clients. Their operators review and pin it.

Example: bract server bundle bundle.fab
"""
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="The server's folder.")]
Server = Annotated[Path, typer.Option("--server", metavar="DIR", help="The server's folder.")]


def mount(app: typer.Typer) -> None:
    """Add the group `bract server` to the front door."""
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
        list[str] | None,
        typer.Option("--name", metavar="HOST_OR_IP", help="Name or address that clients use; may be repeated."),
    ] = None,
    port: Annotated[int, typer.Option(help="The only port that it listens at.")] = 9443,
    days: Annotated[int | None, typer.Option(help="How long its certificate is valid.", show_default="825")] = None,
    renew: Annotated[
        bool, typer.Option("--renew", help="Make a new certificate for an existing server, by the same authority.")
    ] = False,
    new_authority: Annotated[
        bool,
        typer.Option(
            "--new-authority",
            help="With --renew: a new authority too. It revokes all earlier certificates, and every client needs it.",
        ),
    ] = False,
) -> None:
    """Make a server's folder or renew its certificate.

    Raises:
        ConfigError: Options that do not go together, or see `make_home` and `renew`.
    """
    from server.deployment import setup
    from server.deployment.certificates import fingerprint

    with plain_errors():
        if new_authority and not renew:
            raise ConfigError("--new-authority goes with --renew: a new server has a new authority anyway")
        if renew:
            home = setup.renew(folder, names=name or [], days=days, replace_authority=new_authority)
        else:
            home = setup.make_home(folder, names=name or [], port=port, days=825 if days is None else days)
    quoted = shlex.quote(str(folder))
    _say(f"Server       {home.folder}, port {home.port}")
    _say(f"Certificate  {home.certificate_file}, for {', '.join([*home.names, 'localhost'])}")
    _say(f"Authority    {home.authority_file}: send it to every client")
    _say(f"SHA-256      {fingerprint(home.authority_file.read_bytes())}")
    if renew and not new_authority:
        _say("The authority is the same. Start the server again; until then it uses the old certificate.")
        _say("The old certificate stays valid for whoever has its key. If that may be somebody else: --new-authority.")
        return
    if renew:
        _say(
            "The authority is new. Start the server again. A client connects when it has the new ca.pem in its folder,"
        )
        _say("and until then it still trusts the old keys. Compare the fingerprint by telephone.")
        return
    _say("             compare it by telephone with what `bract client init` prints")
    host = home.names[0] if home.names else "HOST"
    _say(f"Next         bract server start {quoted}")
    _say(f"             bract client init CLIENT --data IMAGES --server {host}:{home.port} --authority ca.pem")
    _say(f"             bract server admit node.pub --name CLIENT --server {quoted}")


def start_command(folder: Folder) -> None:
    """Check the server's folder before replacing this process by the server."""
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
        starting.run_server(home)


def admit_command(
    key: Annotated[Path, typer.Argument(metavar="KEY.pub", help="The client's public key.")],
    name: Annotated[
        str | None, typer.Option(help="Name of the client here; by default the file's stem, or the name in a node.pub.")
    ] = None,
    server: Server = Path(),
    again: Annotated[bool, typer.Option("--again", help="Admit a key that was revoked.")] = False,
) -> None:
    """Admit a client."""
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
    """List the clients."""
    from server.deployment.client_list import list_clients
    from server.deployment.server_folder import load_home

    with plain_errors():
        clients, runs = list_clients(load_home(server))
    if as_json:
        typer.echo(json.dumps({"running": runs, "clients": [asdict(client) for client in clients]}, indent=2))
        return
    if not runs:
        _say("The server is not running. This list comes from its files.")
    if not clients:
        _say("No client has been admitted yet.")
    for client in clients:
        _say(f"{client.name}: {client.status}{f' since {client.seen}' if client.seen else ''}")
        node = "no node" if client.node_id is None else f"node {client.node_id}"
        _say(f"    {node}{f', admitted {client.admitted}' if client.admitted else ''}")
        _say(f"    {client.key}")


def revoke_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the client, as `bract server list` shows it.")],
    server: Server = Path(),
) -> None:
    """Revoke a client's key."""
    from server.deployment.admission import revoke
    from server.deployment.server_folder import load_home

    with plain_errors():
        client = revoke(load_home(server), name)
    _say(f"Revoked      {client.name}: its node is refused from now on")
    _say(f"Key          {client.key}, kept in clients/revoked")


def bundle_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File to write.")] = Path("bundle.fab"),
) -> None:
    """Write the bundle of the installed code to a file.

    Raises:
        ConfigError: The file cannot be written; it is printed without a traceback.
    """
    from common.system.app_bundle import bundle_digest, installed_bundle
    from common.system.files import write_atomic

    with plain_errors():
        bundle = installed_bundle()
        try:
            write_atomic(file, bundle, durable=True, mode=0o600)
        except OSError as error:
            raise ConfigError(f"{file} cannot be written ({error.strerror})") from None
    _say(f"Bundle       {file}: clients see its changes with `bract client review CLIENT {file.name}`")
    _say(f"Digest       {bundle_digest(bundle)}: read it to them by telephone")


def _say(line: str) -> None:
    Console().print(line, highlight=False, markup=False, emoji=False, soft_wrap=True)
