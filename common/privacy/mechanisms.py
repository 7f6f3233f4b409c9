"""Privacy mechanisms, one class each, behind one contract.

Only this module and `common.config` know mechanisms by name. All other code asks the object that `mechanism_named` or
`RunConfig.mechanism` returns, so that a new mechanism is a new class here and a row in `MECHANISMS`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import ClassVar

from common.errors import ConfigError, PrivacyError
from common.privacy.counts.counts_plan import counts_plan, label_noise
from common.privacy.events import Event
from common.privacy.noise_error import CURRENT_SAMPLER
from common.privacy.plan import PrivacyPlan, calibrated_noise, round_up_rate
from common.privacy.public_constants import PublicConstants
from common.privacy.step_rule import head_clipping_norm, head_learning_rate, steps_in_round

_ALWAYS_VISIBLE = (
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

        The server's noise is calibrated for that.
        """
        return self.noise_at_server

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
        return {name: self.plan(constants, num_units) for name, num_units in sizes.items()}

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
        return _ALWAYS_VISIBLE


class _NoiseAtClient(Mechanism):
    """Common part of the mechanisms whose clients add the noise themselves."""

    noise_at_client = True
    units = ("image", "group")
    metrics = ("private", "exact", "none")
    trust = "each client adds its own noise"
    trust_warning = ""
    noise_place = "noise added at its own client"
    noise_place_short = "each client"

    def ledger_text(self, *, simulated: bool, kept: str) -> str:
        """Return where charges are kept, as the privacy statement says it."""
        if simulated:
            return f"simulated ({kept}): one a client, in this run's folder; a new run starts new budgets"
        return "each client's own; only its signed heads are known here"

    def not_protected(self, *, num_clients: int, num_unpinned: int) -> tuple[str, ...]:
        """Return what an observer may learn in spite of the mechanism."""
        code = (
            f"anything, against a server that changes the code clients run: {num_unpinned} of {num_clients} clients "
            "have not pinned it, and trust the server's code"
        )
        return (
            *_ALWAYS_VISIBLE,
            "images that another client also holds: epsilon is per client",
            "an image that was edited or re-encoded, or that another machine holds: it counts as a new one",
            *((code,) if num_unpinned else ()),
        )


class DpSgd(_NoiseAtClient):
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
        units = "images of a client" if constants.unit == "image" else "groups of a client"
        _check_delta(constants.delta, num_units, units)
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


class DpStatistics(_NoiseAtClient):
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
        _check_delta(constants.delta, num_units, f"{constants.unit}s of a client")
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
        _check_delta(constants.delta, constants.num_clients, "clients")
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
            *_ALWAYS_VISIBLE,
            "anything, against the server: it sees each client's exact update and must be trusted",
        )


MECHANISMS: Mapping[str, Mechanism] = MappingProxyType(
    {mechanism.name: mechanism for mechanism in (Mechanism(), DpSgd(), ClientDp(), DpStatistics())}
)
NO_PRIVACY = Mechanism.name
DEFAULT_MECHANISM = DpSgd.name


def mechanism_named(name: str) -> Mechanism:
    """Return the mechanism of a setting, a plan or a statement.

    Raises:
        ConfigError: This version knows no mechanism of that name.
    """
    try:
        return MECHANISMS[name]
    except KeyError:
        raise ConfigError(f"{name!r} is not a privacy mechanism; there are {', '.join(MECHANISMS)}") from None


def names_where(attribute: str) -> tuple[str, ...]:
    """Return the names of the mechanisms that have a property.

    >>> names_where("noise_at_server")
    ('client-dp',)
    """
    return tuple(name for name, mechanism in MECHANISMS.items() if getattr(mechanism, attribute))


def _check_delta(delta: float, num_units: int, units: str) -> None:
    # A larger delta would allow a mechanism that publishes a random unit as it is.
    if num_units < 1 or delta >= 1 / num_units:
        raise ConfigError(
            f"privacy.delta={delta} must be below 1 / {units} (here 1/{num_units}): "
            "a larger delta allows publishing some of them as they are"
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
