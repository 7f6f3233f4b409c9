"""A client's identity and the roster that it goes by in secure sums."""

from dataclasses import dataclass

from client.client_config import Site
from client.secure.roster_file import ROSTER_FILE, read_roster
from common.config.secure_sum import SecureSum
from common.errors import PolicyError
from common.ledger.identity_key import own_identity, simulated_identity
from common.privacy.policy import Policy
from common.secagg.protocol.roster import Identity, Roster


@dataclass(frozen=True)
class Party:
    """A client among those of a secure sum."""

    roster: Roster
    identity: Identity


def simulated_party(name: str, roster: Roster, *, seed: int) -> Party:
    """Return a simulated client, whose key follows from the run's seed."""
    return Party(roster, simulated_identity(seed, name))


def own_party(site: Site, policy: Policy, constants: SecureSum) -> Party:
    """Return this client with the roster that its policy names.

    Raises:
        PolicyError: The policy names no roster or another one, or the roster does not fit the run or this client.
        ConfigError: The roster's file cannot be read.
        LedgerError: The identity key cannot be used.
    """
    if not policy.roster:
        # Without it a server could invent the other clients, and the sum would be this client's update.
        raise PolicyError("the policy names no roster: `bract client roster` puts one into it")
    roster, identity = read_roster(site.folder / ROSTER_FILE), own_identity()
    if roster.digest.hex() != policy.roster:
        raise PolicyError(f"{ROSTER_FILE} is not the roster that the policy names")
    if len(roster) != constants.num_clients:
        raise PolicyError(f"the run is for num-clients={constants.num_clients}, the roster has {len(roster)} clients")
    if dict(zip(roster.names, roster.keys, strict=True)).get(site.name) != identity.public_key:
        raise PolicyError(f"the roster does not have this client's name {site.name!r} with its identity key")
    return Party(roster, identity)
