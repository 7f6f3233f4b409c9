"""What the frozen ledger of a data holder is about: its runs, plans, images, requests and replies."""

import hashlib
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.ledger.data_holder import own_holder
from common.ledger.signed_heads import SignedHead, sign_head
from common.messages.serialization import digest_of, pack
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import Policy

CLOSED_RUN, OPEN_RUN, GROUP_RUN = (hashlib.sha256(name.encode()).hexdigest()[:32] for name in ("over", "on", "group"))
COUNTS = {"num_rounds": 3, "noise_stddev": 25.0, "closing_noise_stddev": 4.0}
PLAIN_PLAN = {
    "mechanism": "dp-sgd",
    "privacy_unit": "image",
    "num_units": 100,
    "sample_rate": 0.5,
    "steps_per_round": 2,
    "num_rounds": 3,
    "max_grad_norm": 0.1,
    "noise_multiplier": 4.0,
    "delta": 1e-5,
    "counts": COUNTS,
}
PLAN = PrivacyPlan.from_json(PLAIN_PLAN)
GROUP_PLAN = PrivacyPlan.from_json(PLAIN_PLAN | {"privacy_unit": "group", "num_units": 20, "counts": None})


@dataclass(frozen=True, eq=False)
class Names:
    """Names of images as a ledger wants them."""

    files: np.ndarray
    pixels: np.ndarray
    units: np.ndarray
    earlier_pixels: None = None


def holding(first: int, last: int, unit_size: int = 1) -> Names:
    """Return names of made-up images, the same at every call."""

    def digests(kind: str) -> np.ndarray:
        names = [hashlib.sha256(f"{kind} {number}".encode()).digest() for number in range(first, last)]
        return np.frombuffer(b"".join(names), dtype=np.uint8).reshape(-1, 32)

    return Names(digests("file"), digests("pixels"), np.arange(first, last) // unit_size)


def request(run: str, server_round: int) -> RecordDict:
    """Return what a server asks for in a round."""
    config = ConfigRecord({"run-id": run, "server-round": server_round})
    return RecordDict({"config": config, "arrays": _arrays(float(server_round))})


def reply(server_round: int) -> RecordDict:
    """Return what a client answers in a round, without the head of its ledger."""
    metrics = MetricRecord({"num-examples": 100, "noised-correct": 7 * server_round, "noised-wrong": -2})
    return RecordDict({"arrays": _arrays(-float(server_round)), "metrics": metrics})


def _arrays(fill: float) -> ArrayRecord:
    weight = np.full((2, 3), fill, dtype=np.float32) + np.arange(3, dtype=np.float32)
    return ArrayRecord({"head.weight": Array(weight), "head.bias": Array(np.zeros(2, dtype=np.float32))})


def fill_ledger(policy: Policy) -> list[SignedHead]:
    """Write what the frozen ledger has: a run that is over, one that goes on, one over groups, a refusal and a note.

    Args:
        policy: The holder's.

    Returns:
        Two heads, as a server would have kept them.
    """
    holder, heads = own_holder(), []
    with holder.open_session() as session:
        agreed = session.register(CLOSED_RUN, "ward-7", PLAN, (holding(0, 6), holding(6, 8)), policy)
        for server_round, kind in [(1, "train"), (2, "train"), (3, "train"), (3, "closing")]:
            session.reserve(agreed, server_round, kind, digest_of(request(CLOSED_RUN, server_round)), policy)
            session.commit(agreed, server_round, kind, pack(reply(server_round)), keep=holder.replies_kept)
        heads.append(sign_head(holder.keys, session.ledger.head()))
        session.close(CLOSED_RUN, "ward-7")
        agreed = session.register(OPEN_RUN, "ward-7", PLAN, (holding(4, 10), holding(10, 12)), policy)
        session.reserve(agreed, 1, "train", digest_of(request(OPEN_RUN, 1)), policy)
        session.commit(agreed, 1, "train", pack(reply(1)), keep=holder.replies_kept)
        session.reserve(agreed, 2, "train", digest_of(request(OPEN_RUN, 2)), policy)
        grouped = (holding(20, 30, unit_size=3), holding(30, 34, unit_size=2))
        agreed = session.register(GROUP_RUN, "clinic", GROUP_PLAN, grouped, policy)
        session.reserve(agreed, 1, "train", digest_of(request(GROUP_RUN, 1)), policy)
        session.refuse("f" * 32, "ward-7", 0, "query", "epsilon would come to 9 over all runs, the policy allows 8")
        session.note("e" * 32, "ward-7", "took part with privacy.mechanism='none'")
        heads.append(sign_head(holder.keys, session.ledger.head()))
    return heads
