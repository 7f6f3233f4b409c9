"""Rooms of the data: units, splits, copies and digests that decide who is charged, and once."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from common import randomness
from common.data import client_dataset, scan
from common.data.partitioning import assignment, partitioners
from common.data.partitioning.partition import Partition
from common.errors import DataError
from common.messages.codec import Declaration
from common.privacy import plan
from common.privacy.mechanisms import contract
from common.privacy.plan import PrivacyPlan, round_up_rate
from server import late_joining
from server.rounds import cohorts
from tests.common import test_randomness as streams
from tests.common.data import test_scan as scans
from tests.common.data.partitioning import test_assignment as partitions
from tests.mutants.faults import planted
from tests.support.ledger.builders import PLAN

COUNT = 12
UNIT_OF = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])


def _rows(values: np.ndarray) -> np.ndarray:
    digests = np.zeros((COUNT, 32), dtype=np.uint8)
    digests[:, 0] = values
    return digests


def units_are_charged_and_vote_once() -> None:
    """Twelve images of six patients; images 4 and 5 are copies, 11 is bad, patients 2 to 5 have held-out images."""
    held_out = np.isin(np.arange(COUNT), [3, 6, 7, 8, 9, 10])
    usable = np.arange(COUNT) != 11
    pixels = np.arange(COUNT)
    pixels[5] = pixels[4]
    content = SimpleNamespace(digests=_rows(pixels), file_digests=_rows(100 + np.arange(COUNT)), usable=usable)
    content.earlier_digests = np.zeros((COUNT, 32), np.uint8)
    content.unit_digests, content.labels, content.num_train = _rows(200 + UNIT_OF), np.zeros(COUNT, np.int64), COUNT
    prepared = SimpleNamespace(scan=content, inputs=np.arange(COUNT))
    partition = Partition(np.zeros(COUNT, np.int32), held_out & usable, np.array([50]), np.array([20]), 0)

    part = client_dataset.shard(prepared, partition, 0, private=True, unit="group")  # type: ignore[arg-type]
    assert part.train_inputs.tolist() == [0, 1, 2, 4], "a copy is not trained on twice, a bad image not at all"
    assert part.num_units == 20, "the declared number of groups, never what was found"
    assert len(part.train_holdings.files) == 5, "the ledger hears of the copy"
    assert len(set(part.train_units.tolist())) == 3
    voters = part.test_inputs[part.evaluation_units]
    assert len(voters) == 3, "one vote a patient, and none of a patient that is trained on"
    assert 3 not in voters
    assert len(part.test_holdings.files) == 5, "but all their images are known to the ledger"
    by_image = client_dataset.shard(prepared, partition, 0, private=True, unit="image")  # type: ignore[arg-type]
    assert by_image.num_units == 50
    content.unit_digests = None
    with pytest.raises(DataError, match="a manifest with a column unit"):
        client_dataset.shard(prepared, partition, 0, private=True, unit="group")  # type: ignore[arg-type]


_UNITS, _SHARD = units_are_charged_and_vote_once, client_dataset.shard
planted(
    _UNITS,
    _SHARD,
    {
        "a copy that is trained on twice": (
            "_first_copies(scan.digests[train]) if private else",
            "np.arange(len(train)) if private else",
        ),
    },
)
planted(
    _UNITS,
    client_dataset._evaluation_rows,
    {
        "a patient that is trained on and votes": (
            "untrained = ~np.isin(units, trained_units)",
            "untrained = np.ones(len(units), dtype=bool)",
        ),
        "a patient that votes once an image": (
            "np.sort(candidates[first]), untrained",
            "np.sort(candidates), untrained",
        ),
    },
)
planted(
    _UNITS,
    _SHARD,
    {
        "a size that was counted": ("num_units=int(sizes[partition_id])", "num_units=len(rows)"),
        "a copy that the ledger does not know": (
            "_digests(scan, train, train_units)",
            "_digests(scan, rows, train_units[kept])",
        ),
        "an image that may vote and is not charged": (
            "_digests(scan, test[untrained], test_units[untrained])",
            "_digests(scan, test[chosen], test_units[chosen])",
        ),
        "groups that are counted as images": (
            'partition.num_groups if unit == "group" else partition.num_units',
            "partition.num_units",
        ),
        "a bad image that is trained on": (
            "own = own[scan.usable[own]]",
            "own = own[:]",
        ),
        "groups that nobody has named": ("has_groups=scan.unit_digests is not None", "has_groups=True"),
        "units that are images after all": ('scan.unit_digests if unit == "group" else None', "None"),
    },
)


def which_image_votes_follows_from_its_content() -> None:
    digests, units = _rows(np.arange(COUNT)), UNIT_OF
    order = np.random.default_rng(0).permutation(COUNT)
    chosen, _ = client_dataset._evaluation_rows(units, np.zeros(0), digests)
    moved, _ = client_dataset._evaluation_rows(units[order], np.zeros(0), digests[order])
    assert sorted(digests[chosen, 0]) == sorted(digests[order][moved, 0])


planted(
    which_image_votes_follows_from_its_content,
    client_dataset._evaluation_rows,
    {
        "a vote of the first file": (
            'np.argsort(keyed_uniform(_CHOICE_KEY, digests), kind="stable")',
            "np.arange(len(units))",
        ),
    },
)


def a_split_follows_from_the_key_and_the_unit() -> None:
    digests = np.random.default_rng(0).integers(256, size=(400, 32), dtype=np.uint8)
    one, other = (partitioners.hold_out(digests, fraction=0.5, key=key) for key in (b"one", b"other"))
    assert 100 < (one != other).sum() < 300
    assert np.array_equal(partitioners.hold_out(digests[::-1], fraction=0.5, key=b"one"), one[::-1])
    fewer = partitioners.hold_out(digests, fraction=0.25, key=b"one")
    assert not (fewer & ~one).any()
    tail = digests.copy()
    tail[:, 31] ^= 1
    assert (partitioners.hold_out(tail, fraction=0.5, key=b"one") != one).any(), "the whole digest counts"


_SPLIT = a_split_follows_from_the_key_and_the_unit
planted(
    _SPLIT,
    partitioners.hold_out,
    {
        "a split that everybody can work out": ("keyed_uniform(key, digests)", "keyed_uniform(b'split', digests)"),
        "a split by the order of the files": (
            "keyed_uniform(key, digests)",
            "np.random.default_rng(len(key)).random(len(digests))",
        ),
    },
)
planted(
    _SPLIT,
    randomness.keyed_uniform,
    {
        "a split by a digest's first bytes": ("digest.tobytes(), key", "digest.tobytes()[:8], key"),
    },
)
planted(
    streams.test_public_stream_keeps_the_parts_of_a_purpose_apart,
    randomness.public_stream,
    {
        "streams whose names run together": ('"\\x1f".join', '"".join'),
    },
)
_ONE_SIDE = partitions.test_units_stay_at_one_client_and_on_one_side
planted(
    _ONE_SIDE,
    assignment.make_partition,
    {
        "a patient on both sides of the split": (
            "scan.digests if scan.unit_digests is None else scan.unit_digests\n",
            "scan.digests\n",
        ),
    },
)
_SIZES = partitions.test_shard_holds_usable_rows_only
planted(
    _SIZES,
    assignment.make_partition,
    {
        "a declared size without the bad files": (
            "np.bincount(owner[:split] + 1,",
            "np.bincount(owner[:split][scan.usable[:split]] + 1,",
        ),
    },
)

planted(
    scans.test_refuse_if_too_bad_gives_counts_and_the_first_twenty,
    scan.refuse_if_too_bad,
    {
        "one bad file more than is allowed": ("if bad <= max_bad_fraction * known:", "if True:"),
    },
)


def rates_and_divisors_are_public() -> None:
    assert replace(PLAN, num_units=10, sample_rate=0.01).expected_batch_size == pytest.approx(0.1)
    for rate in (0.3, 0.011, 0.77):
        assert rate <= round_up_rate(rate) <= rate * 2 ** (1 / 16) * (1 + 1e-9)
    assert PLAN.noise_stddev > PLAN.noise_multiplier * PLAN.max_grad_norm, "rounding to the grid is counted"


planted(
    rates_and_divisors_are_public,
    PrivacyPlan.expected_batch_size,
    {
        "a divisor that is never below one": (
            "self.sample_rate * self.num_units",
            "max(1.0, self.sample_rate * self.num_units)",
        ),
    },
)
planted(
    rates_and_divisors_are_public,
    round_up_rate,
    {
        "a rate that is rounded down": ("math.floor(", "math.ceil("),
    },
)
planted(
    rates_and_divisors_are_public,
    PrivacyPlan.noise_stddev,
    {
        "noise without the slack of the grid": ("(1 + SENSITIVITY_SLACK)", "1"),
    },
)


def every_number_is_in_a_plans_digest() -> None:
    changed = {
        name: 0.25 if isinstance(value, float) else 7
        for name, value in PLAN.as_json().items()
        if not isinstance(value, str | dict)
    }
    digests = {replace(PLAN, **{name: value}).digest for name, value in changed.items()}
    digests |= {replace(PLAN, counts=None).digest, replace(PLAN, privacy_unit="group").digest, PLAN.digest}
    assert len(digests) == len(changed) + 3


for _field in ("delta", "num_units", "counts", "privacy_unit", "max_grad_norm"):
    _without = f"{{name: value for name, value in plan.as_json().items() if name != {_field!r}}}"
    _name = f"a plan's digest without {_field}"
    planted(every_number_is_in_a_plans_digest, plan._digest_of, {_name: ("plan.as_json()", _without)})


def a_delta_is_below_one_unit() -> None:
    for num_units in (0, 10, 11):
        with pytest.raises(Exception, match="must be below"):
            contract.check_delta(0.1, num_units, "images")
    contract.check_delta(0.1, 9, "images")


planted(
    a_delta_is_below_one_unit,
    contract.check_delta,
    {
        "a delta that publishes one image in full": ("delta >= 1 / num_units", "delta > 1 / num_units"),
        "a client of no units": ("num_units < 1 or ", "num_units < 0 or num_units and "),
    },
)


def nobody_takes_part_more_often_than_planned() -> None:
    names = [str(number) for number in range(7)]
    for seed in range(20):
        drawn = cohorts.draw_cohorts(names, cohort_size=3, num_rounds=10, seed=seed)
        times = {name: sum(name in cohort for cohort in drawn) for name in names}
        assert max(times.values()) <= -(-10 * 3 // 7)
        assert all(len(set(cohort)) == 3 for cohort in drawn)
    assert cohorts.shrunk_cohort(5, 10, taking_part=7) == 3
    joined = cohorts.join_cohorts([["a"]] * 5, "b", 2, cohort_size=2, participations=3)
    assert [("b" in cohort) for cohort in joined] == [False, True, True, True, False]


_TIMES = nobody_takes_part_more_often_than_planned
planted(
    _TIMES,
    cohorts.draw_cohorts,
    {
        "a client twice in a cohort": ("if name not in early]", "]"),
    },
)
planted(
    _TIMES,
    cohorts.shrunk_cohort,
    {
        "a cohort that does not shrink": ("cohort_size * taking_part // num_clients", "min(cohort_size, taking_part)"),
    },
)
planted(
    _TIMES,
    cohorts.join_cohorts,
    {
        "a late client in more rounds than its plan has": ("open_cohorts[:participations]", "open_cohorts"),
    },
)


def a_client_that_admits_no_plan_is_turned_away() -> None:
    def refuse(_: int) -> None:
        raise late_joining.ConfigError("delta is too large")

    declared = Declaration("a", 10, ("a", "b"), (8,), "cafe")
    config = SimpleNamespace(max_num_units=9, is_local_dp=True, plan=refuse)
    assert late_joining.rejection_reason(config, declared) == "TOO-LARGE"  # type: ignore[arg-type]
    config.max_num_units = 10
    assert late_joining.rejection_reason(config, declared) == "CONFIG"  # type: ignore[arg-type]
    config.is_local_dp = False
    assert late_joining.rejection_reason(config, declared) == ""  # type: ignore[arg-type]


_TURNED = a_client_that_admits_no_plan_is_turned_away
planted(
    _TURNED,
    late_joining.rejection_reason,
    {
        "a late client that is too large": (
            "declaration.num_units > max_num_units",
            "declaration.num_units > max_num_units + 1",
        ),
        "a late client without a plan": ("if config.is_local_dp:", "if False:"),
    },
)
