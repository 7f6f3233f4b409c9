"""T6: every message that leaves a client, as fields and as bytes, against what may leave."""

from collections.abc import Iterator
from unittest.mock import patch

import numpy as np

from client.training.trainer import Learner
from common.errors import ClientFailure
from common.messages.fields import Releases
from simulations.harness.client_harness import Bench, Seen
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


def release_surface(bench: Bench) -> Iterator[Check]:
    """T6 for one configuration, under any mechanism.

    Guarantee of what passes: replies hold the fields of the list above and no other; no stretch of an image, a
    feature or a digest is among their bytes; a failure is a code without words; nothing in a message, and no seed of
    the run, repeats private noise.
    """
    run = "0" * 32
    seen = {kind: bench.ask(kind, bench.images, run=run, ledger="surface") for kind in _KINDS}
    for kind, one in seen.items():
        yield _fields(bench, kind, one)
        yield _no_image(bench, kind, one)
    yield _words(bench)
    yield from _strange_settings(bench)
    if bench.config.noises_gradients:
        yield from _fresh(bench)


def may_leave(bench: Bench, kind: str) -> dict[str, set[str]]:
    """Record -> fields of a reply, by this layer's own list; empty if nothing may leave."""
    mechanism, metrics = bench.config.privacy.mechanism, bench.config.metrics
    head = _HEAD if mechanism == "dp-sgd" else {}
    if kind == "query":
        return _DECLARED | head
    if kind == "query.close":
        return dict(head)
    counts = {"num-examples"} | _COUNTS.get((mechanism, metrics, kind), set())
    if kind == "evaluate":
        return {} if metrics == "none" else {"metrics": counts} | head
    return {"arrays": set(bench.start), "metrics": counts} | head


def _fields(bench: Bench, kind: str, seen: Seen) -> Check:
    allowed = may_leave(bench, kind)
    found = {name: set(record) for name, record in seen.reply.items()}
    declared = {} if kind == "evaluate" and not allowed else Releases.of(bench.config).fields(kind)
    names = {name: set(bench.start if keys is None else keys) for name, keys in declared.items()}
    return Check(
        f"a reply to {kind!r} holds what may leave", found == allowed == names, f"{_flat(found)} {seen.failure}"
    )


def _flat(found: dict[str, set[str]]) -> str:
    return ", ".join(f"{name}.{key}" for name, keys in sorted(found.items()) for key in sorted(keys))


def _no_image(bench: Bench, kind: str, seen: Seen) -> Check:
    """No stretch of what is secret is among the bytes: rows, labels in order, digests."""
    rows = bench.images.shard(bench.config, bench.classes, num_units=bench.num_units)
    secrets = [bytes(row.tobytes()[:_SHORTEST]) for row in bench.images.inputs]
    for digests in (rows.train_digests, rows.train_holdings.files, rows.test_holdings.pixels):
        secrets += [digest.tobytes() for digest in digests]
        secrets += [digest.tobytes().hex().encode() for digest in digests]
    secrets = [secret for secret in secrets if len(set(secret)) > 1]  # a run of zeros is nobody's
    found = sum(secret in seen.leaving for secret in secrets)
    return Check(f"a reply to {kind!r} holds no stretch of an image", found == 0, f"{found} of {len(secrets)}")


def _words(bench: Bench) -> Check:
    """An exception that names a patient comes to a bare code."""
    with patch.object(Learner, "train", side_effect=ValueError(_SECRET)):
        seen = bench.ask("train", bench.images)
    closed = seen.failure in ClientFailure.__members__
    return Check("a failure is a code without words", closed and _SECRET.encode() not in seen.leaving, seen.failure)


def _strange_settings(bench: Bench) -> Iterator[Check]:
    for name in ("seed", "noise-seed", "noise-multiplier", "max-grad-norm", "batch-size"):
        seen = bench.ask("train", bench.images, settings={name: 1})
        yield Check(f"a message that brings {name!r} is refused", seen.failure == "MESSAGE", seen.failure or "answered")


def _fresh(bench: Bench) -> Iterator[Check]:
    """The same question under the same seed twice: no tensor may come back as it was."""
    one, two = (bench.ask("train", bench.images).arrays for _ in range(2))
    same = [name for name in one if np.array_equal(one[name], two[name])]
    yield Check("no tensor repeats under the same seed", not same, ", ".join(same))
    start = [name for name in one if np.array_equal(one[name], bench.start[name])]
    yield Check("no tensor comes back as it was sent", not start, ", ".join(start))
