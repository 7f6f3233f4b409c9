"""The vectors of secure sums against sums of what went into them."""

from dataclasses import replace

import numpy as np
import pytest
from flwr.app import RecordDict

from common.config.loading import defaults, parse, resolved
from common.config.secure_sum import SecureSum
from common.errors import FederationError, NotFiniteError
from common.ledger.identity_key import simulated_roster
from common.messages.codec import Evaluation
from common.messages.fields import Releases
from common.messages.secure_messages import context_of
from common.messages.secure_words import LONGEST_UPDATE, SecureWords
from common.metrics import Counts, NoisedCounts
from common.privacy.mechanisms.registry import MECHANISMS
from common.score_histograms import score_histograms

SHAPES = {"weight": (3, 4), "bias": (3,)}
SIZES = {"a": 10, "b": 25, "c": 1, "d": 7}
OPEN = SecureWords(SHAPES, 3, Releases(secure=True, histograms=True, counted_every=2), SIZES, 4)


def update_of(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: (scale * rng.standard_normal(shape)).astype(np.float32) for name, shape in SHAPES.items()}


def counts_of(seed: int) -> Counts:
    rng = np.random.default_rng(seed)
    return Counts(rng.integers(0, 50, (3, 3)), float(rng.random() * 40))


@pytest.mark.parametrize("survivors", ["abcd", "abd", "ac"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 100.0])
def test_a_sum_is_the_average_by_declared_sizes_within_the_grid(survivors: str, scale: float) -> None:
    updates = {name: update_of(place, scale) for place, name in enumerate(SIZES)}
    counted = {name: counts_of(place) for place, name in enumerate(SIZES)}

    vectors = [
        np.concatenate(
            [
                OPEN.encode_update(updates[name], name),
                OPEN.encode_counts(Evaluation(counted[name]), server_round=2, name=name),
            ]
        )
        for name in survivors
    ]
    total = OPEN.ring.reduced(np.sum(vectors, axis=0, dtype=np.uint64))

    weights = sum(SIZES[name] for name in survivors)
    # Each client's value is cut off at a step, and the sum is divided by the survivors' share.
    bound = len(survivors) * OPEN.point.step * sum(SIZES.values()) / weights
    for tensor, average in OPEN.average_update(total, survivors).items():
        expected = sum(SIZES[name] * updates[name][tensor].astype(np.float64) for name in survivors) / weights
        assert np.abs(average - expected).max() <= bound
    summed = OPEN.summed_counts(total, len(survivors), server_round=2)
    assert summed is not None
    assert summed.counts is not None
    assert np.array_equal(summed.counts.confusion, sum(counted[name].confusion for name in survivors))
    assert summed.counts.loss_sum == pytest.approx(sum(counted[name].loss_sum for name in survivors), abs=1e-6)
    assert len(total) == OPEN.lengths(3)[1]


def test_a_step_is_so_fine_that_float32_hardly_notices() -> None:
    assert OPEN.point.step <= 2.0**-34


def test_rounds_that_are_not_counted_hold_the_update_alone_and_the_closing_one_the_counts() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.standard_normal((30, 3)), rng.integers(0, 3, 30)
    histograms = score_histograms(logits, labels)
    confusion = np.zeros((3, 3), dtype=np.int64)
    np.add.at(confusion, (labels, logits.argmax(axis=1)), 1)

    closing = OPEN.encode_counts(Evaluation(Counts(confusion, 1.5), histograms=histograms), server_round=None, name="a")
    found = OPEN.summed_counts(closing, 1, server_round=None)

    assert OPEN.lengths(3) == (15, 15 + 10, 15, len(closing))
    assert not len(OPEN.encode_counts(None, server_round=1, name="a"))
    assert OPEN.summed_counts(OPEN.encode_update(update_of(0), "a"), 1, server_round=1) is None
    assert found is not None
    assert found.histograms is not None
    assert np.array_equal(found.histograms.scores, histograms.scores)
    assert np.array_equal(found.histograms.confidence, histograms.confidence)


def test_noised_counts_keep_their_signs() -> None:
    noised = replace(OPEN, releases=Releases(MECHANISMS["dp-sgd"], "private", secure=True))
    ring = noised.ring
    pairs = [np.array([-7, 3]), np.array([2, -40])]

    vectors = [noised.encode_counts(Evaluation(noised=NoisedCounts(pair)), server_round=1, name="a") for pair in pairs]
    found = noised.summed_counts(
        np.concatenate([ring.zeros(15), ring.reduced(vectors[0] + vectors[1])]),
        2,
        server_round=1,
    )

    assert found is not None
    assert found.noised is not None
    assert (found.noised.cells.tolist(), found.noised.num_clients) == ([-5, -37], 2)


