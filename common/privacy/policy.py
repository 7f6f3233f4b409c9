"""The policy of a data holder that limits what servers may ask."""

import hashlib
import logging
import math
import tomllib
from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasGenerator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from common.config.schema import RunConfig
from common.config.sections import Aggregation, Closing, Gradients, MechanismName, Metrics, Unit
from common.errors import ConfigError, PolicyError
from common.privacy.accounting import Spent
from common.privacy.batched_gradients import AUTO, OPACUS
from common.privacy.mechanisms.registry import DEFAULT_MECHANISM, MECHANISMS
from common.privacy.plan import PrivacyPlan

_log = logging.getLogger("bract")
_MATRIX_ALONE: tuple[Closing, ...] = ("matrix",)
_ANY_COLUMN = "*"
_AUTO_ALONE: tuple[Gradients, ...] = (AUTO,)
_PLAIN_ALONE: tuple[Aggregation, ...] = ("plain",)
# Key that came after the first ledgers -> its value in policies without it.
_ADDED: Mapping[str, Any] = {
    "closing": _MATRIX_ALONE,
    "subgroup_columns": (),
    "aggregations": _PLAIN_ALONE,
    "roster": "",
    "accept_honest_shares": False,
    "max_epsilon_alone": None,
    "gradients": _AUTO_ALONE,
}
Tuning = Literal["head", "bias", "norm", "lora", "last", "full"]
# Keys that were renamed. Files with an old key still load.
_NEW_KEYS = {"least-noise-multiplier": "min-noise-multiplier", "least-cohort": "min-cohort"}
# Ledgers store digests of policies, and a renamed field must not change them.
# So the digest is taken over the old names, in the order of the fields below.
_NAMES_IN_DIGEST = {new.replace("-", "_"): old.replace("-", "_") for old, new in _NEW_KEYS.items()}


def _to_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


Listed = BeforeValidator(_to_tuple)


