"""A data holder's policy: what may be done with the images, whatever a server asks."""

import hashlib
import tomllib
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from common.config.schema import MechanismName, Metrics, RunConfig, Unit, split_list
from common.errors import ConfigError, PolicyError
from common.privacy.accounting import Spent
from common.privacy.mechanisms import DEFAULT_MECHANISM, MECHANISMS
from common.privacy.plan import PrivacyPlan

Tuning = Literal["head", "bias", "norm", "lora", "last", "full"]


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Listed = BeforeValidator(_to_tuple)


class Policy(BaseModel):
    """Limits of one data holder; no message can widen them.

    Attributes:
        max_epsilon: Most that any image, or group of images, may ever have spent, over all runs.
        delta: The delta that `max_epsilon` is for; a plan may not ask for a larger one.
        accountant: Which figure `max_epsilon` caps: `pld` for plans that were fixed in advance, `rdp`
            where later plans may depend on earlier results.
        least_noise_multiplier: A plan with less is refused, whatever its epsilon.
        mechanisms: Those that are allowed.
        tunings: Ways of tuning that are allowed; `last` stands for `last:<n>`.
        metrics: How counts of held-out images may leave.
        units: What may be protected: images one by one, or groups of them.
        least_cohort: A run that would go on with fewer clients in a round is refused; like the number of
            clients itself, that the server keeps to it is taken on trust.
        accept_group_bound: Allow groups of images to be protected that were protected one by one before.
        expires: Last day on which anything is allowed; None for no end.
        classes: The only list of classes that a run may have; empty where any will do. What is in it is the holder's
            own choice and need not be what the images have.
        bundle: Digest of the only code bundle that may run here, see `common.system.app_bundle`; empty allows any.
            Checked by the launcher, before any of the bundle's code runs.
    """

    model_config = ConfigDict(
        alias_generator=lambda name: name.replace("_", "-"),
        extra="forbid",
        frozen=True,
        strict=True,
        populate_by_name=True,
    )

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=True)]
    delta: Annotated[float, Field(ge=1e-12, lt=1)]
    accountant: Literal["pld", "rdp"] = "pld"
    least_noise_multiplier: Annotated[float, Field(ge=0)] = 0.3
    mechanisms: Annotated[tuple[MechanismName, ...], Listed] = (DEFAULT_MECHANISM,)
    tunings: Annotated[tuple[Tuning, ...], Listed] = ("head",)
    metrics: Annotated[tuple[Metrics, ...], Listed] = ("none", "private")
    units: Annotated[tuple[Unit, ...], Listed] = ("image", "group")
    least_cohort: Annotated[int, Field(ge=1)] = 1
    accept_group_bound: bool = False
    expires: date | None = None
    classes: Annotated[tuple[str, ...], Listed] = ()
    bundle: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""

    @property
    def digest(self) -> str:
        """64 hex digits that name the policy."""
        return _digest_of(self)

    def check_run(self, config: RunConfig) -> None:
        """Refuse what no plan could mend.

        Args:
            config: What the server wants to do.

        Raises:
            PolicyError: Says what is beyond the policy; for the holder's eyes, not for the server.
        """
        today = datetime.now(UTC).date()
        if self.expires is not None and today > self.expires:
            raise PolicyError(f"the policy ended on {self.expires}")
        tuning = config.tuning.partition(":")[0]
        wanted = (
            ("privacy.mechanism", config.privacy.mechanism, self.mechanisms),
            ("model.tuning", tuning, self.tunings),
            ("privacy.metrics", config.metrics, self.metrics),
            *([("privacy.unit", config.privacy.unit, self.units)] if config.is_local_dp else []),
        )
        for setting, value, allowed in wanted:
            if value not in allowed:
                raise PolicyError(f"{setting}={value!r} is not allowed, only {', '.join(allowed) or 'nothing'}")
        if self.classes and split_list(config.data.classes) != self.classes:
            raise PolicyError(f"data.classes={config.data.classes!r} is not the list that the policy has")
        if (config.min_clients or 1) < self.least_cohort:
            raise PolicyError(
                f"a round may go on with {config.min_clients or 1} clients (min-clients), the policy wants at least "
                f"{self.least_cohort}"
            )

    def check_plan(self, plan: PrivacyPlan) -> None:
        """Refuse a plan with too little noise or too large a delta.

        Raises:
            PolicyError: Says which.
        """
        if plan.delta > self.delta:
            raise PolicyError(f"delta {plan.delta:g} is larger than the policy's {self.delta:g}")
        if plan.noise_multiplier < self.least_noise_multiplier:
            raise PolicyError(
                f"noise multiplier {plan.noise_multiplier:.4g} is less than the policy's "
                f"{self.least_noise_multiplier:.4g}"
            )

    def check_spent(self, spent: Spent) -> None:
        """Refuse what would spend more than there is.

        Raises:
            PolicyError: Says what the total would be.
        """
        total = spent.rdp if self.accountant == "rdp" else spent.pld
        if not total <= self.max_epsilon:
            raise PolicyError(
                f"epsilon would come to {total:.4f} ({self.accountant.upper()}) over all runs on these images, the "
                f"policy allows {self.max_epsilon:g}"
            )


@lru_cache(maxsize=64)
def _digest_of(policy: Policy) -> str:
    return hashlib.sha256(policy.model_dump_json().encode()).hexdigest()


# What a simulated client allows unless privacy.policy names a file: whoever simulates sets both sides.
ANYTHING = Policy(
    max_epsilon=float("inf"),
    delta=0.999,
    least_noise_multiplier=0.0,
    mechanisms=tuple(MECHANISMS),
    tunings=("head", "bias", "norm", "lora", "last", "full"),
    metrics=("exact", "private", "none"),
    accept_group_bound=True,
)


def load_policy(file: Path) -> Policy:
    """Read a policy; a key that is unknown, missing or wrong stops everything.

    Raises:
        ConfigError: Names the file, the key, what was given and what is allowed.
    """
    try:
        return _policy_of(file, file.read_bytes())
    except OSError as error:
        raise ConfigError(f"the policy {file} cannot be read ({error.strerror})") from None


@lru_cache(maxsize=64)
def _policy_of(file: Path, content: bytes) -> Policy:
    try:
        found = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the policy {file} is not a TOML file ({error})") from None
    try:
        return Policy.model_validate(found)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc']))}: {item['msg']}, got {item['input']!r}" for item in error.errors()
        ]
        raise ConfigError("\n".join([f"the policy {file} cannot be used", *lines])) from None
