"""Steps of a server along the noised gradient sum of all clients."""

import math

import numpy as np

from common.arrays import Arrays, from_vector, shapes_of
from common.privacy.plan import PrivacyPlan
from common.privacy.step_rule import summed_steps
from common.secagg.noise_shares import ShareScale, values_of_sum


class SummedSteps:
    """Gradient descent with momentum on sums that the server cannot take apart.

    All of it is post-processing of the noised sums, and costs no privacy. `momentum` is the state between rounds, a
    flat float64 array.

    Args:
        plan: The plan that all clients share but for their sizes.
        total_units: Declared number of units of all clients of the run.
        num_clients: Clients of the run.
        rule: Version of the public rule for rate and momentum.
        rate: Learning rate that was set; None for rate and momentum by the public rule.
        factor: Momentum that goes with a rate that was set.
    """

    def __init__(
        self,
        plan: PrivacyPlan,
        *,
        total_units: int,
        num_clients: int,
        rule: int,
        rate: float | None = None,
        factor: float = 0.0,
    ) -> None:
        # Each client adds its share, also those beyond the accounted ones.
        noise = plan.noise_stddev * math.sqrt(num_clients / plan.noise_shares)
        by_rule = summed_steps(
            noise_stddev=noise,
            max_grad_norm=plan.max_grad_norm,
            total_units=total_units,
            num_rounds=plan.num_rounds,
            version=rule,
        )
        self.rate, self.factor = by_rule if rate is None else (rate, factor)
        self.momentum = np.zeros(0)

    def step(self, start: Arrays, words: np.ndarray, scale: ShareScale, *, num_units: int) -> Arrays:
        """Return the model after one step.

        Args:
            start: The model that the clients computed their gradients at.
            words: Sum of their words modulo 2^bits, (p,) uint64.
            scale: The scale of these words.
            num_units: Declared number of units of the clients in the sum. It is public, because the server knows who
                takes part, and never the number of units that were found.

        Returns:
            New float32 arrays, with the names and shapes of `start`.
        """
        return self.along(start, values_of_sum(words, scale) / num_units)

    def along(self, start: Arrays, gradient: np.ndarray) -> Arrays:
        """Return the model after one step along a noised mean gradient, (p,) float64."""
        before = self.momentum if self.momentum.size else np.zeros_like(gradient)
        self.momentum = self.factor * before + gradient
        moved = from_vector(self.rate * self.momentum, shapes_of(start))
        return {name: (array - moved[name]).astype(np.float32) for name, array in start.items()}
