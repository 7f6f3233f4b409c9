"""Fields that may leave a client under its policy, in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ClientFailure, PrivacyError
from common.messages.fields import (
    ADVERTISE,
    ARRAYS,
    CODES,
    CONFIDENCE_COUNTS,
    CONFUSION,
    CORRECT,
    DEAL,
    LEDGER_FIELDS,
    LOSS_SUM,
    NOISED_CONFIDENCE_COUNTS,
    NOISED_CONFUSION,
    NOISED_SCORE_COUNTS,
    NOISED_SUBGROUP_COUNTS,
    NUM_EXAMPLES,
    PERSONAL_CONFUSION,
    PERSONAL_LOSS_SUM,
    SCALES,
    SCORE_COUNTS,
    SECURE,
    SUBGROUP_COUNTS,
    TRAIN_LOSS,
    UNMASK,
    WORDS,
    WRONG,
    Releases,
)
from common.privacy.mechanisms.contract import Mechanism
from common.privacy.mechanisms.registry import mechanism_named
from common.privacy.policy import Policy

_WORDS = {
    ARRAYS: "the trained tensors",
    CODES: "the trained tensors in few bits",
    SCALES: "their scales",
    NUM_EXAMPLES: "the declared number of images",
    CONFUSION: "exact counts of right and wrong answers by class",
    LOSS_SUM: "the exact sum of losses",
    PERSONAL_CONFUSION: "exact counts of the client's own model",
    PERSONAL_LOSS_SUM: "its exact sum of losses",
    CORRECT: "how many answers were right, with noise",
    WRONG: "how many were wrong, with noise",
    NOISED_CONFUSION: "counts of answers by class, with noise",
    SCORE_COUNTS: "exact histograms of scores",
    CONFIDENCE_COUNTS: "exact histograms of confidence",
    NOISED_SCORE_COUNTS: "histograms of scores, with noise",
    NOISED_CONFIDENCE_COUNTS: "histograms of confidence, with noise",
    SUBGROUP_COUNTS: "exact counts of right and wrong answers by subgroup",
    NOISED_SUBGROUP_COUNTS: "counts of right and wrong answers by subgroup, with noise",
    WORDS: "update and counts under masks, of which the server learns the sum over clients alone",
    TRAIN_LOSS: "the exact mean loss on training images",
    "name": "the client's name",
    "num-units": "the declared number of images or groups",
    "classes": "the list of classes",
    "input-shape": "the size of the model's input",
    "backbone-hash": "the digest of the public backbone",
    "bundle": "the digest of the pinned code",
}
_UPDATES = (ARRAYS, CODES)
_SUMS = "sums over the features of the training images"
_OF_MASKS = "names, public keys, and mask secrets that are sealed for other clients or that open the round's sum"
_HEAD = "the ledger's id, newest entry number and hash, public key and signature"
_KINDS = {
    "query": "agreement to a run, once",
    "train": "each round",
    "evaluate": "the end of a run",
    "query.close": "the closing of a run",
    ADVERTISE: "the set-up of secure sums",
    DEAL: "the set-up of secure sums, continued",
    UNMASK: "the opening of a secure sum",
}
# Codes of the closed list, which are all that leaves with a failure.
FAILURE_WORDS = {
    ClientFailure.INTERNAL.name: "something unexpected failed here",
    ClientFailure.CONFIG.name: "a setting or a file of this client cannot be used",
    ClientFailure.DATA.name: "the images are missing or unusable",
    ClientFailure.WEIGHTS.name: "the pretrained weights are missing or differ",
    ClientFailure.PRIVACY.name: "the privacy guarantee could not be given",
    ClientFailure.MESSAGE.name: "the message did not fit the run",
    ClientFailure.POLICY.name: "the policy or what is left of the budget does not allow it",
    ClientFailure.LEDGER.name: "the ledger is damaged, older than it was, or cannot be written",
    ClientFailure.BUNDLE.name: "the server's code is not the pinned one",
}


@dataclass(frozen=True)
class Leaving:
    """Fields that leave with one kind of reply under one mechanism."""

    mechanism: str
    reply: str
    fields: str


def leaving_under(policy: Policy) -> list[Leaving]:
    """Return all fields that any run may get from this client.

    They follow from the list by which the client itself checks each reply before it leaves.
    """
    rows = []
    for name in policy.mechanisms:
        mechanism = mechanism_named(name)
        for kind, reply in _KINDS.items():
            found = _fields(kind, mechanism, policy)
            if found:
                rows.append(Leaving(name, reply, "; ".join(found)))
    return rows


def _fields(kind: str, mechanism: Mechanism, policy: Policy) -> list[str]:
    """Return words for the fields of one reply in any allowed run."""
    words: dict[str, None] = {}
    for releases in _allowed(mechanism, policy):
        try:
            records = releases.fields(kind)
        except PrivacyError:
            continue
        for record, keys in records.items():
            if keys == LEDGER_FIELDS:
                words[_HEAD] = None
            elif record == SECURE:
                words[_OF_MASKS] = None
            else:
                # A field that was added since is shown under its own name, and never left out.
                for key in (record,) if keys is None else keys:
                    place = f" ({mechanism.noise_place})" if key in _UPDATES else ""
                    word = _SUMS if key == ARRAYS and releases.statistics else _WORDS.get(key, key)
                    words[word + place] = None
    return list(words)


def _allowed(mechanism: Mechanism, policy: Policy) -> Sequence[Releases]:
    """Return the releases of all runs that the policy allows."""
    allowed = [metrics for metrics in policy.metrics if metrics in mechanism.metrics]
    found = []
    if "plain" in policy.aggregations:
        updates: list[dict[str, Any]] = []
        if "rounds" in mechanism.methods:
            updates += [{"update_bits": bits} for bits in (32, 8)]
        if "statistics" in mechanism.methods:
            updates.append({"statistics": "second-moments"})
        found += [
            Releases(
                mechanism, metrics, histograms=histograms, train_loss=loss, personal=loss, subgroups=subgroups, **update
            )
            for metrics in allowed
            for histograms in ([False, True] if "full" in policy.closing else [False])
            for subgroups in ([0, 2] if policy.subgroup_columns else [0])
            for loss in ([False, True] if mechanism.releases_losses else [False])
            for update in updates
        ]
    if "secure" in policy.aggregations and mechanism.secure_sum:
        found += [Releases(mechanism, metrics, secure=True) for metrics in allowed]
    return found
