"""The sections of a run configuration as frozen typed models; `common.config.loading` reads them."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from common.errors import PrivacyError
from common.privacy.mechanisms import MECHANISMS, Mechanism
from common.privacy.plan import PrivacyPlan, PublicConstants

Unit = Literal["image", "group"]
Metrics = Literal["exact", "private", "none"]
Partitioner = Literal["dirichlet", "iid", "pathological", "shards", "size-skew", "natural"]
Head = Literal["linear", "mlp", "text"]
Personal = Literal["", "head", "batchnorm-affine"]
StrategyName = Literal[
    "FedAvg",
    "FedAvgM",
    "FedProx",
    "FedAdam",
    "FedYogi",
    "FedAdagrad",
    "FedMedian",
    "FedTrimmedAvg",
    "Krum",
    "MultiKrum",
    "Bulyan",
    "QFedAvg",
]
# Strategies that average uniformly, or only reshape an average: what clipping and noise at the server go with.
UNIFORM_STRATEGIES = ("FedAvg", "FedAvgM", "FedProx", "FedAdam", "FedYogi", "FedAdagrad")
TUNINGS = ("head", "bias", "norm", "lora", "last:<n>", "full")
AUGMENTATIONS = ("crop", "flip", "colour", "trivial")


def _is_mechanism(value: str) -> str:
    if value not in MECHANISMS:
        raise ValueError(f"{value!r} is not a privacy mechanism; there are {', '.join(MECHANISMS)}")
    return value


def _kebab(name: str) -> str:
    return name.replace("_", "-")


def _unset_to_none(value: Any) -> Any:
    return None if value == "" else value


def _is_tuning(value: str) -> str:
    if value not in TUNINGS and not re.fullmatch(r"last:[1-9]\d*", value):
        raise ValueError(f"{value!r} is no way of tuning; there are {', '.join(TUNINGS)}")
    if value == "last:<n>":
        raise ValueError("write how many groups of layers, such as last:1")
    return value


def _are_augmentations(value: str) -> str:
    unknown = set(split_list(value)) - set(AUGMENTATIONS)
    if unknown:
        raise ValueError(
            f"{', '.join(sorted(unknown))} unknown; there are {', '.join(AUGMENTATIONS)}, joined by commas"
        )
    return value


def split_list(listed: str) -> tuple[str, ...]:
    """The items of a comma-separated setting.

    >>> split_list("crop, flip")
    ('crop', 'flip')
    >>> split_list("")
    ()
    """
    return tuple(item.strip() for item in listed.split(",") if item.strip())


class _Section(BaseModel):
    model_config = ConfigDict(alias_generator=_kebab, extra="forbid", frozen=True, strict=True, populate_by_name=True)


MechanismName = Annotated[str, AfterValidator(_is_mechanism)]
PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
OpenInt = Annotated[PositiveInt | None, BeforeValidator(_unset_to_none)]
OpenCount = Annotated[Annotated[int, Field(ge=0)] | None, BeforeValidator(_unset_to_none)]
OpenFloat = Annotated[PositiveFloat | None, BeforeValidator(_unset_to_none)]
# Outside of these floating point, not privacy, would decide how far a clipped gradient reaches.
OpenBound = Annotated[
    Annotated[float, Field(ge=1e-6, le=1e6, allow_inf_nan=False)] | None, BeforeValidator(_unset_to_none)
]
OpenRate = Annotated[Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None, BeforeValidator(_unset_to_none)]
OpenNotNegative = Annotated[NotNegative | None, BeforeValidator(_unset_to_none)]
OpenBelowOne = Annotated[BelowOne | None, BeforeValidator(_unset_to_none)]


class DataConfig(_Section):
    """Where the images come from and how they are dealt to clients."""

    source: Annotated[str, Field(min_length=1)]
    path: str
    classes: str
    max_bad_fraction: Annotated[float, Field(ge=0, le=1)]
    partitioner: Partitioner
    alpha: PositiveFloat
    classes_per_client: PositiveInt
    shards_per_client: PositiveInt
    size_skew: Literal["linear", "square", "exponential"]
    min_client_size: PositiveInt
    image_size: Annotated[Annotated[int, Field(ge=4, le=1024)] | None, BeforeValidator(_unset_to_none)]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]


class ModelConfig(_Section):
    """The shared backbone, its head, and which part of them is trained and travels."""

    backbone: Annotated[str, Field(min_length=1)]
    weights: str
    weights_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    head: Head
    tuning: Annotated[Annotated[str, AfterValidator(_is_tuning)] | None, BeforeValidator(_unset_to_none)]
    lora_rank: PositiveInt
    personal: Personal


class TrainingConfig(_Section):
    """A client's local training. `batch_size` is the expected batch under DP."""

    optimizer: Literal["sgd", "adamw"]
    learning_rate: OpenRate
    momentum: BelowOne
    weight_decay: NotNegative
    schedule: Literal["constant", "linear", "cosine"]
    warmup_rounds: Annotated[int, Field(ge=0)]
    local_epochs: PositiveInt
    batch_size: PositiveInt
    label_smoothing: BelowOne
    augmentation: Annotated[str, AfterValidator(_are_augmentations)]
    rotation_weight: NotNegative
    autocast: Literal["none", "bfloat16"]


