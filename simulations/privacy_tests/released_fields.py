"""Privacy test T6, of all fields and bytes that leave a client."""

from collections.abc import Iterator

import numpy as np

from common.errors import ClientFailure
from common.messages.fields import Releases
from simulations.harness.client_harness import ClientHarness, Observation
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.fault_injection import failing

# A second copy of the allow-list. The client's own list must not grow unnoticed.
_HEAD = {"ledger": {"ledger-id", "seq", "head", "public-key", "signature"}}
_DECLARED = {"client": {"name", "num-units", "classes", "input-shape", "backbone-hash", "bundle"}}
_COUNTS = {
    ("dp-sgd", "private", "train"): {"noised-correct", "noised-wrong"},
    ("dp-sgd", "private", "evaluate"): {"noised-confusion"},
    ("dp-sgd", "exact", "train"): {"confusion"},
    ("dp-sgd", "exact", "evaluate"): {"confusion"},
    ("client-dp", "exact", "train"): {"confusion"},
    ("client-dp", "exact", "evaluate"): {"confusion"},
    ("none", "exact", "train"): {"confusion", "loss-sum"},
    ("none", "exact", "evaluate"): {"confusion", "loss-sum"},
}
# What `privacy.closing='full'` adds to the closing counts.
_HISTOGRAMS = {
    "private": {"noised-score-counts", "noised-confidence-counts"},
    "exact": {"score-counts", "confidence-counts"},
}
# What `data.subgroups` adds to them.
_SUBGROUPS = {"private": {"noised-subgroup-counts"}, "exact": {"subgroup-counts"}}
# What leaves in place of a model where the head is made from sums.
_SUMS = {"second-moments": {"second-moment", "class-sums"}, "class-means": {"class-sums", "class-counts"}}
_SECRET = "patient-4711-left-ward"  # noqa: S105 -- planted to see whether it leaves
_KINDS = ("query", "train", "evaluate", "query.close")
_SHORTEST = 16


def release_surface(harness: ClientHarness) -> Iterator[Check]:
    """Check every message that leaves a client, under any mechanism (T6).

    Guarantee of what passes: replies hold the fields of the list above and no others. Their bytes hold no part of an
    image, a feature or a digest. A failure is a code without text. No message and no seed of the run repeats private
    noise.
    """
    run = "0" * 32
    for kind in _KINDS:
        seen = harness.ask(kind, harness.images, run=run, ledger="surface")
        yield _fields(harness, kind, seen)
        yield _no_image(harness, kind, seen)
    yield _failure_text(harness)
    yield from _unknown_settings(harness)
    if harness.config.is_local_dp:
        yield from _fresh(harness)


def may_leave(harness: ClientHarness, kind: str) -> dict[str, set[str]]:
    """Return the fields of each record that may be in a reply.

    Args:
        harness: The configuration.
        kind: `query`, `query.close`, `train` or `evaluate`.

    Returns:
        Record -> fields, by this module's own list; empty if nothing may leave.
    """
    mechanism, metrics = harness.config.privacy.mechanism, harness.config.metrics
    head = _HEAD if mechanism in ("dp-sgd", "dp-statistics") else {}
    if kind == "query":
        return _DECLARED | head
    if kind == "query.close":
        return dict(head)
    # Sums leave in place of a model, and counts as they always do.
    counted = "dp-sgd" if head else mechanism
    counts = {"num-examples"} | _COUNTS.get((counted, metrics, kind), set())
    if kind == "evaluate" and harness.config.privacy.closing == "full":
        counts |= _HISTOGRAMS.get(metrics, set())
    if kind == "evaluate" and harness.config.data.subgroups:
        counts |= _SUBGROUPS.get(metrics, set())
    if kind == "evaluate":
        return {} if metrics == "none" else {"metrics": counts} | head
    arrays = {"codes", "scales"} if harness.config.training.update_bits == 8 else set(harness.start)
    if harness.config.takes_statistics:
        arrays = _SUMS[harness.config.training.statistics]
    return {"arrays": arrays, "metrics": counts} | head


def _fields(harness: ClientHarness, kind: str, seen: Observation) -> Check:
    allowed = may_leave(harness, kind)
    fields = {name: set(record) for name, record in seen.reply.items()}
    declared = {} if kind == "evaluate" and not allowed else Releases.of(harness.config).fields(kind)
    names = {name: set(harness.released if keys is None else keys) for name, keys in declared.items()}
    listed = ", ".join(f"{name}.{key}" for name, keys in sorted(fields.items()) for key in sorted(keys))
    return Check(f"a reply to {kind!r} holds what may leave", fields == allowed == names, f"{listed} {seen.failure}")


def _no_image(harness: ClientHarness, kind: str, seen: Observation) -> Check:
    """Check that no part of an input or a digest is among the bytes."""
    rows = harness.session(harness.images).rows
    secrets = [bytes(row.tobytes()[:_SHORTEST]) for row in harness.images.inputs]
    for digests in (rows.train_digests, rows.train_holdings.files, rows.test_holdings.pixels):
        secrets += [digest.tobytes() for digest in digests]
        secrets += [digest.tobytes().hex().encode() for digest in digests]
    # Equal bytes, such as those of a black image, occur in any message.
    secrets = [secret for secret in secrets if len(set(secret)) > 1]
    leaked = sum(secret in seen.leaving for secret in secrets)
    return Check(f"a reply to {kind!r} holds no stretch of an image", leaked == 0, f"{leaked} of {len(secrets)}")


def _failure_text(harness: ClientHarness) -> Check:
    """Check that the text of an exception does not leave.

    It may name a patient.
    """
    client = failing(harness.session(harness.images), ValueError(_SECRET))
    seen = harness.observe(client, "train", harness.content("train"))
    closed = seen.failure in ClientFailure.__members__
    return Check("a failure is a code without words", closed and _SECRET.encode() not in seen.leaving, seen.failure)


def _unknown_settings(harness: ClientHarness) -> Iterator[Check]:
    for name in ("seed", "noise-seed", "noise-multiplier", "max-grad-norm", "batch-size"):
        seen = harness.ask("train", harness.images, settings={name: 1})
        yield Check(f"a message that brings {name!r} is refused", seen.failure == "MESSAGE", seen.failure or "answered")


def _fresh(harness: ClientHarness) -> Iterator[Check]:
    """Check that no tensor is the same in two answers to one question."""
    first, second = (harness.ask("train", harness.images).arrays for _ in range(2))
    same = [name for name in first if np.array_equal(first[name], second[name])]
    yield Check("no tensor repeats under the same seed", not same, ", ".join(same))
    start = [name for name in first if name in harness.start and np.array_equal(first[name], harness.start[name])]
    yield Check("no tensor comes back as it was sent", not start, ", ".join(start))
