"""Candidate settings that advice compares."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from common.commands.fitted_defaults import fit_to_sizes
from common.config.loading import Scalar, defaults, override, parse
from common.config.schema import RunConfig
from common.errors import ConfigError
from common.privacy.mechanisms.registry import MECHANISMS
from common.privacy.plan import PrivacyPlan
from simulations.advice.federation import SizeGroup

# Rounds that are compared. Where each client adds all of its noise their number hardly matters, see docs/privacy.md. A
# sum gets one step a round.
_ROUNDS, _ROUNDS_OF_SUMS = (10, 30), (10, 30, 60)
# Noise that hides one client of few also hides what all of them have in common.
_MANY_CLIENTS = 50


@dataclass(frozen=True)
class Candidate:
    """Settings of a run that advice ranks.

    Attributes:
        settings: What the candidate adds to the user's settings, as `--set` takes it.
        config: All settings of the run.
        plans: Plan of each group of clients, in order.
    """

    settings: Mapping[str, Scalar]
    config: RunConfig
    plans: tuple[PrivacyPlan, ...]

    @property
    def name(self) -> str:
        """Mechanism, aggregation and number of rounds in one text."""
        words = ", secure" if self.config.privacy.aggregation == "secure" else ""
        return f"{self.config.privacy.mechanism}{words}, {self.num_rounds} round{'s' if self.num_rounds > 1 else ''}"

    @property
    def num_rounds(self) -> int:
        """Number of rounds that the run has."""
        return 1 if self.config.takes_statistics else self.config.num_rounds

    @property
    def protects_clients(self) -> bool:
        """True if a unit is a whole client."""
        return self.config.mechanism.clips_clients

    def noise_of_sum(self, num_clients: int) -> float:
        """Return the noise in a sum over so many clients."""
        plan = self.plans[0]
        # The server draws the noise once, and clients draw theirs each.
        drawn = 1 if self.protects_clients and not plan.noise_shares else num_clients
        return plan.client_noise_stddev * math.sqrt(drawn)


def candidates(
    given: Mapping[str, Scalar], groups: Sequence[SizeGroup]
) -> tuple[tuple[Candidate, ...], dict[str, str]]:
    """Return all settings to compare and the reasons against the impossible ones.

    Args:
        given: The user's settings. A number of rounds among them is the only one that is compared.
        groups: The clients by size.
    """
    found: list[Candidate] = []
    left_out: dict[str, str] = {}
    for settings in _choices(given, sum(group.num_clients for group in groups)):
        try:
            found.append(_candidate(given, settings, groups))
        except ConfigError as error:
            name = " ".join(str(settings[key]) for key in ("privacy.mechanism", "privacy.aggregation"))
            left_out.setdefault(name, str(error).splitlines()[0])
    return tuple(found), left_out


def _choices(given: Mapping[str, Scalar], num_clients: int) -> Iterator[dict[str, Scalar]]:
    for mechanism in MECHANISMS.values():
        if not mechanism.private or (mechanism.clips_clients and num_clients < _MANY_CLIENTS):
            continue
        for aggregation in ("plain", "secure"):
            settings: dict[str, Scalar] = {"privacy.mechanism": mechanism.name, "privacy.aggregation": aggregation}
            if mechanism.methods[0] != "rounds":
                yield settings
                continue
            tried: Sequence[Scalar] = _ROUNDS_OF_SUMS if aggregation == "secure" else _ROUNDS
            for rounds in (given["num-rounds"],) if "num-rounds" in given else tried:
                yield settings | {"num-rounds": rounds}


def _candidate(given: Mapping[str, Scalar], settings: Mapping[str, Scalar], groups: Sequence[SizeGroup]) -> Candidate:
    fitted, _ = fit_to_sizes({**given, **settings}, [group.num_units for group in groups])
    config = parse(override(defaults(), fitted))
    # Counts are of held-out images, and do not change the noise of training. Their calibration takes a while.
    constants = replace(config.public_constants, metrics="none")
    sizes = [config.cohort_size if config.mechanism.clips_clients else group.num_units for group in groups]
    return Candidate(settings, config, tuple(config.mechanism.plan(constants, size) for size in sizes))
