"""A client's noised sums: one release, clipped by unit, with noise that fits the whole matrix."""

from dataclasses import replace

import numpy as np
import pytest

from client.training.dp_sgd import PrivateStreams
from client.training.statistics import private_statistics
from common.arrays import Arrays
from common.errors import PrivacyError
from common.privacy.noise import SecureStream
from common.privacy.plan import PrivacyPlan
from common.statistics.sums import StatisticsKind, statistics_of
from tests.support.clients.networks import repeating

pytestmark = pytest.mark.numerical
RNG = np.random.default_rng(5)
FEATURES = RNG.normal(size=(12, 40)).astype(np.float32)
LABELS = np.arange(12) % 3
ALONE = np.arange(12)
PLAN = PrivacyPlan("dp-statistics", "image", 12, 1.0, 1, 1, 1.0, 2.0, 1e-5)
QUIET = replace(PLAN, noise_multiplier=1e-12)


def released(
    rows: int = 12, *, plan: PrivacyPlan = PLAN, units: np.ndarray = ALONE, kind: StatisticsKind = "second-moments"
) -> Arrays:
    streams = repeating()
    return private_statistics(kind, FEATURES[:rows], LABELS[:rows], 3, plan, streams, units=units[:rows])


def whole_distance(ours: Arrays, theirs: Arrays) -> float:
    """The distance of two releases as whole symmetric matrices and class sums, over the norm of one image."""
    moment = ours["second-moment"] - theirs["second-moment"]
    rows, columns = np.triu_indices(40)
    both = np.where(rows == columns, 1.0, 2.0)
    return float(np.sqrt(((both * moment**2).sum() + ((ours["class-sums"] - theirs["class-sums"]) ** 2).sum()) / 2))


@pytest.mark.parametrize("units", [ALONE, np.repeat([0, 1, 2], [4, 4, 4])], ids=["images", "groups"])
def test_one_unit_moves_a_release_by_at_most_the_bound(units: np.ndarray) -> None:
    last = int((units != units[-1]).sum())

    moved = whole_distance(released(units=units), released(last, units=units))

    # The features are far longer than 1, so the unit is clipped and its part is as long as the bound.
    assert 0.999 < moved <= PLAN.max_grad_norm * (1 + 1e-4)


def test_a_release_without_noise_is_the_clipped_sum() -> None:
    unit = FEATURES / np.float32(2 * np.linalg.norm(FEATURES, axis=1)).reshape(-1, 1)

    found = private_statistics("second-moments", unit, LABELS, 3, QUIET, repeating(), units=ALONE)

    # Half as long as the bound, so nothing is clipped.
    for name, expected in statistics_of("second-moments", unit, LABELS, 3).items():
        np.testing.assert_allclose(found[name], expected, atol=1e-4)


def test_values_off_the_diagonal_have_the_noise_of_half_their_weight() -> None:
    streams, none = PrivateStreams(SecureStream(), SecureStream()), np.zeros(0, dtype=np.int64)
    noise = [private_statistics("second-moments", FEATURES[:0], none, 3, PLAN, streams, units=none) for _ in range(20)]
    rows, columns = np.triu_indices(40)
    moment = np.array([each["second-moment"] for each in noise])

    spread = [part.std() for part in (moment[:, rows == columns], moment[:, rows != columns])]
    sums = np.array([each["class-sums"] for each in noise]).std()

    # One image of length 1 has the joint norm sqrt(2) before scaling: 2 x sqrt(2) on the diagonal and in class sums.
    np.testing.assert_allclose(spread, [2 * np.sqrt(2), 2.0], rtol=0.1)
    assert sums == pytest.approx(2 * np.sqrt(2), rel=0.1)


@pytest.mark.parametrize("more", [{"num_rounds": 2}, {"steps_per_round": 2}, {"sample_rate": 0.5}])
def test_a_plan_of_more_than_one_release_is_refused(more: dict[str, float]) -> None:
    with pytest.raises(PrivacyError, match="released once"):
        released(plan=replace(PLAN, **more))  # type: ignore[arg-type]
