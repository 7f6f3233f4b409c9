"""T5: less is charged than was released."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from client.evaluation import private_counts
from common.ledger import registrations
from common.ledger import transactions as session
from common.ledger.budget import Charge
from common.metrics import Counts, NoisedCounts
from common.privacy import accounting, gaussian_table, noise_error
from common.privacy.events import CountsEvent, DpSgdEvent, Event
from common.privacy.plan import PrivacyPlan
from tests.mutants.registry import mutant

_FULL, _CAP = "charged in full", "a cap below what three runs cost"
# Every unit in every step, and much noise: what it costs is worked out in a fraction of a second.
_CHEAP = {"privacy.noise-multiplier": 8.0}
_EVERY = "head, every image in every step"


def _history(patch: pytest.MonkeyPatch, kept: Any) -> None:
    real = session.charges_in
    patch.setattr(session, "charges_in", lambda ledger, **more: kept(real(ledger, **more)))


@mutant("T5", _CAP, mode=_EVERY, settings=_CHEAP, listed="accountant new each round")
def the_accountant_starts_anew(patch: pytest.MonkeyPatch) -> None:
    """Each run has an accountant of its own, and a second one over the same images costs as if it were the first.

    Source: NVIDIA/NVFlare pull request 4470 (`SVTPrivacy` resets its accountant when a run starts).
    """
    _history(patch, lambda past: [])


@mutant("T5", _CAP, mode=_EVERY, settings=_CHEAP)
def looking_at_the_history_takes_from_it(patch: pytest.MonkeyPatch) -> None:
    """The last entry is popped off in order to be read.

    Source: meta-pytorch/opacus issue 535 (the GDP accountant's `get_epsilon` calls `history.pop()`).
    """
    _history(patch, lambda past: past[:-1])


@mutant("T5", _CAP, mode=_EVERY, settings=_CHEAP)
def a_run_that_stopped_early_is_charged_for_what_it_ran(patch: pytest.MonkeyPatch) -> None:
    """Whether a run goes on may depend on what it showed: the bound holds for plans that were fixed before."""
    _history(patch, lambda past: [replace(charge, planned=charge.released) for charge in past])


@mutant("T5", _CAP, mode=_EVERY, settings=_CHEAP)
def one_image_more_is_another_data_set(patch: pytest.MonkeyPatch) -> None:
    """Budgets are kept by a hash of the folder: whoever adds an image starts at zero."""
    real = session.spent_with

    def spent(new: Charge, past: Sequence[Charge], **more: Any) -> Any:
        return real(new, [charge for charge in past if _images(charge) == _images(new)], **more)

    patch.setattr(session, "spent_with", spent)


def _images(charge: Charge) -> list[list[int]]:
    return [sorted(members.images.tolist()) for members in charge.parts.values()]


def _as_charged(patch: pytest.MonkeyPatch, change: Any) -> None:
    real = PrivacyPlan.event
    patch.setattr(PrivacyPlan, "event", lambda self, num_rounds=None: change(real(self, num_rounds)))


@mutant("T5", _FULL, settings={"privacy.noise-multiplier": 8.0, "privacy.metrics": "none"})
def a_step_of_each_round_is_free(patch: pytest.MonkeyPatch) -> None:
    """Steps are counted from 0 to T - 1, and the last one is left out."""
    real = PrivacyPlan.event

    def event(self: PrivacyPlan, num_rounds: int | None = None) -> DpSgdEvent:
        found = real(self, num_rounds)
        return found.counted(found.steps - found.steps // self.steps_per_round)

    patch.setattr(PrivacyPlan, "event", event)


@mutant("T5", _FULL, mode=_EVERY)
def equal_steps_are_charged_once(patch: pytest.MonkeyPatch) -> None:
    """A history is kept as (noise, rate, steps), and its length is taken for the number of steps.

    Source: meta-pytorch/opacus issue 834 (`len(accountant)` is 1 after 100 steps).
    """
    _as_charged(patch, lambda event: event.counted(min(1, event.steps)))


@mutant("T5", _FULL, mode=_EVERY)
def the_rate_is_amplified_twice(patch: pytest.MonkeyPatch) -> None:
    """The chance that a client is asked is multiplied in, although the server sees who is."""
    _as_charged(patch, lambda event: replace(event, sample_rate=0.5 * event.sample_rate))


@mutant("T5", _FULL, mode=_EVERY)
def less_noise_costs_less(patch: pytest.MonkeyPatch) -> None:
    """A quotient is upside down.

    Source: OpenMined/PySyft issue 6914 ("less noise -> less privacy budget spend").
    """
    _as_charged(patch, lambda event: replace(event, noise_multiplier=4.0 / event.noise_multiplier))


@mutant("T5", _FULL)
def the_central_limit_is_taken_for_a_bound(patch: pytest.MonkeyPatch) -> None:
    """Gaussian DP in the place of PLD: right for infinitely many steps, too low for those there are.

    Source: one of Opacus' accountants, `opacus/accountants/gdp.py`.
    """

    def gaussian(history: tuple[Event, ...], delta: float, _: float) -> float:
        mu = float(np.sqrt(sum(_squared_mu(event) for event in history)))
        excess = lambda eps: norm.cdf(-eps / mu + mu / 2) - np.exp(eps) * norm.cdf(-eps / mu - mu / 2) - delta  # noqa: E731
        return float(brentq(excess, 0.0, 100.0))

    patch.setattr(accounting, "pld_epsilon", gaussian)


def _squared_mu(event: Event) -> float:
    if isinstance(event, CountsEvent):
        return float(event.releases / event.noise_stddev**2)
    return float(event.steps * event.sample_rate**2 * np.expm1(1 / event.noise_multiplier**2))


@mutant("T5", "the noise's error is taken from delta", mode=_EVERY, settings=_CHEAP)
def the_error_of_the_noise_is_free(patch: pytest.MonkeyPatch) -> None:
    """The error is computed and stated, and delta is given to the accountant as it is."""
    patch.setattr(accounting, "delta_left", lambda history, delta: delta)


@mutant("T5", "the noise's error is taken from delta", mode=_EVERY, settings=_CHEAP)
def the_error_of_the_noise_counts_once(patch: pytest.MonkeyPatch) -> None:
    """The total variation of one draw is charged, however many values a step has."""
    patch.setattr(noise_error, "total_variation", lambda history: gaussian_table.TOTAL_VARIATION)


@mutant("T5", "names its noise sampler", mode=_EVERY, settings=_CHEAP)
def the_sampler_is_not_stored(patch: pytest.MonkeyPatch) -> None:
    """Events leave out their new fields: a ledger cannot tell bounded noise from the noise before."""
    real = registrations.as_json
    fields = ("sampler", "draws-per-step")
    patch.setattr(
        registrations, "as_json", lambda event: {key: value for key, value in real(event).items() if key not in fields}
    )


@mutant("T5", "more than a tenth of delta is refused", mode=_EVERY, settings=_CHEAP)
def any_error_of_the_noise_is_accepted(patch: pytest.MonkeyPatch) -> None:
    """No share of delta is too large for the error, until nothing is left for the mechanism."""
    patch.setattr(noise_error, "_LARGEST_SHARE", 1.0)


@mutant("T5", _FULL, mode=_EVERY, settings=_CHEAP)
def epsilons_are_added(patch: pytest.MonkeyPatch) -> None:
    """Each release's epsilon is worked out by itself and they are added up: no bound at delta, and far too much."""

    def added(history: tuple[Event, ...], delta: float, *rest: float) -> float:
        return sum(event.count * real((event.counted(1),), delta, *rest) for event in history)

    real = accounting.pld_epsilon
    patch.setattr(accounting, "pld_epsilon", added)
    patch.setattr(accounting, "rdp_epsilon", lambda history, delta: added(history, delta, 1e-4))


@mutant("T5", "closing matrix", mode=_EVERY, settings=_CHEAP)
def the_closing_matrix_is_free(patch: pytest.MonkeyPatch) -> None:
    """The counts of each round are charged; the matrix at the end is "only the evaluation"."""
    real = PrivacyPlan.counts_events
    patch.setattr(
        PrivacyPlan,
        "counts_events",
        lambda self, num_counted=None, *, closing=True: real(self, num_counted, closing=False),
    )


@mutant(
    "T5",
    "counts of 'train' move by",
    mode=_EVERY,
    settings=_CHEAP,
    listed="(correct, n) accounted at sensitivity 1",
)
def right_and_all_leave(patch: pytest.MonkeyPatch) -> None:
    """The number of right predictions and the number of all: a unit that is predicted right moves both."""

    def pair(counts: Counts, *, noise_stddev: float, stream: Any) -> NoisedCounts:
        right = int(np.trace(counts.confusion))
        return private_counts._noised(np.array([right, counts.num_examples]), noise_stddev, stream)

    from client.evaluation import evaluate as evaluation

    patch.setattr(evaluation, "noised_pair", pair)
