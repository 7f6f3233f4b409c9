"""T6: every message that leaves a client, as fields and as bytes, against what may leave."""

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np

from client.training.trainer import Trainer
from common.errors import ClientFailure
from common.messages.fields import Releases
from simulations.harness.client_harness import ClientHarness, Observation
from simulations.privacy_tests.check import Check

# Said once more, apart from the list that the code goes by: it must not grow unseen.
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
_SECRET = "patient-4711-left-ward"  # noqa: S105 -- planted, to see whether it gets out
_KINDS = ("query", "train", "evaluate", "query.close")
_SHORTEST = 16


def release_surface(harness: ClientHarness) -> Iterator[Check]:
    """T6 for one configuration, under any mechanism.

    Guarantee of what passes: replies hold the fields of the list above and no other; no stretch of an image, a
    feature or a digest is among their bytes; a failure is a code without words; nothing in a message, and no seed of
    the run, repeats private noise.
    """
    run = "0" * 32
    seen = {kind: harness.ask(kind, harness.images, run=run, ledger="surface") for kind in _KINDS}
    for kind, one in seen.items():
        yield _fields(harness, kind, one)
        yield _no_image(harness, kind, one)
    yield _words(harness)
    yield from _strange_settings(harness)
    if harness.config.is_local_dp:
        yield from _fresh(harness)


def may_leave(harness: ClientHarness, kind: str) -> dict[str, set[str]]:
    """Record -> fields of a reply, by this layer's own list; empty if nothing may leave."""
    mechanism, metrics = harness.config.privacy.mechanism, harness.config.metrics
    head = _HEAD if mechanism == "dp-sgd" else {}
    if kind == "query":
        return _DECLARED | head
    if kind == "query.close":
        return dict(head)
    counts = {"num-examples"} | _COUNTS.get((mechanism, metrics, kind), set())
    if kind == "evaluate":
        return {} if metrics == "none" else {"metrics": counts} | head
    return {"arrays": set(harness.start), "metrics": counts} | head


def _fields(harness: ClientHarness, kind: str, seen: Observation) -> Check:
    allowed = may_leave(harness, kind)
    found = {name: set(record) for name, record in seen.reply.items()}
    declared = {} if kind == "evaluate" and not allowed else Releases.of(harness.config).fields(kind)
    names = {name: set(harness.start if keys is None else keys) for name, keys in declared.items()}
    return Check(
        f"a reply to {kind!r} holds what may leave", found == allowed == names, f"{_flat(found)} {seen.failure}"
    )


def _flat(found: dict[str, set[str]]) -> str:
    return ", ".join(f"{name}.{key}" for name, keys in sorted(found.items()) for key in sorted(keys))


def _no_image(harness: ClientHarness, kind: str, seen: Observation) -> Check:
    """No stretch of what is secret is among the bytes: rows, labels in order, digests."""
    rows = harness.images.shard(harness.config, harness.classes, num_units=harness.num_units)
    secrets = [bytes(row.tobytes()[:_SHORTEST]) for row in harness.images.inputs]
    for digests in (rows.train_digests, rows.train_holdings.files, rows.test_holdings.pixels):
        secrets += [digest.tobytes() for digest in digests]
        secrets += [digest.tobytes().hex().encode() for digest in digests]
    secrets = [secret for secret in secrets if len(set(secret)) > 1]  # a run of zeros is nobody's
    found = sum(secret in seen.leaving for secret in secrets)
    return Check(f"a reply to {kind!r} holds no stretch of an image", found == 0, f"{found} of {len(secrets)}")


def _words(harness: ClientHarness) -> Check:
    """An exception that names a patient comes to a bare code."""
    with patch.object(Trainer, "train", side_effect=ValueError(_SECRET)):
        seen = harness.ask("train", harness.images)
    closed = seen.failure in ClientFailure.__members__
    return Check("a failure is a code without words", closed and _SECRET.encode() not in seen.leaving, seen.failure)


def _strange_settings(harness: ClientHarness) -> Iterator[Check]:
    for name in ("seed", "noise-seed", "noise-multiplier", "max-grad-norm", "batch-size"):
        seen = harness.ask("train", harness.images, settings={name: 1})
        yield Check(f"a message that brings {name!r} is refused", seen.failure == "MESSAGE", seen.failure or "answered")


def _fresh(harness: ClientHarness) -> Iterator[Check]:
    """The same question under the same seed twice: no tensor may come back as it was."""
    one, two = (harness.ask("train", harness.images).arrays for _ in range(2))
    same = [name for name in one if np.array_equal(one[name], two[name])]
    yield Check("no tensor repeats under the same seed", not same, ", ".join(same))
    start = [name for name in one if np.array_equal(one[name], harness.start[name])]
    yield Check("no tensor comes back as it was sent", not start, ", ".join(start))
