"""The report of `bract client init`, ending with the next steps."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from client.client_config import SITE_FILE, Site
from client.secure.roster_file import ROSTER_FILE, policy_lines, read_roster, roster_line
from client.setup.ca_certificate import read_authority
from client.setup.node_key import public_line, read_node_key
from common.ledger.data_holder import Holder
from common.ledger.identity_key import own_identity
from common.privacy.policy import load_policy
from common.system.console import printable
from common.system.fingerprints import certificate_fingerprint, key_fingerprint


def report_lines(
    site: Site, holder: Holder, *, shown: Path, policy_was_there: bool, remarks: Sequence[str] = ()
) -> list[str]:
    """Return the lines for the operator, each a fact or a task.

    Args:
        site: The client that was set up.
        holder: Its user's ledger and keys.
        shown: The folder as the operator named it.
        policy_was_there: Whether the folder held a policy before, which was kept.
        remarks: Lines on what is not read and on the class list.

    Raises:
        ConfigError: A file that was just written cannot be read.
    """
    kept = " (it was there and is left as it is)" if policy_was_there else ""
    key = public_line(read_node_key(site.key_file), "").decode()
    return [
        f"Client    {site.name}, {site.num_images} training images declared, in {site.folder}",
        *map(printable, remarks),
        f"Policy    {site.policy_file}{kept}: read it; no server can get more than it allows",
        f"Ledger    {holder.ledger_file}, id {holder.keys.ledger_id}: back it up with the .key files beside it after "
        "each run; a lost or older ledger is a lost budget",
        f"Key       {key_fingerprint(key)}: send {site.public_key_file} to the server's operator, who admits it with "
        f"`bract server admit`; {site.key_file.name} stays here",
        f"Identity  for a roster of secure sums: {roster_line(site.name, own_identity().public_key)}",
        *_roster_lines(site),
        *_server_lines(site),
        _pin_line(site),
        *_next_lines(shown),
    ]


def _roster_lines(site: Site) -> list[str]:
    file = site.folder / ROSTER_FILE
    if not file.exists():
        return []
    roster, policy = read_roster(file), load_policy(site.policy_file)
    lines = [f"Roster    {len(roster)} clients, digest {roster.digest.hex()[:16]}: compare it with the other holders"]
    if policy.roster != roster.digest.hex():
        lines += [f"To do     put into {site.policy_file}:", *(f"          {line}" for line in policy_lines(roster))]
    return lines


def _server_lines(site: Site) -> list[str]:
    missing = [key for key, value in (("superlink", site.superlink), ("authority", site.authority)) if not value]
    lines = [f"Server    {site.superlink}"] if site.superlink else []
    for certificate in read_authority(site.authority_file) if site.authority else ():
        lines.append(
            f"Authority {certificate_fingerprint(certificate)}: compare it with what the server's operator reads to you"
        )
    if missing:
        lines.append(
            f"To do     fill in {' and '.join(missing)} in {site.folder / SITE_FILE} when the server's operator has "
            "told you (HOST:PORT, and the file of the authority's certificate)"
        )
    return lines


def _pin_line(site: Site) -> str:
    pinned = load_policy(site.policy_file).bundle
    if not pinned:
        return (
            f"Pin       NONE: {site.policy_file} names no bundle, so any code that a server sends would be trusted; "
            f"`bract client review {shlex.quote(str(site.folder))}` ends with the line to put there"
        )
    return f"Pin       {pinned[:16]}: code that a server sends runs here only if it is exactly this"


def _next_lines(shown: Path) -> list[str]:
    folder = shlex.quote(str(shown))
    return [f"Next      bract client check {folder}", f"          bract client start {folder}"]
