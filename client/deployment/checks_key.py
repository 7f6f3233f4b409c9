"""Is the node's key there, closed to others, and the one whose public half was sent to the server's operator?"""

import os
from shlex import quote

from cryptography.hazmat.primitives.asymmetric import ec

from client.deployment.finding import Finding, fail, ok
from client.deployment.node_key import is_public_half, public_line, read_node_key
from client.site import Site
from common.errors import ConfigError
from common.fingerprints import key_fingerprint

_OTHERS = 0o077


def check_key(site: Site) -> tuple[ec.EllipticCurvePrivateKey | None, Finding]:
    """The node's key, None if it cannot be used; and what is wrong with it or its public half."""
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
    if mode & _OTHERS and os.name == "posix":
        return key, fail(
            "node key",
            f"{site.key_file} can be read by others (mode {mode:04o}): whoever has it can answer in this client's name",
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
