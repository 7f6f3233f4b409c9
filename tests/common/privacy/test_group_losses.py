"""Losses of groups are those of the library, bit for bit."""

import hashlib

import numpy as np
import pytest
from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution, from_mixture_gaussian_mechanism
from scipy.stats import binom

from common.errors import PrivacyError
from common.privacy import accounting
from common.privacy.events import DpSgdEvent


def digest_of(distribution: PrivacyLossDistribution) -> str:
    both = (distribution._pmf_remove.to_dense_pmf(), distribution._pmf_add.to_dense_pmf())
    numbers = [(pmf._lower_loss, float(pmf._infinity_mass), pmf._probs.tobytes()) for pmf in both]
    return hashlib.sha256(repr(numbers).encode()).hexdigest()


pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(
    ("noise", "size", "rate", "grid"),
    [
        (1.0, 2, 0.1, 1e-2),
        (0.7, 5, 0.05, 1e-2),
        (2.0, 4, 0.9, 1e-2),
        (1.0, 3, 0.01, 1e-2),
        (30.0, 12, 0.3, 1e-3),
    ],
)
def test_losses_of_a_group_are_those_of_the_library_bit_for_bit(
    noise: float, size: int, rate: float, grid: float
) -> None:
    chances = [float(chance) for chance in binom.pmf(np.arange(size + 1), size, rate)]
    library = from_mixture_gaussian_mechanism(noise, range(size + 1), chances, value_discretization_interval=grid)

    ours = accounting._of_groups(DpSgdEvent(rate, noise, 1, size), grid)

    assert digest_of(ours) == digest_of(library)
    epsilons = [each.self_compose(50).get_epsilon_for_delta(1e-5) for each in (ours, library)]
    assert epsilons[0] == epsilons[1] > 0


def test_a_large_group_is_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    event = DpSgdEvent(0.05, 0.7, 1, 5)
    whole = accounting._of_groups(event, 1e-2)
    monkeypatch.setattr(accounting, "_MOST_VALUES", 64)

    assert digest_of(accounting._of_groups(event, 1e-2)) == digest_of(whole)


def test_bounds_that_no_float_can_divide_are_refused() -> None:
    with pytest.raises(PrivacyError, match="too far apart"):
        accounting._inverses(Steep(), np.array([0.0]), (-1e12, 1e12), 1e-6)


class Steep:
    """Reaches each loss at a noise whose neighbours are further away than the precision."""

    adjacency_type = None
    _variance = 1.0
    sensitivities = np.array([1.0])
    _precompute_privacy_loss_constants = np.array([1e11 / 3])
