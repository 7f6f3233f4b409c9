"""What events cost: an upper bound by PLD, cross-checked by RDP.

Events are what happened; epsilon is computed from all of them together and is
never added up. Neighbouring data sets differ in one unit, in the zero-out sense
(dp_accounting's REPLACE_SPECIAL).
"""

import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from common.errors import ConfigError, PrivacyError

DISCRETIZATION = 1e-4
MOST_EPSILON = 200.0
NEIGHBORING_RELATION = "add/remove one unit (zero-out)"
ACCOUNTANT = "dp-accounting PLD at 1e-4, cross-checked with Opacus RDP"


@dataclass(frozen=True, order=True)
class DpSgdEvent:
    """Steps of DP-SGD with one sampler and one noise.

    Attributes:
        sample_rate: Chance that a unit joins a batch, in (0, 1].
        noise_multiplier: Noise standard deviation over L2 sensitivity.
        steps: How many steps, empty batches included.
    """

    sample_rate: float
    noise_multiplier: float
    steps: int


def epsilon_of(events: Iterable[DpSgdEvent], *, delta: float) -> float:
    """Epsilon of all events over the same units, as an upper bound.

    Args:
        events: Any number; equal samplers and noises are merged first.
        delta: In (0, 1).

    Returns:
        Epsilon; 0.0 for no events.

    Raises:
        ConfigError: Epsilon is beyond `MOST_EPSILON`; no figure would mean anything.
        PrivacyError: The RDP cross-check is below the PLD figure, which would
            mean that one of the two accountants is wrong.

    Source: Meiser and Mohammadi 2018, doi:10.1145/3243734.3243765; Doroshenko et
    al. 2022, arXiv:2207.04380 (PLD); Mironov et al. 2019, arXiv:1908.10530 (RDP).
    """
    merged: Counter[tuple[float, float]] = Counter()
    for event in events:
        merged[event.sample_rate, event.noise_multiplier] += event.steps
    history = tuple(sorted((rate, noise, steps) for (rate, noise), steps in merged.items() if steps))
    if not history:
        return 0.0
    check = _rdp_epsilon(history, delta)
    if not check <= MOST_EPSILON:
        raise ConfigError(
            f"privacy: so little noise gives epsilon {check:.0f}, which promises nothing: raise "
            "privacy.noise-multiplier, or set privacy.mechanism=none to say so"
        )
    bound = pld_epsilon(history, delta, DISCRETIZATION)
    if check < bound - 1e-3:
        raise PrivacyError(f"accountants disagree: RDP {check:.4f} is below PLD {bound:.4f}; nothing is reported")
    return bound


@lru_cache(maxsize=4096)
def pld_epsilon(history: tuple[tuple[float, float, int], ...], delta: float, discretization: float) -> float:
    """Epsilon by the privacy loss distribution of (sample rate, noise, steps) triples.

    Args:
        history: At least one triple.
        delta: In (0, 1).
        discretization: Width of the loss grid; larger is faster and larger in epsilon.
    """
    import dp_accounting
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(
        dp_accounting.NeighboringRelation.REPLACE_SPECIAL, value_discretization_interval=discretization
    )
    for rate, noise, steps in history:
        step = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=4096)
def _rdp_epsilon(history: tuple[tuple[float, float, int], ...], delta: float) -> float:
    from opacus.accountants.analysis import rdp

    orders = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a best order at the edge only makes this check looser
        parts = [
            rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
            for rate, noise, steps in history
        ]
        return float(rdp.get_privacy_spent(orders=orders, rdp=sum(parts), delta=delta)[0])
