"""DP for whole clients, with noise at the server."""

from collections.abc import Mapping, Sequence

from common.privacy.events import Event
from common.privacy.mechanisms.contract import ALWAYS_VISIBLE, Mechanism, check_delta
from common.privacy.noise_error import CURRENT_SAMPLER
from common.privacy.plan import PrivacyPlan, calibrated_noise
from common.privacy.public_constants import PublicConstants
from common.privacy.step_rule import head_clipping_norm


class ClientDp(Mechanism):
    """DP for whole clients, with noise at the server.

    Source: McMahan et al. 2018, arXiv:1710.06963.
    """

    name = "client-dp"
    noise_at_server = True
    metrics = ("none", "exact")
    methods = ("rounds",)
    secure_sum = False
    trust = "the server must be trusted: it sees each client's exact update and adds the noise itself"
    trust_warning = "mechanism client-dp trusts the server with exact updates"
    noise_place = "noise added at the server"
    noise_place_short = "the server, which sees each update"

    def why_not_metrics(self, metrics: str) -> str:
        """Return why counts cannot leave as `metrics` asks."""
        return "" if metrics in self.metrics else "one client can change all of its counts; use none"

    def plan(self, constants: PublicConstants, num_units: int) -> PrivacyPlan:
        """Return the server's one plan, the same for every client.

        A client takes part in at most `constants.participations` rounds. Each round releases the sum over its cohort,
        divided by the cohort's planned size however many clients answered.

        Raises:
            ConfigError: delta is not below 1 / num-clients, or no noise meets the target.
        """
        check_delta(constants.delta, constants.num_clients, "clients")
        noise = calibrated_noise(constants, 1.0, constants.participations)
        bound = constants.clipping_norm or head_clipping_norm(
            noise_multiplier=noise, num_rounds=constants.num_rounds, cohort_size=constants.cohort_size
        )
        return PrivacyPlan(
            mechanism=self.name,
            privacy_unit="client",
            num_units=constants.cohort_size,
            # The server knows who takes part, so no amplification by sampling of clients is claimed.
            sample_rate=1.0,
            steps_per_round=1,
            num_rounds=constants.participations,
            max_grad_norm=bound,
            noise_multiplier=noise,
            delta=constants.delta,
            sampler=CURRENT_SAMPLER,
            noise_shares=constants.noise_shares,
        )

    def plans(self, constants: PublicConstants, sizes: Mapping[str, int]) -> dict[str, PrivacyPlan]:
        """Return the server's plan under each client's name."""
        return dict.fromkeys(sizes, self.plan(constants, constants.cohort_size))

    def charged_events(
        self, plan: PrivacyPlan, num_rounds: int, num_counted: int, *, closing: bool
    ) -> Mapping[str, Sequence[Event]]:
        """Return the events that a client is charged."""
        return {"training": (plan.event(num_rounds),)}

    def ledger_text(self, *, simulated: bool, kept: str) -> str:
        """Return where charges are kept, as the privacy statement says it."""
        return "none at the clients, which trust the server; the run's checkpoint holds its rounds"

    def not_protected(self, *, num_clients: int, num_unpinned: int) -> tuple[str, ...]:
        """Return what an observer may learn in spite of the mechanism."""
        return (
            *ALWAYS_VISIBLE,
            "anything, against the server: it sees each client's exact update and must be trusted",
        )
