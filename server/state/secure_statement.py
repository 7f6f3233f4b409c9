"""Statement on secure aggregation in `privacy.json`."""

from typing import Any

from common.config.secure_sum import SecureSum
from common.secagg.primitives.domains import PROTOCOL
from server.rounds.secure_setup import SecureSession

_ALONE = "each sum: a value that one client alone contributes to, such as a class that it alone holds, is in it"
_DECLARED = "how many units each client declares, and which clients took part in which round"
_ROSTER = "a client whose roster came from the server, or who did not compare its digest with the other holders"


def aggregation_statement(constants: SecureSum, session: SecureSession | None, *, noised: bool) -> dict[str, Any]:
    """Return what is stated of a run whose updates leave in sums alone.

    Args:
        constants: Numbers of clients that may collude and must be honest.
        session: Set-up of the run; None before it.
        noised: Whether each sum has noise.
    """
    most = constants.colluding
    # Noise covers what one client contributes, and bounds what clients that the server invented learn of it.
    gaps = [f"more than `if_all_others_collude` says, for {_ROSTER}"] if noised else [_ALONE, _DECLARED, _ROSTER]
    return {
        "kind": "secure",
        "protocol": PROTOCOL.decode(),
        "num_clients": constants.num_clients,
        "colluding": most,
        "honest": constants.honest,
        "min_survivors": constants.min_survivors,
        "roster": None if session is None else session.roster.digest.hex(),
        "present": None if session is None else sorted(session.present),
        "statement": f"the server saw sums over at least {constants.min_survivors} clients, and no client's own update "
        f"or counts, unless more than {most} of {constants.num_clients} clients colluded with it",
        "not_protected": [
            *gaps,
            "backups of a client's file of mask secrets that were made during the run",
        ],
        "not_checked": "the server can neither filter nor clip a single update: one client can spoil the model",
    }