class Policy(BaseModel):
    """The limits of one data holder that no message can widen.

    Attributes:
        max_epsilon: The most that any image, or group of images, may ever have spent over all runs.
        delta: The delta of `max_epsilon`; a plan with a larger delta is refused.
        accountant: Which bound `max_epsilon` caps: `pld` for plans that were fixed in advance, `rdp` if later plans may
            depend on earlier results.
        min_noise_multiplier: A plan with less noise is refused, whatever its epsilon. With noise in shares it is the
            noise of the client's own share, unless `accept_honest_shares`.
        mechanisms: Allowed privacy mechanisms.
        tunings: Allowed ways of tuning; `last` stands for `last:<n>`.
        metrics: Allowed ways for counts of held-out images to leave.
        closing: Allowed values of `privacy.closing`. Histograms tell more of a model's scores than a confusion matrix.
        subgroup_columns: Columns of the holder's own table by whose values closing counts may be divided; `*` stands
            for any. The server names the column, and could otherwise choose one that nobody thought of.
        units: Allowed privacy units, single images or groups of images.
        min_cohort: A run that would go on with fewer clients in a round is refused. The holder trusts the server to
            keep to this number, as to the number of clients. Only of a secure sum the client sees how many are in it,
            and helps to open no smaller one.
        accept_group_bound: Allow to protect groups of images that were protected one by one before.
        expires: Last day on which anything is allowed; None for no end.
        classes: The only list of classes that a run may have; empty allows any list. The holder chooses it, and it need
            not be what the images have.
        aggregations: Allowed values of `privacy.aggregation`. Without `plain`, no update leaves except in a secure sum.
        roster: Digest of the only list of clients and their identity keys with which a secure sum may be made; empty
            allows no secure sum. The holder gets the list from the others and not from the server.
        accept_honest_shares: Believe that as many clients of a secure sum are honest as its plan says. `max_epsilon`
            then caps the cost under the noise of all of their shares. Otherwise it caps the cost under this client's
            own share alone, as if all others colluded with the server.
        max_epsilon_alone: The most that any image may have spent if all other clients colluded; None for no such cap.
        gradients: Allowed values of `training.gradients`. With `opacus` epsilon leaves out how the rounding of one
            gradient depends on the others, which a server that chooses the weights can make large.
        bundle: SHA-256 digest of the only code bundle that may run here; empty allows any bundle. The launcher checks
            it before any of the bundle's code runs.
    """

    model_config = ConfigDict(
        alias_generator=AliasGenerator(
            validation_alias=lambda name: name.replace("_", "-"),
            serialization_alias=lambda name: _NAMES_IN_DIGEST.get(name, name),
        ),
        extra="forbid",
        frozen=True,
        strict=True,
        populate_by_name=True,
    )

    max_epsilon: Annotated[float, Field(gt=0, allow_inf_nan=True)]
    delta: Annotated[float, Field(ge=1e-12, lt=1)]
    accountant: Literal["pld", "rdp"] = "pld"
    min_noise_multiplier: Annotated[float, Field(ge=0)] = 0.3
    mechanisms: Annotated[tuple[MechanismName, ...], Listed] = (DEFAULT_MECHANISM,)
    tunings: Annotated[tuple[Tuning, ...], Listed] = ("head",)
    metrics: Annotated[tuple[Metrics, ...], Listed] = ("none", "private")
    closing: Annotated[tuple[Closing, ...], Listed] = _MATRIX_ALONE
    subgroup_columns: Annotated[tuple[str, ...], Listed] = ()
    units: Annotated[tuple[Unit, ...], Listed] = ("image", "group")
    min_cohort: Annotated[int, Field(ge=1)] = 1
    accept_group_bound: bool = False
    expires: date | None = None
    classes: Annotated[tuple[str, ...], Listed] = ()
    bundle: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    aggregations: Annotated[tuple[Aggregation, ...], Listed] = _PLAIN_ALONE
    roster: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")] = ""
    accept_honest_shares: bool = False
    max_epsilon_alone: Annotated[float, Field(gt=0)] | None = None
    gradients: Annotated[tuple[Gradients, ...], Listed] = _AUTO_ALONE

    @property
    def digest(self) -> str:
        """The policy's name, 64 hex digits that follow from all fields."""
        return _digest_of(self)

    def check_run(self, config: RunConfig) -> None:
        """Refuse a run that no plan could make allowed.

        Raises:
            PolicyError: The run exceeds the policy. The text is for the holder and must not be sent to the server.
        """
        today = datetime.now(UTC).date()
        if self.expires is not None and today > self.expires:
            raise PolicyError(f"the policy ended on {self.expires}")
        tuning = config.tuning.partition(":")[0]
        of_units = (
            ("privacy.unit", config.privacy.unit, self.units),
            ("training.gradients", config.training.gradients, self.gradients),
        )
        wanted = (
            ("privacy.mechanism", config.privacy.mechanism, self.mechanisms),
            ("model.tuning", tuning, self.tunings),
            ("privacy.metrics", config.metrics, self.metrics),
            ("privacy.closing", config.privacy.closing, self.closing),
            ("privacy.aggregation", config.privacy.aggregation, self.aggregations),
            *(of_units if config.mechanism.clips_units else ()),
        )
        for setting, value, allowed in wanted:
            if value not in allowed:
                raise PolicyError(f"{setting}={value!r} is not allowed, only {', '.join(allowed) or 'nothing'}")
        column = config.data.subgroup_column
        if column and not {column, _ANY_COLUMN} & set(self.subgroup_columns):
            allowed_columns = ", ".join(self.subgroup_columns) or "none"
            raise PolicyError(f"data.subgroup-column={column!r} is not allowed, only {allowed_columns}")
        if self.classes and config.data.class_names != self.classes:
            raise PolicyError(
                f"data.classes={config.data.classes!r} is not the policy's list {', '.join(self.classes)!r}"
            )
        if config.min_updates < self.min_cohort:
            raise PolicyError(
                f"a round may go on with {config.min_updates} clients (min-clients), the policy wants at least "
                f"{self.min_cohort}"
            )

    def check_plan(self, plan: PrivacyPlan) -> None:
        """Refuse a plan with too little noise or too large a delta.

        Raises:
            PolicyError: The plan exceeds the policy.
        """
        if plan.delta > self.delta:
            raise PolicyError(f"delta {plan.delta:g} is larger than the policy's {self.delta:g}")
        # As with `official_figure`: a stated number of honest clients must not stand in for noise.
        shares = 1 if self.accept_honest_shares else plan.noise_shares or 1
        noise = plan.noise_multiplier / math.sqrt(shares)
        if noise < self.min_noise_multiplier:
            raise PolicyError(f"noise multiplier {noise:.4g} is less than the policy's {self.min_noise_multiplier:.4g}")

    def check_spent(self, spent: Spent, alone: Spent) -> None:
        """Refuse a total that exceeds one of the policy's caps.

        `alone` is what was spent if all other clients colluded, equal to `spent` without noise in shares.

        Raises:
            PolicyError: The total is above `max_epsilon` or `max_epsilon_alone`.
        """
        total = self.official_figure(spent, alone)
        # `not <=` also refuses NaN.
        if not total <= self.max_epsilon:
            raise PolicyError(
                f"epsilon would come to {_figure(total)} ({self.accountant.upper()}) over all runs on these "
                f"images{self._of_own_share(spent, alone)}, the policy allows {self.max_epsilon:g}"
            )
        most, total = self.max_epsilon_alone, self.capped_figure(alone)
        if most is not None and not total <= most:
            raise PolicyError(
                f"epsilon would come to {_figure(total)} ({self.accountant.upper()}) over all runs on these "
                f"images if all other clients colluded, the policy allows {most:g} (max-epsilon-alone)"
            )

    def _of_own_share(self, spent: Spent, alone: Spent) -> str:
        if self.accept_honest_shares or alone == spent:
            return ""
        return " under this client's own share of the noise (accept-honest-shares is false)"

    def official_figure(self, spent: Spent, alone: Spent) -> float:
        """Return the figure that `max_epsilon` caps, of two costs as in `check_spent`."""
        # Without the holder's word, a number of honest clients that a server states must not make a run cheaper.
        return self.capped_figure(spent if self.accept_honest_shares else alone)

    def capped_figure(self, spent: Spent) -> float:
        """Return the bound of a cost that the policy's accountant gives."""
        return spent.rdp if self.accountant == "rdp" else spent.pld


