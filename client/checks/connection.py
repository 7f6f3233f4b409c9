"""Checks of a client's key and of its connection to the server."""

import http.client
import os
import socket
from collections.abc import Iterator
from shlex import quote
from urllib.request import getproxies, proxy_bypass

from cryptography.hazmat.primitives.asymmetric import ec

from client.checks.check_result import Finding, fail, ok, warn
from client.checks.server_probe import Address, Answer, ask_anything, ask_whether_admitted
from client.checks.tls import check_tls
from client.client_config import SITE_FILE, Site, server_place
from client.setup.node_key import is_public_half, public_line, read_node_key
from common.errors import ConfigError
from common.system.fingerprints import key_fingerprint

# Flower accepts a signed time that is at most so many seconds behind its own clock, or ahead of it.
MAX_BEHIND = 305.0
MAX_AHEAD = 5.0
_NOTICEABLE = 5.0
# Codes for a refused interval, which only a known key gets to, and for a refused key.
_ADMITTED, _UNKNOWN = 2003, 2004
_SET_CLOCK = (
    "set this machine's clock by a time server (Linux: timedatectl set-ntp true); if a third clock says that this one "
    "is right, tell the server's operator"
)


def check_server(site: Site, key: ec.EllipticCurvePrivateKey | None, *, seconds: float = 5.0) -> Iterator[Finding]:
    """Check the way to the server step by step, up to the first failure.

    Args:
        site: The client.
        key: The node's key; None leaves out the check of admission.
        seconds: Time limit of each step.
    """
    if not site.superlink:
        yield fail(
            "server",
            "client.toml does not say where the server is",
            f"put its address into {site.folder / SITE_FILE} as superlink, and name the authority's certificate there",
        )
        return
    address = Address(*server_place(site.superlink), seconds)
    reached = _check_reach(address)
    yield reached
    if reached.state == "FAIL":
        return
    context, tls = check_tls(site, address)
    yield tls
    if context is None:
        return
    try:
        answer = ask_anything(address, context) if key is None else ask_whether_admitted(address, context, key)
        clock = _check_clock(answer)
        yield clock
        if key is not None:
            yield _check_admitted(site, answer, clock)
    except (OSError, http.client.HTTPException) as error:
        yield fail(
            "answer",
            f"{site.superlink} does not answer as a server does ({type(error).__name__})",
            "ask the server's operator whether it is running, and whether a proxy or firewall stands in between",
        )


def check_key(site: Site) -> tuple[ec.EllipticCurvePrivateKey | None, Finding]:
    """Check the node's key and its public half.

    Returns:
        The key, None where it cannot be used, and the finding.
    """
    private, public = quote(str(site.key_file)), quote(str(site.public_key_file))
    try:
        key = read_node_key(site.key_file)
    except ConfigError as error:
        return None, fail(
            "node key",
            str(error),
            f'restore it from your backup, or make a new one: ssh-keygen -t ecdsa -b 384 -N "" -f {private}, then mv '
            f"{private}.pub {public}, and have {site.public_key_file.name} admitted",
        )
    mode = site.key_file.stat().st_mode & 0o777
    if mode & 0o077 and os.name == "posix":
        return key, fail(
            "node key",
            f"{site.key_file} can be read by others (mode {mode:04o}), who could answer in this client's name",
            f"chmod 600 {private}; if others use this machine, make a new key and have the old one removed",
        )
    rewrite = f"ssh-keygen -y -f {private} > {public}"
    try:
        fits = is_public_half(site.public_key_file, key)
    except ConfigError as error:
        return key, fail("node key", str(error), rewrite)
    if not fits:
        return key, fail(
            "node key",
            f"{site.public_key_file} is not the public half of {site.key_file.name}: a server that admitted it "
            "does not know this client",
            f"{rewrite}, and send {site.public_key_file.name} to the server's operator again",
        )
    shown = key_fingerprint(public_line(key, "").decode())
    return key, ok("node key", f"{shown}, EC P-384")


def _check_reach(address: Address) -> Finding:
    where = f"{address.host}:{address.port}"
    try:
        socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return fail(
            "server",
            f"no address is known for the name {address.host}",
            "is the name written right in client.toml, and does this machine's DNS know it (getent hosts "
            f"{quote(address.host)})?",
        )
    try:
        socket.create_connection(address.pair, address.seconds).close()
    except OSError as error:
        return fail("server", f"{where} cannot be reached: {_why(error)}", _remedy(error, address))
    proxy = _proxy_for(address.host)
    if proxy:
        return warn(
            "server",
            f"{where} can be reached directly, but a client would go through the proxy {proxy}",
            f"unless the proxy is wanted, start the client with NO_PROXY={quote(address.host)}",
        )
    return ok("server", f"{where} can be reached")


def _why(error: OSError) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens at this port"
    if isinstance(error, TimeoutError):
        return "no answer, as behind a firewall"
    return error.strerror or type(error).__name__


def _remedy(error: OSError, address: Address) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "ask the server's operator whether the server is running, and at which port"
    proxy = _proxy_for(address.host)
    through = f"; this machine is set to use the proxy {proxy}, which may be the only way out" if proxy else ""
    return f"have outgoing connections to {address.host} port {address.port} (TCP) allowed{through}"


def _proxy_for(host: str) -> str:
    """Return the proxy that a client's HTTP library would use, without a password."""
    proxy = getproxies().get("https") or getproxies().get("all") or ""
    return "" if not proxy or proxy_bypass(host) else proxy.rpartition("@")[2]


def _check_clock(answer: Answer) -> Finding:
    if answer.ahead is None:
        return warn("clock", "the server does not tell its time", "look at this machine's clock yourself")
    difference = f"{_amount(abs(answer.ahead))} {'ahead of' if answer.ahead > 0 else 'behind'} the server's"
    if not -MAX_BEHIND < answer.ahead < MAX_AHEAD:
        return fail("clock", f"{difference}: what this client signs is refused", _SET_CLOCK)
    if answer.ahead < -_NOTICEABLE or answer.ahead > MAX_AHEAD / 2:
        return warn(
            "clock", f"{difference}: from {MAX_AHEAD:g} s ahead or {MAX_BEHIND:g} s behind on it is refused", _SET_CLOCK
        )
    return ok("clock", "agrees with the server's to within 3 seconds" if abs(answer.ahead) <= 3 else difference)


def _amount(seconds: float) -> str:
    """Return a length of time for people.

    >>> _amount(3600.4), _amount(90.0), _amount(7.0)
    ('60 minutes', '90 seconds', '7 seconds')
    """
    for size, name in ((172_800, "days"), (7200, "hours"), (120, "minutes")):
        if seconds >= size:
            return f"{seconds / {'days': 86_400, 'hours': 3600, 'minutes': 60}[name]:.0f} {name}"
    return f"{seconds:.0f} seconds"


def _check_admitted(site: Site, answer: Answer, clock: Finding) -> Finding:
    if answer.code == _ADMITTED:
        return ok("admission", "the server knows this client's key")
    if answer.code == _UNKNOWN:
        return fail(
            "admission",
            "the server does not know this client's key",
            f"send {site.public_key_file} to the server's operator, who runs `bract server admit`; if it was admitted "
            "before, it has been removed since",
        )
    if answer.status == 401:
        first = "set the clock first" if clock.state == "FAIL" else "look at the clock and the node's key"
        return fail("admission", "the server refused this client's signature", f"{first}, then check again")
    return fail(
        "admission",
        f"the answer is not from a Flower SuperLink that this Bract knows (status {answer.status})",
        "is this the address that the server's operator gave you, and does the server have the same version of Flower?",
    )