@pytest.mark.parametrize("sizes", [{"a": 1}, {"a": 1, "b": 1, "c": 1}, {"a": 1000, "b": 1, "c": 999}, SIZES])
def test_updates_and_losses_at_their_bounds_do_not_wrap(sizes: dict[str, int]) -> None:
    words = replace(OPEN, shapes={"weight": (1,)}, sizes=sizes, num_clients=len(sizes))
    worst = Evaluation(Counts(np.zeros((3, 3), dtype=np.int64), 1e300))

    for sign in (1, -1):
        update = {"weight": np.array([sign * LONGEST_UPDATE])}
        parts = [
            np.concatenate([words.encode_update(update, name), words.encode_counts(worst, server_round=2, name=name)])
            for name in sizes
        ]
        total = words.ring.reduced(np.sum(parts, axis=0, dtype=np.uint64))

        assert words.average_update(total, sizes)["weight"] == pytest.approx(sign * LONGEST_UPDATE, rel=1e-6)
        summed = words.summed_counts(total, len(sizes), server_round=2)
        assert summed is not None
        assert summed.counts is not None
        assert summed.counts.loss_sum == pytest.approx(2**16 * sum(sizes.values()), rel=1e-6)


def test_counts_whose_sum_could_wrap_are_refused() -> None:
    most = (2 ** (OPEN.ring.word_bits - 1) - 1) // OPEN.num_clients
    confusion = np.full((3, 3), most)
    words = OPEN.encode_counts(Evaluation(Counts(confusion, 0.0)), server_round=2, name="a")

    total = OPEN.ring.reduced(np.concatenate([OPEN.ring.zeros(15), words * np.uint64(OPEN.num_clients)]))
    summed = OPEN.summed_counts(total, 4, server_round=2)
    assert summed is not None
    assert summed.counts is not None
    assert (summed.counts.confusion == most * OPEN.num_clients).all()
    with pytest.raises(FederationError, match="another number than agreed"):
        OPEN.encode_counts(Evaluation(Counts(confusion + 1, 0.0)), server_round=2, name="a")


@pytest.mark.parametrize("value", [np.nan, np.inf, 40 * LONGEST_UPDATE])
def test_an_update_that_does_not_fit_is_refused_and_never_shortened(value: float) -> None:
    spoilt = update_of(0)
    spoilt["bias"][1] = value

    with pytest.raises(NotFiniteError, match="training diverged"):
        OPEN.encode_update(spoilt, "b")


def test_counts_of_another_round_are_refused() -> None:
    with pytest.raises(FederationError, match="not those of the round"):
        OPEN.encode_counts(Evaluation(counts_of(0)), server_round=1, name="a")
    with pytest.raises(FederationError, match="not those of the round"):
        OPEN.encode_counts(None, server_round=2, name="a")


def test_a_sum_that_no_counts_can_have_is_refused() -> None:
    words = OPEN.encode_counts(Evaluation(counts_of(0)), server_round=2, name="a")
    words[0] = np.uint64(2**OPEN.ring.word_bits - 1000)

    with pytest.raises(FederationError, match="not a confusion matrix"):
        OPEN.summed_counts(np.concatenate([OPEN.encode_update(update_of(0), "a"), words]), 2, server_round=2)


@pytest.mark.parametrize("changed", ["sizes", "classes", "tensors", "metrics", "constants", "run", "attempt"])
def test_terms_name_all_that_decides_the_encoding(changed: str) -> None:
    constants, roster = SecureSum.of(4, 1), simulated_roster(0, SIZES)

    def session(**more: object) -> bytes:
        # A copy, because words keep their digest.
        given = {"words": replace(OPEN), "constants": constants, "run": "r", "attempt": 0} | more
        words: SecureWords = given.pop("words")  # type: ignore[assignment]
        return words.terms(given.pop("constants"), roster, num_rounds=3, **given).session  # type: ignore[arg-type]

    other: dict[str, dict[str, object]] = {
        "sizes": {"words": replace(OPEN, sizes=SIZES | {"a": 11})},
        "classes": {"words": replace(OPEN, num_classes=4)},
        "tensors": {"words": replace(OPEN, shapes={"weight": (4, 3), "bias": (3,)})},
        "metrics": {"words": replace(OPEN, releases=Releases(metrics="none", secure=True))},
        "constants": {"constants": SecureSum.of(4, 1, 3)},
        "run": {"run": "s"},
        "attempt": {"attempt": 1},
    }
    assert session() == session()
    assert session(**other[changed]) != session()


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("training.learning-rate", 1e-9, False),
        ("training.local-epochs", 0, False),
        ("seed", 8, False),
        ("model.weights", "random", False),
        ("model.weights", "/other/place.npz", True),
        ("data.path", "/my/images", True),
        ("data.validation", "drop", True),
        ("output-dir", "elsewhere", True),
        ("system.device", "cuda", True),
    ],
)
def test_masks_follow_from_all_settings_but_those_of_one_process(key: str, value: str | float, same: bool) -> None:
    settings = resolved(parse(defaults())) | {"model.weights": "/place.npz"}

    found = context_of(RecordDict(), settings | {key: value})

    assert (found == context_of(RecordDict(), settings)) == same
