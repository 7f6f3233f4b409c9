"""DP-SGD at each client."""

import math
from dataclasses import replace

from common.errors import ConfigError
from common.privacy.counts.counts_plan import counts_plan, label_noise
from common.privacy.mechanisms.client_noise import NoiseAtClient
from common.privacy.mechanisms.contract import check_delta
from common.privacy.noise_error import CURRENT_SAMPLER
from common.privacy.plan import PrivacyPlan, calibrated_noise, round_up_rate
from common.privacy.public_constants import PublicConstants
from common.privacy.step_rule import head_learning_rate, steps_in_round


class DpSgd(NoiseAtClient):
    """DP-SGD at each client.

    The server sees noisy updates alone. Noise, sampling and clipping follow from one frozen plan.

    Source: Abadi et al. 2016, arXiv:1607.00133.
    """

    name = "dp-sgd"
    methods = ("rounds",)
    sampling_method = "Poisson, public rate"

    def plan(self, constants: PublicConstants, num_units: int) -> PrivacyPlan:
        """Return the plan of one client, from public constants and its declared size.

        Raises:
            ConfigError: delta is not below 1 / num_units, or no noise meets the target.
        """
        check_delta(constants.delta, num_units, f"{constants.unit}s of a client")
        if constants.noise_shares and (constants.batch_size is not None or constants.local_epochs != 1):
            raise ConfigError(
                "noise in shares is for one sum a round with every image in it: leave training.batch-size empty, and "
                "training.local-epochs empty or 1"
            )
        # Rounding down would draw smaller batches than the events say. Rounding up only costs epsilon.
        rate = 1.0 if constants.batch_size is None else round_up_rate(constants.batch_size / num_units)
        steps = self.local_epochs(constants, num_units) * math.ceil(1 / rate)
        of_labels = label_noise(constants, sample_rate=rate, steps=steps * constants.participations)
        plan = PrivacyPlan(
            mechanism=self.name,
            privacy_unit=constants.unit,
            num_units=num_units,
            sample_rate=rate,
            steps_per_round=steps,
            num_rounds=constants.participations,
            max_grad_norm=constants.max_grad_norm,
            noise_multiplier=calibrated_noise(constants, rate, steps * constants.participations, of_labels),
            delta=constants.delta,
            sampler=CURRENT_SAMPLER,
            counts=counts_plan(constants),
            label_noise_stddev=of_labels,
            noise_shares=constants.noise_shares,
        )
        # In a secure sum the server makes the steps, and knows the number of units that they are divided by.
        if not constants.rate_by_rule or constants.noise_shares:
            return plan
        return replace(plan, learning_rate=_learning_rate(constants, plan))

    def local_epochs(self, constants: PublicConstants, num_units: int) -> int:
        """Return the passes over a client's units in a round."""
        if constants.noise_shares:
            return 1
        # With a noise that was set, more steps would cost more than the user can see.
        if not constants.steps_by_rule or constants.noise_multiplier is not None:
            return constants.local_epochs
        return steps_in_round(
            calibrated_noise(constants, 1.0, 1, label_noise(constants, sample_rate=1.0, steps=1)),
            num_units=num_units,
            num_rounds=constants.num_rounds,
            cohort_size=constants.cohort_size,
        )


def _learning_rate(constants: PublicConstants, plan: PrivacyPlan) -> float:
    return head_learning_rate(
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=plan.max_grad_norm,
        expected_batch_size=plan.expected_batch_size,
        steps_per_round=plan.steps_per_round,
        num_rounds=constants.num_rounds,
        cohort_size=constants.cohort_size,
        momentum=constants.momentum,
    )
