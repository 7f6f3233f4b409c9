"""Identity keys by which the clients of a secure sum know each other."""

import hashlib
from collections.abc import Iterable

from common.errors import LedgerError
from common.ledger.holder_keys import read_or_make_key
from common.secagg.protocol.roster import Identity, Roster
from common.system.files import make_folder
from common.system.paths import bract_home

IDENTITY_FILE = "identity.key"


def own_identity() -> Identity:
    """Return the identity of this operating-system user, made at first use.

    Raises:
        LedgerError: The key is damaged or readable by others, or cannot be written.
    """
    file = bract_home() / "holder" / IDENTITY_FILE
    try:
        make_folder(file.parent, mode=0o700)
        return Identity(read_or_make_key(file))
    except OSError as error:
        raise LedgerError(f"the identity key {file} cannot be used ({error.strerror})") from None


def simulated_identity(seed: int, name: str) -> Identity:
    """Return the identity of a simulated client.

    It follows from the run's seed, so it protects nothing outside a simulation.
    """
    return Identity(hashlib.sha256(f"identity\x1f{seed}\x1f{name}".encode()).digest())


def simulated_roster(seed: int, names: Iterable[str]) -> Roster:
    """Return the roster of simulated clients."""
    return Roster.of({name: simulated_identity(seed, name).public_key for name in names})
