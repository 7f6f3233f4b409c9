"""Single release of noised sums over each client's features."""

from common.privacy.counts.counts_plan import counts_plan
from common.privacy.mechanisms.client_noise import NoiseAtClient
from common.privacy.mechanisms.contract import check_delta
from common.privacy.noise_error import CURRENT_SAMPLER
from common.privacy.plan import PrivacyPlan, calibrated_noise
from common.privacy.public_constants import PublicConstants


class DpStatistics(NoiseAtClient):
    """Single release of noised sums over each client's features.

    A linear head follows from the sums in closed form. Every unit counts once, clipped over all sums together.

    Source: Wang 2018, arXiv:1803.02596 (ridge regression from noised sums); Dwork et al. 2014 (noised covariance).
    """

    name = "dp-statistics"
    methods = ("statistics",)
    secure_sum = False
    sampling_method = "none: every unit counts once"

    def plan(self, constants: PublicConstants, num_units: int) -> PrivacyPlan:
        """Return the plan of one client, a single release from public constants.

        Raises:
            ConfigError: delta is not below 1 / num_units, or no noise meets the target.
        """
        check_delta(constants.delta, num_units, f"{constants.unit}s of a client")
        return PrivacyPlan(
            mechanism=self.name,
            privacy_unit=constants.unit,
            num_units=num_units,
            sample_rate=1.0,
            # One release a run. A second one would have noise of its own, and their mean less than was charged.
            steps_per_round=1,
            num_rounds=1,
            max_grad_norm=constants.max_grad_norm,
            noise_multiplier=calibrated_noise(constants, 1.0, 1),
            delta=constants.delta,
            sampler=CURRENT_SAMPLER,
            counts=counts_plan(constants),
        )
