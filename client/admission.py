"""Admission of a server's request before any image is opened."""

import sys
from collections.abc import Mapping
from pathlib import Path

from client.client_config import BUNDLE_KEY, NODE_KEY, SIMULATION_KEY, load_site
from client.guard import note_refusal
from client.home import OwnHome
from client.secure.party import own_party
from client.secure.secrets_file import SecretsFile
from client.session import ClientRef
from common.config.schema import RunConfig
from common.errors import ConfigError, PolicyError
from common.ledger.data_holder import own_holder
from common.privacy.policy import load_policy

# Message type by which a server closes a run.
_CLOSE = "query.close"


def client_ref(node_config: Mapping[str, object]) -> ClientRef:
    """Return which client a node is, by the node's own configuration.

    No server can set it. A simulated client does what the server says, so a node counts as one only by its own
    configuration, or because it runs inside Ray.

    Args:
        node_config: Configuration of the node, from its own command line.

    Raises:
        ConfigError: The configuration names no client.
    """
    if NODE_KEY in node_config:
        return str(node_config[NODE_KEY])
    if not {"partition-id", "num-partitions"} <= set(node_config):
        raise ConfigError(
            f"this node is not a client: its configuration has neither {NODE_KEY} nor a simulation's partition-id"
        )
    if node_config.get(SIMULATION_KEY) is not True and not _runs_in_ray():
        raise ConfigError(
            f"this node has a partition-id, but is not marked as simulated: give it {NODE_KEY}, the folder that "
            f"`bract client init` made, or {SIMULATION_KEY}=true if its images need no protection"
        )
    return int(str(node_config["partition-id"]))


def _runs_in_ray() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def pinned_by(node_config: Mapping[str, object]) -> str:
    """Return the digest of the bundle that this node's launcher has checked.

    It is empty where nothing has checked the code.
    """
    return str(node_config.get(BUNDLE_KEY, ""))


def admit(config: RunConfig, place: ClientRef, pinned: str, run: str, kind: str) -> None:
    """Refuse a run beyond a real client's policy before any image is opened.

    Args:
        config: Configuration of the run, from the server.
        place: See `client_ref`. A simulated client is checked later, by its guard.
        pinned: See `pinned_by`.
        run: The server's name for the run.
        kind: Type of the message.

    Raises:
        ConfigError: The client's own files are wrong.
        PolicyError: The run is beyond the policy; the refusal is noted in the ledger.
    """
    if not isinstance(place, str):
        return
    site = load_site(Path(place))
    try:
        policy = load_policy(site.policy_file)
        policy.check_run(config)
        # Whatever this client holds: a refusal because of its own classes would tell the server of them.
        if config.privacy.strict_rows and config.sums_exactly:
            raise PolicyError("privacy.strict-rows refuses secure sums without noise over real clients")
        if config.secure is not None:
            own_party(site, policy, config.secure)
        if policy.bundle and policy.bundle != pinned:
            raise PolicyError("the policy pins a bundle of code, and nothing has checked it: use `bract client start`")
    except PolicyError as error:
        with own_holder().open_session() as session:
            note_refusal(session, run, site.name, 0, kind, error)
            # A policy that became stricter must not keep a run open. Closing it releases nothing.
            if kind == _CLOSE:
                home = OwnHome()
                SecretsFile.of(home.folder(run), run, site.name, durable=home.durable).erase()
                if session.registration(run, site.name) is not None or session.has_summed(run, site.name):
                    session.close(run, site.name)
        raise
