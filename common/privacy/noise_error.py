"""Error of the samplers of Gaussian noise and its charge in delta.

The error is the total variation between the noise that was drawn and the noise that the accountant assumes. A history
that is (epsilon, delta)-private with the assumed noise is (epsilon, delta + (1 + e^epsilon) error)-private with the
drawn one.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from common.errors import PrivacyError
from common.privacy.events import DpSgdEvent, Event
from common.privacy.gaussian_table import TOTAL_VARIATION

# Floating-point normals, rounded to a grid. Their error is not known, so nothing can be charged for it.
FLOATING_POINT = 0
TABLE = 1
CURRENT_SAMPLER = TABLE
# No step noises more values than this. Events store it as the number of draws of each step.
MAX_DRAWS = 1 << 32
MAX_EPSILON = 200.0
MITIGATION = "noise on a grid, counted in the multiplier: a mitigation, not a proof"
BOUNDED = "noise on a grid, counted in the multiplier; its error is bounded, and charged in delta"
_LARGEST_SHARE = 0.1
# Sampler -> total variation of one draw, and draws that each step is charged. Stored events refer to these values.
_SAMPLERS: Mapping[int, tuple[float, int]] = MappingProxyType(
    {FLOATING_POINT: (0.0, 0), TABLE: (TOTAL_VARIATION, MAX_DRAWS)}
)


def draws_of(sampler: int) -> int:
    """Return the number of draws that each step with a sampler is charged.

    Raises:
        PrivacyError: This version does not know the sampler.
    """
    return _sampler(sampler)[1]


def check_draws(num_values: int) -> None:
    """Refuse to noise more values in one step than its event charges.

    Raises:
        PrivacyError: There are too many values.
    """
    if num_values > MAX_DRAWS:
        raise PrivacyError(f"a step noises {num_values} values, and its event charges the error of {MAX_DRAWS} draws")


def _sampler(version: int) -> tuple[float, int]:
    try:
        return _SAMPLERS[version]
    except (KeyError, TypeError):
        raise PrivacyError(f"an event names the noise sampler {version!r}, which this version does not know") from None


def total_variation(history: Iterable[Event]) -> float:
    """Return the total variation of all draws of a history.

    Draws of the floating-point sampler count as none, see `is_bounded`. Counts are noised exactly, but for counts in
    shares. Noise in shares counts the draws of all the clients that carry it.

    Raises:
        PrivacyError: An event names an unknown sampler, or charges too few draws of it.
    """
    return sum((_variation(event) for event in history), 0.0)


def _variation(event: Event) -> float:
    shares = event.noise_shares
    if not (isinstance(shares, int) and shares >= 0):
        raise PrivacyError(f"an event says that {shares!r} clients carry its noise")
    if not isinstance(event, DpSgdEvent):
        return TOTAL_VARIATION * _draws(event)
    each, least = _sampler(event.sampler)
    # An event that names the sampler but counts no draws would be free of its error.
    if event.draws_per_step < least or (shares and not each):
        raise PrivacyError("an event charges fewer draws than a step of its noise sampler may have")
    return each * _draws(event)


def _draws(event: Event) -> int:
    # The noise of a sum is off by no more than all of its shares together. Counts without shares are noised exactly.
    if isinstance(event, DpSgdEvent):
        return event.steps * event.draws_per_step * max(1, event.noise_shares)
    return event.releases * MAX_DRAWS * event.noise_shares


def is_bounded(history: Iterable[Event]) -> bool:
    """Return whether the error of all Gaussian noise of a history is bounded.

    One event of the floating-point sampler is enough to make the answer False.
    """
    return all(event.sampler != FLOATING_POINT for event in history if isinstance(event, DpSgdEvent))


def charge(history: Iterable[Event]) -> float:
    """Return the part of delta that the error of a history takes.

    It is (1 + e^epsilon) times the total variation, for an epsilon above all that are reported. So it holds for each
    reported epsilon, and epsilon can be computed from the delta that is left.

    Raises:
        PrivacyError: An event names an unknown sampler, or charges too few draws of it.
    """
    # Both accountants refuse epsilons above the largest one, up to their own rounding.
    return (1.0 + math.exp(MAX_EPSILON + 1.0)) * total_variation(history)


def delta_left(history: Iterable[Event], delta: float) -> float:
    """Return the delta that is left for the accountant.

    Raises:
        PrivacyError: The error takes more than a tenth of delta, or its events cannot be charged.
    """
    taken = charge(history)
    # `not <=` also refuses NaN.
    if not taken <= _LARGEST_SHARE * delta:
        raise PrivacyError(f"the error of the noise takes {taken:.3g} of delta {delta:g}, which is more than a tenth")
    # Rounded down. Most charges are so small that the difference would round to delta itself.
    return math.nextafter(delta - taken, 0.0) if taken else delta


def stated(histories: Iterable[Sequence[Event]]) -> dict[str, Any]:
    """Return what a statement says about the noise of several units' histories.

    `floating_point` says in words whether the error is bounded. If it is, `noise_error` has the figures of the history
    with the largest error.

    Raises:
        PrivacyError: An event names an unknown sampler, or charges too few draws of it.
    """
    whole = list(histories)
    if not all(map(is_bounded, whole)):
        return {"floating_point": MITIGATION}
    worst = max(whole, key=total_variation, default=())
    figures = {
        "sampler": CURRENT_SAMPLER,
        "total_variation_per_draw": TOTAL_VARIATION,
        "draws": sum(map(_draws, worst)),
        "delta_noise": charge(worst),
    }
    return {"floating_point": BOUNDED, "noise_error": figures}


def in_words(histories: Iterable[Sequence[Event]]) -> str:
    """Return one sentence on the noise of several histories, with the largest charge.

    Raises:
        PrivacyError: An event names an unknown sampler, or charges too few draws of it.
    """
    figures = stated(histories)
    if "noise_error" not in figures:
        return MITIGATION
    return f"{BOUNDED} (delta_noise {figures['noise_error']['delta_noise']:.2g})"
