"""Setup of a server's folder and renewal of its certificate."""

import ipaddress
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from common.errors import ConfigError
from common.system.files import make_folder, write_atomic
from server.deployment.certificates import Certificate, new_authority, new_server_certificate
from server.deployment.server_folder import ServerHome, checked, connection_text, load_home, settings_text


def make_home(folder: Path, *, names: Sequence[str], port: int, days: int) -> ServerHome:
    """Make a new server's folder with an authority, a certificate and settings.

    Guarantee: existing files are never changed, and a failure leaves no files behind. Other users can never read the
    keys.

    Args:
        folder: Folder to fill, new or empty; gets mode 0700.
        names: DNS names and IP addresses by which clients reach the server; this machine's own if empty.
        port: Port to listen at, 1 to 65535.
        days: Days that the certificate is valid.

    Raises:
        ConfigError: The folder is not empty or cannot be written, or a value is not allowed.
    """
    absolute = folder.expanduser().resolve()
    all_names = tuple(dict.fromkeys(names)) or tuple(local_names())
    home = checked(ServerHome(absolute, "0.0.0.0", port, all_names, days))  # noqa: S104
    authority = new_authority(all_names[0] if all_names else absolute.name)
    server = new_server_certificate(authority, (*all_names, home.control_host), days=days)
    try:
        # An existing authority must never be replaced, since clients trust only that.
        if absolute.exists() and (not absolute.is_dir() or any(absolute.iterdir())):
            hint = ": it holds a server already; --renew makes a new certificate" if home.settings_file.exists() else ""
            raise ConfigError(f"{folder} is not empty{hint or ': name a new folder'}")
        fresh = not absolute.exists()
        make_folder(absolute, mode=0o700)
        _fill(home, authority, server, fresh=fresh)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror})") from None
    return home


def renew(folder: Path, *, names: Sequence[str], days: int | None, replace_authority: bool = False) -> ServerHome:
    """Make a new key and certificate for the server.

    With the same authority clients need no new files, because they trust the authority. They then also go on trusting
    every earlier certificate until it ends. Only a new authority revokes these.

    Args:
        folder: Folder of the server.
        names: New names for `server.toml`. If empty, its names stay.
        days: New number of days for `server.toml`. If None, its number stays.
        replace_authority: Whether to make a new authority, which every client must get.

    Raises:
        ConfigError: The folder does not hold a server, its authority cannot be read or has ended, or a name is not
            allowed.
    """
    home = load_home(folder)
    home = replace(home, names=tuple(dict.fromkeys(names)) or home.names, days=home.days if days is None else days)
    try:
        if replace_authority:
            authority = new_authority(home.names[0] if home.names else home.folder.name)
        else:
            authority = Certificate(home.authority_file.read_bytes(), home.authority_key_file.read_bytes())
        server = new_server_certificate(authority, (*home.names, home.control_host), days=home.days)
        if replace_authority:
            # The old key is overwritten: whoever could read it could still sign for the clients that trust it.
            write_atomic(home.authority_key_file, authority.key, durable=True, mode=0o600)
            write_atomic(home.authority_file, authority.certificate, durable=True, mode=0o600)
        write_atomic(home.key_file, server.key, durable=True, mode=0o600)
        write_atomic(home.certificate_file, server.certificate, durable=True, mode=0o600)
        if names or days is not None:
            write_atomic(home.settings_file, settings_text(home).encode(), durable=True, mode=0o600)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the certificate in {home.folder} cannot be renewed ({error})") from None
    return home


def _fill(home: ServerHome, authority: Certificate, server: Certificate, *, fresh: bool) -> None:
    """Write all files of a new server, leaving none behind if one fails."""
    contents = {
        home.authority_file: authority.certificate,
        home.authority_key_file: authority.key,
        home.certificate_file: server.certificate,
        home.key_file: server.key,
        home.flower / "config.toml": connection_text(home).encode(),
        # Written last, because a folder with settings counts as a complete server.
        home.settings_file: settings_text(home).encode(),
    }
    folders = (home.clients, home.revoked, home.flower, home.runs)
    try:
        home.folder.chmod(0o700)
        for folder in folders:
            folder.mkdir(mode=0o700)
        for file, content in contents.items():
            write_atomic(file, content, durable=True, mode=0o600)
    except BaseException:
        for file in contents:
            file.unlink(missing_ok=True)
        for folder in (*reversed(folders), *([home.folder] if fresh else [])):
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def local_names() -> list[str]:
    """Return this machine's host names and addresses, without loopback and link-local ones.

    Guarantee: no packet is sent. Behind NAT the public name is not among them.
    """
    host = socket.gethostname()
    names = [name for name in (socket.getfqdn(), host) if name and name != "localhost"]
    return list(dict.fromkeys([*(name for name in names if not _is_address(name)), *_addresses(host)]))


def _addresses(host: str) -> list[str]:
    addresses: set[str] = set()
    with suppress(OSError):
        addresses |= {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    # Connecting a datagram socket sends no packet. It only chooses the address that a packet would leave from.
    for family, remote in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((remote, 9))
            addresses.add(str(probe.getsockname()[0]))
    return sorted(address for address in addresses if _is_useful(address))


def _is_useful(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
