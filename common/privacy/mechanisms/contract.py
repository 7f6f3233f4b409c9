"""Contract of a privacy mechanism."""

from collections.abc import Mapping, Sequence
from typing import ClassVar

from common.errors import ConfigError, PrivacyError
from common.privacy.events import Event
from common.privacy.plan import PrivacyPlan
from common.privacy.public_constants import PublicConstants

ALWAYS_VISIBLE = (
    "how many units each client declares, and so its share of the average",
    "which clients took part in which round",
    "the list of class names",
    "the time each client took",
)


class Mechanism:
    """Contract of a privacy mechanism.

    The base class itself is the mechanism `none`.

    Attributes:
        name: Value of `privacy.mechanism`, stored in ledgers and statements.
        noise_at_client: Each client adds the noise itself, charges its ledger and signs its heads.
        noise_at_server: The server clips each client's update and adds the noise.
        clips_units: Clients clip what single units contribute to what they send.
        clips_clients: The privacy unit is a whole client, whose update is clipped, whatever `privacy.unit` says.
        units: Values of `privacy.unit` that go with it.
        metrics: Values of `privacy.metrics` that go with it; the first is the default.
        methods: Values of `training.method` that go with it; the first is the default.
        secure_sum: Updates and counts may be summed under masks, so that the server sees the sum alone.
        trust: Sentence on who must be believed.
        trust_warning: Warning to a holder whose policy allows it; empty where only the holder must be trusted.
        noise_place: Where the noise is added, as the privacy statement says it.
        noise_place_short: `noise_place` in the words of the summary.
        sampling_method: How units join a batch, as the privacy statement says it.
    """

    name: ClassVar[str] = "none"
    noise_at_client: ClassVar[bool] = False
    noise_at_server: ClassVar[bool] = False
    clips_units: ClassVar[bool] = False
    clips_clients: ClassVar[bool] = False
    units: ClassVar[tuple[str, ...]] = ("image",)
    metrics: ClassVar[tuple[str, ...]] = ("exact", "none")
    methods: ClassVar[tuple[str, ...]] = ("rounds", "statistics")
    secure_sum: ClassVar[bool] = True
    trust: ClassVar[str] = "everybody must be trusted"
    trust_warning: ClassVar[str] = "mechanism none protects nobody"
    noise_place: ClassVar[str] = "no noise"
    noise_place_short: ClassVar[str] = "nobody"
    sampling_method: ClassVar[str] = "none: every round counts in full"

    @property
    def private(self) -> bool:
        """True if the clients or the server add noise."""
        return self.noise_at_client or self.noise_at_server

    @property
    def releases_losses(self) -> bool:
        """True if losses and personal counts may leave a client.

        No event accounts for them.
        """
        return not self.private

    @property
    def needs_uniform_average(self) -> bool:
        """True if the strategy must be a uniform average.

        The noise of a sum of clipped updates is calibrated for that.
        """
        return self.clips_clients

    def in_sums(self) -> "Mechanism":
        """Return the mechanism as it is under a secure sum."""
        return self

    def why_not_metrics(self, metrics: str) -> str:
        """Return why counts cannot leave as `metrics` asks.

        The text is empty if they can.
        """
        return "" if metrics in self.metrics else "without a mechanism counts are exact"

    def plan(self, constants: PublicConstants, num_units: int) -> PrivacyPlan:
        """Return the whole plan that protects a client of `num_units` declared units.

        Guarantee: with a target, the whole plan's epsilon never exceeds it for any unit.

        Raises:
            ConfigError: delta is too large for so many units, or no noise meets the target.
            PrivacyError: The mechanism adds no noise.
        """
        raise PrivacyError(f"privacy.mechanism={self.name!r} adds no noise and has no plan")

    def local_epochs(self, constants: PublicConstants, num_units: int) -> int:
        """Return the passes over a client's units in a round."""
        return constants.local_epochs

    def plans(self, constants: PublicConstants, sizes: Mapping[str, int]) -> dict[str, PrivacyPlan]:
        """Return the plan of each client, by name.

        `sizes` maps a client's name to its declared number of units.

        Raises:
            ConfigError: A client admits no plan.
            PrivacyError: The mechanism adds no noise.
        """
        by_size = {num_units: self.plan(constants, num_units) for num_units in dict.fromkeys(sizes.values())}
        return {name: by_size[num_units] for name, num_units in sizes.items()}

    def charged_events(
        self, plan: PrivacyPlan, num_rounds: int, num_counted: int, *, closing: bool
    ) -> Mapping[str, Sequence[Event]]:
        """Return the events that a unit is charged, by part of the data.

        Args:
            plan: The whole plan.
            num_rounds: Rounds that are charged.
            num_counted: How many of them are counted.
            closing: Whether the closing counts are charged too.
        """
        counts = plan.counts_events(num_counted, closing=closing)
        return {"training": plan.training_events(num_rounds), "evaluation": counts}

    def ledger_text(self, *, simulated: bool, kept: str) -> str:
        """Return where charges are kept, as the privacy statement says it.

        `kept` is the value of `system.ledger`.
        """
        return "none"

    def not_protected(self, *, num_clients: int, num_unpinned: int) -> tuple[str, ...]:
        """Return what an observer may learn in spite of the mechanism.

        `num_unpinned` of the clients run whatever code the server sends.
        """
        return ALWAYS_VISIBLE


def check_delta(delta: float, num_units: int, units: str) -> None:
    """Refuse a delta that is too large for so many units.

    `units` says what they are units of.

    Raises:
        ConfigError: delta is not below 1 / num_units.
    """
    # A larger delta would allow a mechanism that publishes a random unit as it is.
    if num_units < 1 or delta >= 1 / num_units:
        raise ConfigError(
            f"privacy.delta={delta} must be below 1 / {units} (here 1/{num_units}): "
            "a larger delta allows publishing some of them as they are"
        )
