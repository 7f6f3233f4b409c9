"""The roster file that holders exchange without the server."""

from pathlib import Path

from client.client_config import Site, check_name
from common.errors import ConfigError
from common.ledger.identity_key import own_identity
from common.secagg.protocol.roster import Roster
from common.secagg.refusals import SecureSumError
from common.system.files import write_atomic

ROSTER_FILE = "roster.txt"


def roster_line(name: str, public_key: bytes) -> str:
    """Return a client's line in the roster.

    >>> roster_line("Ward 7", bytes(32))[60:]
    '0000 Ward 7'
    """
    return f"{public_key.hex()} {name}"


def read_roster(file: Path) -> Roster:
    """Return the roster in a file of one line for each client.

    Empty lines and lines that begin with # are left out.

    Raises:
        ConfigError: The file cannot be read, a line is not a key and a name, or a key or a name is there twice.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the roster {file} cannot be read ({getattr(error, 'strerror', 'not UTF-8')})") from None
    members: dict[str, bytes] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, _, name = line.strip().partition(" ")
        try:
            check_name(name)
            public = bytes.fromhex(key)
        except (ConfigError, ValueError):
            raise ConfigError(
                f"the roster {file}, line {number}: write a public key of 64 hex digits, one space and the client's "
                "name, as `bract client identity` shows it"
            ) from None
        if name in members:
            raise ConfigError(f"the roster {file}, line {number}: {name!r} is there twice")
        members[name] = public
    try:
        return Roster.of(members)
    except SecureSumError:
        raise ConfigError(
            f"the roster {file}: a key is not 64 hex digits, or two clients have the same one; clients of one user "
            "share their key and cannot take part in one secure sum"
        ) from None


def check_roster(roster: Roster, name: str, file: Path) -> None:
    """Refuse a roster without a client of this user.

    Raises:
        ConfigError: It does not have the client's name with this user's identity key.
        LedgerError: The identity key cannot be used.
    """
    line = roster_line(name, own_identity().public_key)
    if line not in (roster_line(*member) for member in zip(roster.names, roster.keys, strict=True)):
        raise ConfigError(f"the roster {file} lacks this client's own line:\n  {line}")


def take_roster(site: Site, file: Path) -> Roster:
    """Copy a roster that has this client into its folder and return it.

    Raises:
        ConfigError: It cannot be read or written, or lacks this client.
        LedgerError: The identity key cannot be used.
    """
    roster = read_roster(file)
    check_roster(roster, site.name, file)
    lines = [roster_line(*member) for member in zip(roster.names, roster.keys, strict=True)]
    try:
        write_atomic(site.folder / ROSTER_FILE, "\n".join(lines) + "\n", durable=True, mode=0o666)
    except OSError as error:
        raise ConfigError(f"{site.folder / ROSTER_FILE} cannot be written ({error.strerror})") from None
    return roster


def policy_lines(roster: Roster) -> list[str]:
    """Return the lines of a policy that accepts secure sums with a roster."""
    return ['aggregations = ["plain", "secure"]', f'roster = "{roster.digest.hex()}"']
