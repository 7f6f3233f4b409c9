"""The head of summed features under a secure sum: the same head, the noise in shares, and the clip of each unit.

Drives `common.statistics.fixed_sums`, `common.messages.secure_words`, `client.secure.exchange`,
`server.rounds.secure_rounds`.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy import stats

import bract
import client.training.trainer as trainer_module
from client.session import ClientSession
from client.training.statistics import clipped_contribution
from common.arrays import Arrays
from common.config.loading import defaults, override, parse
from common.config.schema import RunConfig
from common.config.secure_sum import SecureSum
from common.errors import ConfigError, NotFiniteError, PrivacyError
from common.ledger.identity_key import simulated_roster
from common.messages.fields import Releases
from common.messages.secure_words import SecureWords
from common.models.linear_head import HEAD_WEIGHT
from common.privacy.noise import SecureStream
from common.statistics.sums import StatisticsKind, statistic_shapes, statistics_of, symmetric_of, to_contribution
from server.aggregation import statistics_head as head_of
from server.audit.audit import audit_run
from server.state.checkpoint import load_checkpoint
from tests.simulations.test_noise_in_shares import Silent, check_statement
from tests.support.inference.stored_models import shaded_images
from tests.support.secagg.ring_sums import ring_sum

CLIENTS, HONEST, NOISE, CLASSES, FEATURES = 5, 3, 40.0, 3, 12
SETTINGS: dict[str, Any] = {
    "num-clients": CLIENTS,
    "round-retries": 0,
    "data.image-size": 32,
    "data.partitioner": "iid",
    "model.backbone": "timm:test_resnet",
    "model.weights": "random",
    "privacy.aggregation": "secure",
    "privacy.secure-honest": HONEST,
}
EXACT = {"privacy.mechanism": "none", "training.method": "statistics"}
NOISED = {
    "privacy.mechanism": "dp-statistics",
    "privacy.noise-multiplier": NOISE,
    "privacy.target-epsilon": "",
    "privacy.counts-noise": 30.0,
    "privacy.closing-noise": 30.0,
}
KINDS: tuple[StatisticsKind, ...] = ("second-moments", "class-means")
RNG = np.random.default_rng(7)
# Most are longer than 1, and the last unit has three images that add up.
ROWS = (RNG.normal(size=(12, FEATURES)) / 2 + 0.2).astype(np.float32)
LABELS = np.array([0, 1, 2] * 3 + [1, 1, 1])
UNITS = np.array([*range(9), 9, 9, 9])


@pytest.fixture(name="images", scope="module")
def images_fixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shaded_images(tmp_path_factory.mktemp("images") / "pets", per_class=25)


def config_of(**more: Any) -> RunConfig:
    return parse(override(defaults(), SETTINGS | NOISED | {key.replace("__", "."): more[key] for key in more}))


def words_of(config: RunConfig, units: int = 10) -> SecureWords:
    sizes = {f"ward-{number}": units for number in range(CLIENTS)}
    plan = config.plan(units) if config.is_local_dp else None
    return SecureWords({HEAD_WEIGHT: (CLASSES, FEATURES)}, CLASSES, Releases.of(config), sizes, CLIENTS, plan)


def test_the_head_is_that_of_the_plain_sums_of_the_clients_in_the_sum(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of five is lost before it has sent anything."""
    real = ClientSession.train

    def train(session: ClientSession, *args: Any, **more: Any) -> Arrays:
        if session.name == "00003":
            raise RuntimeError("lost")
        return real(session, *args, **more)

    monkeypatch.setattr(ClientSession, "train", train)
    heads, accuracies = [], []
    for name in ("secure", "plain"):
        more = EXACT | {"data.source": str(images), "privacy.aggregation": name}
        bract.simulate(SETTINGS | more, out=tmp_path / name, quiet=True)
        last = load_checkpoint(tmp_path / name)
        assert last is not None
        heads.append(last.model[HEAD_WEIGHT])
        accuracies.append(json.loads((tmp_path / name / "summary.json").read_text())["accuracy"])

    # Steps of less than 2^-49, over a ridge penalty of less than a thousandth, are far below float32.
    np.testing.assert_allclose(heads[0], heads[1], atol=2.0**-22 * np.abs(heads[1]).max())
    assert accuracies[0] == accuracies[1]
    stated = json.loads((tmp_path / "secure" / "privacy.json").read_text())
    assert stated["statement"].startswith("NOT PRIVATE: exact sums")
    assert audit_run(tmp_path / "secure").remarks.doubts == []


