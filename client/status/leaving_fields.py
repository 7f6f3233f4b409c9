"""Fields that may leave a client under its policy, in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass

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
    SUBGROUP_COUNTS,
    TRAIN_LOSS,
    UNMASK,
    WORDS,
    WRONG,
    Releases,
)
from common.privacy.mechanisms import Mechanism, mechanism_named
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
    WORDS: "update and counts under masks, of which the sum over clients is opened",
    "index": "the client's place on the roster",
    "channel-key": "a public key for this run",
    "mask-keys-digest": "the digest of public keys of masks",
    "seeds-digest": "the digest of commitments to masks",
    "signature": "a signature",
    "mask-keys": "public keys of masks",
    "seed-commitments": "commitments to masks",
    "members": "places on the roster",
    "request": "the digest of the question",
    "boxes": "shares of mask secrets, sealed for other clients",
    "shares": "blinded shares of mask secrets",
    "names": "the names on the roster",
    "identity-keys": "the public keys on the roster",
    TRAIN_LOSS: "the exact mean loss on training images",
    "name": "the client's name",
    "num-units": "the declared number of images or groups",
    "classes": "the list of classes",
    "input-shape": "the size of the model's input",
    "backbone-hash": "the digest of the public backbone",
    "bundle": "the digest of the pinned code",
}
_UPDATES = (ARRAYS, CODES)
_HEAD = "the ledger's id, newest entry number and hash, public key and signature"
_KINDS = {
    "query": "agreement to a run, once",
    "train": "each round",
    "evaluate": "the end of a run",
    "query.close": "the closing of a run",
    ADVERTISE: "the set-up of secure sums",
    DEAL: "the sharing of mask secrets",
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
            else:
                # A field that was added since is shown under its own name, and never left out.
                for key in (record,) if keys is None else keys:
                    place = f" ({mechanism.noise_place})" if key in _UPDATES else ""
                    words[_WORDS.get(key, key) + place] = None
    return list(words)


def _allowed(mechanism: Mechanism, policy: Policy) -> Sequence[Releases]:
    open_losses = mechanism.releases_losses
    return [
        Releases(
            mechanism,
            metrics,
            histograms=histograms,
            train_loss=loss,
            personal=loss,
            update_bits=bits,
            subgroups=subgroups,
            secure=aggregation == "secure",
        )
        for metrics in policy.metrics
        if metrics in mechanism.metrics
        for histograms in ([False, True] if "full" in policy.closing else [False])
        for loss in ([False, True] if open_losses else [False])
        for bits in (32, 8)
        for subgroups in (range(2) if policy.subgroup_columns else range(1))
        for aggregation in policy.aggregations
        if aggregation == "plain" or mechanism.secure_sum
    ]