def _figure(epsilon: float) -> str:
    return "more than can be computed" if math.isinf(epsilon) else f"{epsilon:.4f}"


@lru_cache(maxsize=64)
def _digest_of(policy: Policy) -> str:
    # Policies from before a key existed must keep their digests.
    added = {key for key, value in _ADDED.items() if getattr(policy, key) == value}
    return hashlib.sha256(policy.model_dump_json(by_alias=True, exclude=added).encode()).hexdigest()


# The policy of a simulated client unless privacy.policy names a file. One person sets both sides of a simulation.
ANYTHING = Policy(
    max_epsilon=float("inf"),
    delta=0.999,
    min_noise_multiplier=0.0,
    mechanisms=tuple(MECHANISMS),
    tunings=("head", "bias", "norm", "lora", "last", "full"),
    metrics=("exact", "private", "none"),
    closing=("matrix", "full"),
    subgroup_columns=(_ANY_COLUMN,),
    aggregations=("plain", "secure"),
    accept_group_bound=True,
    accept_honest_shares=True,
    gradients=(AUTO, OPACUS),
)


def load_policy(file: Path) -> Policy:
    """Read a policy from a file.

    Raises:
        ConfigError: The file cannot be read or used. The text names the key, its value and what is allowed.
    """
    try:
        return _policy_of(file, file.read_bytes())
    except OSError as error:
        raise ConfigError(f"the policy {file} cannot be read ({error.strerror})") from None


@lru_cache(maxsize=64)
def _policy_of(file: Path, content: bytes) -> Policy:
    try:
        settings = tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the policy {file} is not a TOML file ({error})") from None
    try:
        return Policy.model_validate(_with_new_keys(settings, file))
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc']))}: {item['msg']}, got {item['input']!r}" for item in error.errors()
        ]
        raise ConfigError("\n".join([f"the policy {file} cannot be used", *lines])) from None


def _with_new_keys(settings: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """Return a file's settings under today's keys, warning about old keys."""
    renamed = dict(settings)
    for name in settings:
        key = _NEW_KEYS.get(name.replace("_", "-"))
        if key is None:
            continue
        # One of two limits would have to be ignored, so neither is accepted.
        if {key, key.replace("-", "_")} & renamed.keys():
            raise ConfigError(f"the policy {file} gives {key} twice, also under its old name {name}: keep one")
        _log.warning("%s: %s is now called %s; the old name still works", file.name, name, key)
        renamed[key] = renamed.pop(name)
    return renamed