def test_the_opened_sum_has_the_noise_of_all_shares(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T2 on a whole run. Shares for n and not t would be 0.77 of it, a client without noise 0.89."""
    opened, real, declared, solve = list[np.ndarray](), SecureWords.summed_statistics, list[float](), head_of.solve_head

    def summed(words: SecureWords, vector: np.ndarray) -> Arrays:
        sums = real(words, vector)
        opened.append(to_contribution("second-moments", sums))
        return sums

    def nothing(*args: Any, **more: Any) -> np.ndarray:
        return 0.0 * clipped_contribution(*args, **more)

    monkeypatch.setattr(SecureWords, "summed_statistics", summed)

    def solved(*args: Any, noise_stddev: float, **more: Any) -> Arrays:
        declared.append(noise_stddev)
        return solve(*args, noise_stddev=noise_stddev, **more)

    monkeypatch.setattr(head_of, "solve_head", solved)
    monkeypatch.setattr(trainer_module, "clipped_contribution", nothing)
    bract.simulate(SETTINGS | NOISED | {"data.source": str(images)}, out=tmp_path / "run", quiet=True)

    (noise,) = opened
    assert declared == pytest.approx([NOISE * (1 + 1e-4) * math.sqrt(CLIENTS / HONEST)])
    energy = float((noise**2).sum()) / declared[0] ** 2
    assert 2 * min(stats.chi2.sf(energy, noise.size), stats.chi2.cdf(energy, noise.size)) > 1e-7
    check_statement(tmp_path / "run")


def released(words: SecureWords, rows: int, units: np.ndarray = UNITS) -> Arrays:
    """What one client's words alone would open as, with the noise held still."""
    kind = words.releases.statistics
    assert kind is not None
    assert words.plan is not None
    total = clipped_contribution(kind, ROWS[:rows], LABELS[:rows], CLASSES, words.plan, units=units[:rows])
    return words.summed_statistics(words.encode_sum(total, "ward-0", Silent()))


def whole_distance(kind: StatisticsKind, ours: Arrays, theirs: Arrays) -> float:
    """The distance of whole symmetric matrices, class sums and counts, each as heavy as the docs say."""
    moved = {name: ours[name] - theirs[name] for name in ours}
    if kind == "class-means":
        return float(np.linalg.norm([*moved["class-sums"].ravel(), *moved["class-counts"] / 4])) / math.sqrt(17 / 16)
    both = [*symmetric_of(moved["second-moment"], FEATURES).ravel(), *moved["class-sums"].ravel()]
    return float(np.linalg.norm(both)) / math.sqrt(2)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("unit", ["image", "group"])
def test_one_unit_moves_the_opened_sum_by_at_most_the_bound(kind: StatisticsKind, unit: str) -> None:
    """T1 after rounding to the words of a secure sum."""
    words = words_of(config_of(training__statistics=kind, privacy__unit=unit))
    units = UNITS if unit == "group" else np.arange(12)

    moved = whole_distance(kind, *(released(words, rows, units) for rows in (12, 9 if unit == "group" else 11)))

    # The unit's own sum is longer than the bound, so it is clipped to it.
    assert 0.999 < moved <= 1 + 1e-4


def as_docs_say(sums: Arrays) -> np.ndarray:
    """The vector of docs/privacy.md, in which values above the diagonal have the root of 2."""
    rows, columns = np.triu_indices(FEATURES)
    moment = np.where(rows == columns, 1.0, math.sqrt(2)) * sums["second-moment"]
    return np.concatenate([moment, sums["class-sums"].ravel()]) / math.sqrt(2)


def test_noise_differs_between_clients_and_is_that_of_one_share() -> None:
    """T2 and T3 for one client's words."""
    words = words_of(config_of())
    size = sum(math.prod(shape) for shape in statistic_shapes("second-moments", CLASSES, FEATURES).values())

    drawn = [
        as_docs_say(words.summed_statistics(words.encode_sum(np.zeros(size), name, SecureStream())))
        for name in words.sizes
        for _ in range(20)
    ]

    noise = np.stack(drawn)
    energy = float((noise**2).sum()) / (NOISE * (1 + 1e-4)) ** 2 * HONEST
    assert 2 * min(stats.chi2.sf(energy, noise.size), stats.chi2.cdf(energy, noise.size)) > 1e-7
    assert np.abs(np.corrcoef(noise) - np.eye(len(noise))).max() < 6 / math.sqrt(size)


@pytest.mark.parametrize("kind", KINDS)
def test_words_add_up_to_the_sums_of_all_clients(kind: StatisticsKind) -> None:
    config = parse(override(defaults(), SETTINGS | EXACT | {"training.statistics": kind}))
    words = words_of(config, units=12)
    unit = ROWS / np.float32(np.linalg.norm(ROWS, axis=1).max())
    sums = statistics_of(kind, unit, LABELS, CLASSES)

    opened = words.summed_statistics(
        ring_sum([words.encode_statistics(sums, name) for name in words.sizes], words.ring.word_bits)
    )

    assert list(opened) == list(sums)
    for name, values in opened.items():
        np.testing.assert_allclose(values, CLIENTS * sums[name], atol=CLIENTS * 8 * words.point.step)
    assert words.lengths(1)[0] >= sum(array.size for array in sums.values())


def test_exact_sums_leave_without_a_mechanism_only_and_whole() -> None:
    exact, noised = words_of(parse(override(defaults(), SETTINGS | EXACT))), words_of(config_of())
    sums = statistics_of("second-moments", ROWS, LABELS, CLASSES)

    with pytest.raises(PrivacyError, match="for runs without a mechanism only"):
        noised.encode_statistics(sums, "ward-0")
    with pytest.raises(PrivacyError, match="sums no features"):
        replace(exact, releases=Releases(secure=True)).encode_statistics(sums, "ward-0")
    with pytest.raises(PrivacyError, match="with noise in shares only"):
        exact.encode_sum(to_contribution("second-moments", sums), "ward-0", SecureStream())
    for factor in (np.nan, 1e3):
        with pytest.raises(NotFiniteError, match="not finite, or of far more images"):
            exact.encode_statistics({name: factor * array for name, array in sums.items()}, "ward-0")


def test_a_trainer_never_makes_a_reply_of_its_own_from_noise_in_shares() -> None:
    config = config_of()
    trainer = trainer_module.Trainer(config, (FEATURES,), ("a", "b", "c"))

    shard: Any = SimpleNamespace(train_inputs=ROWS, train_labels=LABELS, train_units=UNITS)
    with pytest.raises(PrivacyError, match=r"use privacy\.aggregation=plain here"):
        trainer.train({}, shard, name="ward-0", server_round=1, plan=config.plan(10))


def test_keys_are_bound_to_what_is_summed_and_a_sum_that_does_not_fit_is_refused_before_them() -> None:
    def session(words: SecureWords) -> bytes:
        roster = simulated_roster(0, words.sizes)
        return words.terms(SecureSum.of(CLIENTS, 1), roster, run="r", attempt=0, num_rounds=1).session

    # Six classes and three features make vectors of equal length.
    equal = {HEAD_WEIGHT: (6, 3)}
    found = {session(replace(words_of(config_of(training__statistics=kind)), shapes=equal)) for kind in KINDS}
    exact = [parse(override(defaults(), SETTINGS | EXACT | {"training.statistics": kind})) for kind in KINDS]
    found |= {session(replace(words_of(config), shapes=equal)) for config in exact}

    assert len(found) == 4
    for words in (words_of(config_of()), words_of(exact[0])):
        with pytest.raises(ConfigError, match=r"raise the noise|take fewer clients"):
            session(replace(words, sizes=dict.fromkeys(words.sizes, 10**14), num_clients=10**10))


def test_the_noise_is_charged_in_shares_and_once() -> None:
    plan = config_of().plan(10)

    assert (plan.noise_shares, plan.num_rounds, plan.steps_per_round, plan.sample_rate) == (HONEST, 1, 1, 1.0)
    assert {event.noise_shares for event in (*plan.training_events(), *plan.counts_events())} == {HONEST}
    assert plan.client_noise_stddev == pytest.approx(NOISE * (1 + 1e-4) / math.sqrt(HONEST))
    assert config_of(privacy__aggregation="plain").plan(10).noise_shares == 0
