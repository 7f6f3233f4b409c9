"""A legal reply for every message and kind of run, that the tests of the wire share."""

from dataclasses import replace

import numpy as np
from flwr.app import RecordDict

from common.ledger.database import Head
from common.ledger.holder_keys import HolderKeys
from common.ledger.signed_heads import sign_head
from common.messages.codec import (
    Declaration,
    Evaluation,
    encode_declaration,
    encode_evaluation,
    encode_head,
    encode_update,
)
from common.messages.fields import LEDGER, Releases
from common.messages.rounded_update import leaving_arrays
from common.metrics import Counts, NoisedCounts
from common.privacy.mechanisms.registry import MECHANISMS
from common.score_histograms import score_histograms
from common.subgroup_counts import SubgroupCounts

WEIGHTS: dict[str, np.ndarray] = {
    "b.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.bias": np.array([1, 2], dtype=np.float32),
}
COUNTS = Counts(np.array([[3, 1], [0, 2]]), 2.5)
FOUND = Evaluation(COUNTS)
# Of the images of `COUNTS`.
HISTOGRAMS = score_histograms(
    np.array([[1.0, 0], [1, 0], [1, 0], [0, 1], [0, 1], [0, 1]], np.float32), np.array([0, 0, 0, 0, 1, 1])
)
# Of the images of `COUNTS`, too.
SUBGROUPS = SubgroupCounts(np.array([[2, 0], [3, 1], [0, 0]]))
OWN_COUNTS = Counts(np.array([[4, 0], [1, 1]]), 1.25)
EVERYTHING = Releases(train_loss=True, personal=True)
DECLARED = Declaration("00003", 287, ("cat", "dog"), (8, 8, 1), "2cae")
PRIVATE = Releases(MECHANISMS["dp-sgd"], "private")
HEAD = sign_head(HolderKeys.simulated(0, "00003"), Head(7, "ab" * 32))
RUNS = {
    "private": PRIVATE,
    "silent": Releases(MECHANISMS["dp-sgd"], "none"),
    "exact": Releases(MECHANISMS["dp-sgd"], "exact"),
    "central": Releases(MECHANISMS["client-dp"], "none"),
    "open": Releases(),
    "fair": Releases(train_loss=True),
    "personal": Releases(personal=True),
    "everything": EVERYTHING,
    "rounded": Releases(update_bits=8),
    "rounded, private": Releases(MECHANISMS["dp-sgd"], "private", update_bits=8),
    "private histograms": replace(PRIVATE, histograms=True),
    "exact histograms": Releases(MECHANISMS["dp-sgd"], "exact", histograms=True),
    "private subgroups": replace(PRIVATE, subgroups=3),
    "exact subgroups": Releases(MECHANISMS["dp-sgd"], "exact", subgroups=3),
    "all that closes": replace(PRIVATE, histograms=True, subgroups=3),
}
LEGAL = [
    (kind, run)
    for kind in ("query", "query.close", "train", "evaluate")
    for run, releases in RUNS.items()
    if not (kind == "evaluate" and releases.metrics == "none")
]


def reply(kind: str, releases: Releases) -> RecordDict:
    content = _without_head(kind, releases)
    if releases.signed:
        content[LEDGER] = encode_head(HEAD)
    return content


def _without_head(kind: str, releases: Releases) -> RecordDict:
    if kind == "query.close":
        return RecordDict()
    if kind == "query":
        return encode_declaration(DECLARED)
    found = _found(kind, releases)
    if kind == "evaluate":
        return encode_evaluation(287, found)
    start = {name: np.zeros_like(array) for name, array in WEIGHTS.items()}
    return encode_update(leaving_arrays(WEIGHTS, start, releases, seed=0, client="00003", server_round=1), 287, found)


def _found(kind: str, releases: Releases) -> Evaluation | None:
    if releases.metrics == "none":
        return None
    histograms = HISTOGRAMS if releases.histograms and kind == "evaluate" else None
    subgroups = SUBGROUPS if releases.subgroups and kind == "evaluate" else None
    if releases.metrics == "private":
        noised = NoisedCounts(np.array([[3, -1], [0, 2]]) if kind == "evaluate" else np.array([5, -2]))
        return Evaluation(noised=noised, histograms=histograms, subgroups=subgroups)
    if releases.mechanism.name != "none":
        return Evaluation(Counts(COUNTS.confusion, float("nan")), histograms=histograms, subgroups=subgroups)
    loss = 0.75 if releases.train_loss and kind == "train" else None
    return Evaluation(COUNTS, OWN_COUNTS if releases.personal else None, loss)
