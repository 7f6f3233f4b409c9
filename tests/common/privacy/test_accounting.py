"""Epsilon against independent computations."""

import itertools
from dataclasses import replace
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld.privacy_loss_distribution import from_discrete_gaussian_mechanism

from common.errors import ConfigError, PrivacyError
from common.ledger.database import Ledger
from common.ledger.transactions import LedgerSession
from common.privacy import accounting
from common.privacy.accounting import MAX_EPSILON, NOTHING, spent_by
from common.privacy.calibration import calibrate
from common.privacy.events import CountsEvent, DpSgdEvent
from common.privacy.policy import Policy
from tests.support.ledger.builders import ASKED, KEYS, PLAN, holding

DELTA = 1e-5


def epsilon_of(events: list[DpSgdEvent], *, delta: float) -> float:
    return spent_by(events, delta=delta).pld


def independent_epsilon(events: list[DpSgdEvent]) -> float:
    """The official library, composed event by event, with neighbours in the zero-out sense."""
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=1e-4)
    for event in events:
        step = dp_accounting.PoissonSampledDpEvent(
            event.sample_rate, dp_accounting.GaussianDpEvent(event.noise_multiplier)
        )
        accountant.compose(step, event.steps)
    return float(accountant.get_epsilon(DELTA))


def test_epsilon_of_one_gaussian_is_the_known_figure() -> None:
    assert epsilon_of([DpSgdEvent(1.0, 1.0, 1)], delta=DELTA) == pytest.approx(4.377, abs=1e-3)


GRID = list(itertools.product([0.01, 0.05, 0.1], [0.6, 1.0, 2.0, 4.0], [100, 1000, 5000]))


# A third runs always, with each rate, noise and number of steps; one cell is beyond MAX_EPSILON, which is refused.
CELLS = [
    pytest.param(*cell, marks=() if (at + at // 3 + at // 12) % 3 == 1 else pytest.mark.soak)
    for at, cell in enumerate(GRID)
]


@pytest.mark.parametrize(("rate", "noise", "steps"), CELLS)
def test_epsilon_of_equals_an_independent_pld(rate: float, noise: float, steps: int) -> None:
    event = DpSgdEvent(rate, noise, steps)
    theirs = independent_epsilon([event])
    if theirs > MAX_EPSILON:
        with pytest.raises(ConfigError, match="promises nothing"):
            epsilon_of([event], delta=DELTA)
        return

    ours = epsilon_of([event], delta=DELTA)

    assert theirs - 1e-9 <= ours <= theirs * 1.002


@pytest.mark.parametrize(("rate", "steps", "cap"), [(0.1, 40, 2.0), (1.0, 3, 8.0)])
def test_plan_calibrated_to_a_cap_is_accepted_in_every_round(
    tmp_path: Path, rate: float, steps: int, cap: float
) -> None:
    noise = calibrate(rate, 5 * steps, cap, DELTA)
    plan = replace(PLAN, sample_rate=rate, steps_per_round=steps, num_rounds=5, noise_multiplier=noise, counts=None)
    policy = Policy(max_epsilon=cap, delta=DELTA)
    session = LedgerSession(Ledger(tmp_path / "ledger.sqlite", durable=False), KEYS, simulated=True)
    agreed = session.register("run", "a", plan, (holding(0, 6), holding(6, 8)), policy)

    for server_round in range(1, 6):
        other = policy.model_copy(update={"min_cohort": server_round + 1})  # another policy: the budget is asked anew
        assert session.reserve(agreed, server_round, "train", ASKED, other) is None

    session.ledger.close()


@pytest.mark.parametrize("delta", [0.01, 0.1, 0.9])
def test_epsilon_of_is_zero_where_delta_alone_pays(delta: float) -> None:
    assert spent_by([DpSgdEvent(1.0, 100.0, 1)], delta=delta) == NOTHING


def test_epsilon_of_parts_equals_epsilon_of_the_whole() -> None:
    parts = [DpSgdEvent(0.1, 1.5, 40), DpSgdEvent(1.0, 8.0, 3), DpSgdEvent(0.1, 1.5, 60)]
    whole = [DpSgdEvent(1.0, 8.0, 3), DpSgdEvent(0.1, 1.5, 100)]

    assert epsilon_of(parts, delta=DELTA) == epsilon_of(whole, delta=DELTA)
    assert epsilon_of(whole, delta=DELTA) == pytest.approx(independent_epsilon(whole), rel=2e-3)


def test_epsilon_of_grows_with_steps_and_is_zero_without() -> None:
    spent = [epsilon_of([DpSgdEvent(0.2, 1.0, steps)], delta=DELTA) for steps in (0, 10, 20, 40)]

    assert spent[0] == 0.0
    assert spent == sorted(set(spent))


def test_epsilon_of_is_refused_when_rdp_falls_below_pld(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_: 0.1)

    with pytest.raises(PrivacyError, match="disagree"):
        spent_by([DpSgdEvent(1.0, 1.0, 1)], delta=DELTA, fresh=True)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([CountsEvent(1802.837890625, 300), CountsEvent(125.001953125, 1)], "301"),
        ([CountsEvent(4000.0, 1000)], "1,000"),
        ([DpSgdEvent(1.0, 1800.0, 400), CountsEvent(1800.0, 400)], "400"),
    ],
)
def test_epsilon_of_too_many_small_releases_is_refused_with_its_cause(
    events: list[CountsEvent | DpSgdEvent], said: str
) -> None:
    text = rf"(?s)^so small an epsilon of {said} private counts .*nothing is reported.*\(evaluation\.every\)$"
    with pytest.raises(PrivacyError, match=text):
        spent_by(events, delta=DELTA, fresh=True)


def test_epsilon_of_is_not_blamed_on_the_grid_if_a_finer_one_disagrees_too(monkeypatch: pytest.MonkeyPatch) -> None:
    history = [CountsEvent(1802.837890625, 300)]
    monkeypatch.setattr(accounting, "rdp_epsilon", lambda *_: 0.02)

    with pytest.raises(PrivacyError, match=r"^accountants disagree: .*nothing is reported$"):
        spent_by(history, delta=DELTA, fresh=True)


def test_epsilon_of_refuses_noise_so_small_that_epsilon_means_nothing() -> None:
    with pytest.raises(ConfigError, match="promises nothing"):
        epsilon_of([DpSgdEvent(0.2, 0.1, 600)], delta=DELTA)


@pytest.mark.parametrize("group_size", [1, 3])
@pytest.mark.parametrize("discretization", [1e-4, 1e-3])
@pytest.mark.parametrize("noise", [0.5, 1.0, 4.123, 25.0, 620.13, 4151.4])
def test_noise_of_counts_costs_what_the_library_says_bit_for_bit(
    noise: float, discretization: float, group_size: int
) -> None:
    event = CountsEvent(noise, 30, group_size)
    library = from_discrete_gaussian_mechanism(
        noise, sensitivity=group_size, value_discretization_interval=discretization
    ).self_compose(30)

    assert accounting.pld_epsilon((event,), DELTA, discretization) == library.get_epsilon_for_delta(DELTA)


def test_more_noise_of_counts_than_the_most_is_taken_for_the_most() -> None:
    most, more = (spent_by([CountsEvent(noise, 30)], delta=DELTA) for noise in (65_536.0, 16_777_216.0))
    less = spent_by([CountsEvent(30_000.0, 30)], delta=DELTA)

    assert most.pld == more.pld < less.pld