class StrategyConfig(_Section):
    """The Flower strategy that aggregates updates; what is left open keeps Flower's own default."""

    name: StrategyName
    server_learning_rate: OpenFloat
    server_momentum: OpenBelowOne
    beta_1: OpenBelowOne
    beta_2: OpenBelowOne
    tau: OpenFloat
    proximal_mu: OpenNotNegative
    trim_fraction: OpenBelowOne
    num_malicious: OpenCount
    num_selected: OpenInt
    q: OpenNotNegative


class PrivacyConfig(_Section):
    """Everything that changes the guarantee, and nothing else."""

    mechanism: MechanismName
    unit: Unit
    # More than 100 promises nothing, and costs the accountant gigabytes.
    target_epsilon: Annotated[Annotated[float, Field(gt=0, le=100)] | None, BeforeValidator(_unset_to_none)]
    noise_multiplier: OpenFloat
    delta: Annotated[float, Field(ge=1e-12, lt=1)]
    max_grad_norm: OpenBound
    clipping_norm: OpenBound
    metrics: Annotated[Metrics | None, BeforeValidator(_unset_to_none)]
    counts_noise: Annotated[float, Field(ge=0.5, le=1e6)]
    closing_noise: Annotated[float, Field(ge=0.5, le=1e6)]
    policy: str


class StoppingConfig(_Section):
    """When to stop before the last round, and which round's model to keep."""

    patience: Annotated[int, Field(ge=0)]
    keep: Literal["last", "best"]


class SystemConfig(_Section):
    """What only changes speed and memory."""

    device: Literal["auto", "cpu", "cuda", "mps"]
    physical_batch_size: OpenInt
    ledger: Literal["simulated", "durable"]
    bundle: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]


