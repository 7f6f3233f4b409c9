"""Verdict of an audit, from its lower bound and its power."""

import math
from dataclasses import dataclass
from enum import StrEnum

from common.errors import ConfigError
from simulations.attacks.estimators.power import Detectable

# An audit that would not detect half of the declared noise is too weak.
NOISE_FACTOR_TO_SEE = 0.5


class Verdict(StrEnum):
    """Possible results of an audit."""

    CONSISTENT = "consistent"
    VIOLATED = "violated"
    TOO_WEAK = "too weak to tell"


@dataclass(frozen=True)
class Judgement:
    """Verdict with the text to quote for it."""

    verdict: Verdict
    sentence: str


def judge(
    *,
    lower_bound: float,
    upper_bound: float,
    confidence: float,
    adversary: str,
    seen: Detectable | None,
    alarm_bound: float | None = None,
) -> Judgement:
    """Compare an attack's lower bound on epsilon with the ledger's upper bound.

    Guarantee: VIOLATED only if the alarm bound is above the ledger's, so with chance at most 1 minus
    the alarm bound's confidence where nothing is wrong. CONSISTENT only if half of the declared noise
    would have been detected. The sentence never calls a lower bound a guarantee.

    Args:
        lower_bound: The audit refutes every smaller epsilon; at least 0.
        upper_bound: Epsilon of the ledger, at the same delta.
        confidence: Of the lower bound, in (0, 1).
        adversary: The attacker and their knowledge, as a noun phrase.
        seen: The smallest violation that this audit detects; None if unknown.
        alarm_bound: The lower bound at the higher confidence that an alarm needs; None takes `lower_bound`.

    Raises:
        ConfigError: A figure is missing or out of range.
    """
    if not (lower_bound >= 0 and upper_bound >= 0 and 0 < confidence < 1):
        raise ConfigError(
            f"audit: no verdict on lower bound {lower_bound}, upper bound {upper_bound}, confidence {confidence}"
        )
    verdict = _verdict(lower_bound if alarm_bound is None else alarm_bound, upper_bound, seen)
    figures = (
        f"epsilon lower bound >= {rounded_down(lower_bound)} ({100 * confidence:.6g} %) for the stated adversary "
        f"({adversary}); ledger upper bound <= {_up(upper_bound)}"
    )
    chance = ""
    if lower_bound > upper_bound and verdict != Verdict.VIOLATED:
        often = f"{100 * (1 - confidence):.6g} %"
        chance = f" That is above it, as chance alone makes it in {often} of audits: repeat it with more trainings."
    return Judgement(verdict, f"{verdict.capitalize()}: {figures}.{chance} {_power(seen)}")


def _verdict(lower_bound: float, upper_bound: float, seen: Detectable | None) -> Verdict:
    if lower_bound > upper_bound:
        return Verdict.VIOLATED
    if seen is None or seen.noise_factor < NOISE_FACTOR_TO_SEE:
        return Verdict.TOO_WEAK
    return Verdict.CONSISTENT


def _power(seen: Detectable | None) -> str:
    if seen is None:
        return "How small a violation this audit could have seen is not known."
    if seen.noise_factor == 0:
        return "Not even a sixteenth of the declared noise would have been seen."
    return (
        f"The smallest violation this audit could have seen: noise of {rounded_down(seen.noise_factor)} times what was "
        f"declared (found in {100 * seen.power:.6g} % of such audits)."
    )


def rounded_down(figure: float) -> str:
    """Format a lower bound to three decimals, rounded down.

    >>> rounded_down(9.2469)
    '9.246'
    """
    return f"{math.floor(figure * 1000) / 1000:.3f}"


def _up(figure: float) -> str:
    # An upper bound that is rounded down would promise more than was computed.
    return f"{math.ceil(figure * 1000) / 1000:.3f}" if math.isfinite(figure) else "infinity"
