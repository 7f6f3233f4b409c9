"""Names and addresses by which others may reach this machine."""

import ipaddress
import socket
from contextlib import suppress


def local_names() -> list[str]:
    """The hostname, its full form, and this machine's addresses as it sees them; loopback and link-local are left out.

    Guarantee: nothing is sent anywhere. Best effort: behind NAT the public name is not among them.
    """
    host = socket.gethostname()
    names = [name for name in (socket.getfqdn(), host) if name and name != "localhost"]
    return list(dict.fromkeys([*(name for name in names if not _is_address(name)), *_addresses(host)]))


def _addresses(host: str) -> list[str]:
    found: set[str] = set()
    with suppress(OSError):
        found |= {str(info[4][0]) for info in socket.getaddrinfo(host, None)}
    # Which address would a packet to elsewhere leave from? Connecting a datagram socket sends nothing.
    for family, elsewhere in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect((elsewhere, 9))
            found.add(str(probe.getsockname()[0]))
    return sorted(address for address in found if _is_useful(address))


def _is_useful(address: str) -> bool:
    parsed = ipaddress.ip_address(address)
    return not (parsed.is_loopback or parsed.is_link_local or parsed.is_unspecified)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
