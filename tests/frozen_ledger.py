"""What the frozen ledger of a data holder is about: its runs, plans, images, requests and replies."""

import hashlib
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from common.privacy.plan import PrivacyPlan

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