class RunConfig(_Section):
    """A whole run. Build it with `common.config.loading.parse`, which also fills in what was left open."""

    seed: Annotated[int, Field(ge=0, lt=2**63)]
    num_rounds: PositiveInt
    num_clients: PositiveInt
    client_fraction: Fraction
    min_clients: OpenInt
    join_deadline: PositiveFloat
    round_deadline: OpenFloat
    round_retries: Annotated[int, Field(ge=0, le=100)]
    max_update_norm: OpenFloat
    max_num_units: OpenInt
    node_keys: bool
    output_dir: str
    resume: bool
    data: DataConfig
    model: ModelConfig
    training: TrainingConfig
    strategy: StrategyConfig
    privacy: PrivacyConfig
    stopping: StoppingConfig
    system: SystemConfig

    @model_validator(mode="after")
    def _parts_fit_each_other(self) -> "RunConfig":
        model, training = self.model, self.training
        if model.backbone == "cnn" and (self.tuning != "full" or model.head != "linear" or model.personal):
            raise ValueError(
                "model.backbone='cnn' is trained from scratch, with model.tuning='full' and model.head='linear'; got "
                f"model.tuning={model.tuning!r}, model.head={model.head!r}, model.personal={model.personal!r}"
            )
        trains_head_only = model.backbone != "cnn" and model.tuning in (None, "head")
        if trains_head_only and training.rotation_weight:
            raise ValueError(
                "training.rotation-weight shapes the backbone, and model.tuning='head' leaves it frozen: use one of "
                f"{', '.join(TUNINGS[1:])}"
            )
        if trains_head_only and model.personal:
            raise ValueError(
                f"model.personal={model.personal!r} with model.tuning='head' leaves nothing that travels: use one of "
                f"{', '.join(TUNINGS[1:])}"
            )
        if model.backbone == "cnn" and training.rotation_weight:
            raise ValueError("training.rotation-weight goes with pretrained backbones, not with model.backbone='cnn'")
        if training.optimizer == "adamw" and training.momentum:
            raise ValueError("training.momentum belongs to training.optimizer='sgd'; adamw has its own")
        if self.private and self.strategy.name == "QFedAvg":
            raise ValueError(
                "strategy.name='QFedAvg' needs each client's exact loss, which privacy.mechanism="
                f"{self.privacy.mechanism!r} never releases: use another strategy, or privacy.mechanism='none'"
            )
        self._check_privacy()
        if self.strategy.name == "QFedAvg" and (training.optimizer != "sgd" or training.momentum):
            raise ValueError(
                "strategy.name='QFedAvg' reads how far a client moved as learning rate times gradient: it needs "
                "training.optimizer='sgd' and training.momentum=0"
            )
        return self

    def _check_privacy(self) -> None:
        mechanism, metrics = self.mechanism, self.metrics
        if mechanism.needs_uniform_average and self.strategy.name not in UNIFORM_STRATEGIES:
            raise ValueError(
                f"strategy.name={self.strategy.name!r} does not go with privacy.mechanism={mechanism.name!r}, whose "
                f"noise is for a uniform average: use one of {', '.join(UNIFORM_STRATEGIES)}"
            )
        if self.privacy.unit not in mechanism.units:
            fitting = " or ".join(repr(other.name) for other in MECHANISMS.values() if self.privacy.unit in other.units)
            raise ValueError(f"privacy.unit={self.privacy.unit!r} goes with privacy.mechanism={fitting}")
        if metrics not in mechanism.metrics:
            fitting = " or ".join(repr(other.name) for other in MECHANISMS.values() if metrics in other.metrics)
            raise ValueError(
                f"privacy.metrics={metrics!r} goes with privacy.mechanism={fitting}: "
                f"{mechanism.why_not_metrics(metrics)}"
            )
        if metrics == "none" and (self.stopping.patience or self.stopping.keep == "best"):
            raise ValueError(
                "stopping.patience and stopping.keep='best' choose by the clients' counts, and privacy.metrics='none' "
                "lets none leave"
            )
        if self.private and metrics == "exact" and (self.stopping.patience or self.stopping.keep == "best"):
            raise ValueError(
                "stopping.patience and stopping.keep='best' would choose by exact counts, which no epsilon covers: use "
                "privacy.metrics='private'"
            )
        if self.min_clients is not None and self.min_clients > self.cohort_size:
            raise ValueError(f"min-clients={self.min_clients} but a round has only {self.cohort_size} clients")
        if mechanism.noise_at_server and self.max_update_norm is not None:
            raise ValueError(
                f"max-update-norm leaves whole updates out; with privacy.mechanism={mechanism.name!r} they are clipped "
                "instead, by privacy.clipping-norm"
            )

    @property
    def metrics(self) -> str:
        """How clients' counts leave: as set, or what goes with the mechanism where that was left open."""
        return self.privacy.metrics or self.mechanism.metrics[0]

    @property
    def tuning(self) -> str:
        """The way of tuning, also where the configuration left it open."""
        return self.model.tuning or ("full" if self.model.backbone == "cnn" else "head")

    @property
    def caches_features(self) -> bool:
        """Whether images pass a frozen backbone once in their life, and clients train on the features."""
        return self.tuning == "head" and not self.training.augmentation

    @property
    def needs_no_torch(self) -> bool:
        """Whether training needs NumPy alone: a linear head on cached features."""
        return self.caches_features and self.model.head != "mlp"

    @property
    def private(self) -> bool:
        """Whether a differential-privacy mechanism is on, at the clients or at the server."""
        return self.mechanism.private

    @property
    def is_local_dp(self) -> bool:
        """Whether each client adds its own noise and trusts nobody else with what it sends."""
        return self.mechanism.noise_at_client

    @property
    def mechanism(self) -> Mechanism:
        """The privacy mechanism, which knows what else goes with it."""
        return MECHANISMS[self.privacy.mechanism]

    @property
    def public_constants(self) -> PublicConstants:
        """The settings that privacy plans follow from."""
        privacy = self.privacy
        if privacy.max_grad_norm is None or privacy.clipping_norm is None:
            raise PrivacyError("the clip bounds are not filled in: build a RunConfig with common.config.loading.parse")
        return PublicConstants(
            target_epsilon=privacy.target_epsilon,
            noise_multiplier=privacy.noise_multiplier,
            delta=privacy.delta,
            unit=privacy.unit,
            max_grad_norm=privacy.max_grad_norm,
            clipping_norm=privacy.clipping_norm,
            metrics=self.metrics,
            counts_noise=privacy.counts_noise,
            closing_noise=privacy.closing_noise,
            batch_size=self.training.batch_size,
            local_epochs=self.training.local_epochs,
            num_clients=self.num_clients,
            cohort_size=self.cohort_size,
            participations=self.participations,
        )

    def plan(self, num_units: int) -> PrivacyPlan:
        """Return the plan that protects a client of `num_units` declared units.

        Raises:
            ConfigError: The settings admit no plan for so many units.
            PrivacyError: The mechanism adds no noise.
        """
        return self.mechanism.plan(self.public_constants, num_units)

    @property
    def cohort_size(self) -> int:
        """Clients a round: the fraction rounded down, at least one."""
        return max(1, int(self.num_clients * self.client_fraction + 1e-9))

    @property
    def participations(self) -> int:
        """The most rounds one client takes part in; cohorts are drawn to keep it this low."""
        return -(-self.num_rounds * self.cohort_size // self.num_clients)


def float_keys() -> frozenset[str]:
    """Dotted kebab-case keys of settings that are floating-point numbers, open ones included."""
    found: set[str] = set()
    for name, field in RunConfig.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, _Section):
            leaves = {f"{name}.{_kebab(leaf)}": inner for leaf, inner in section.model_fields.items()}
        else:
            leaves = {_kebab(name): field}
        found |= {key for key, inner in leaves.items() if "float" in str(inner.annotation)}
    return frozenset(found)
