"""The settings of a run as one frozen typed model.

`common.config.loading.parse` makes it, and fills in the settings that were left empty.
"""

from pydantic import Field, model_validator

from common.config.sections import (
    AUGMENTATIONS,
    TUNINGS,
    UNIFORM_STRATEGIES,
    DataConfig,
    Mechanism,
    Metrics,
    ModelConfig,
    OpenFloat,
    OpenInt,
    Partitioner,
    PositiveFloat,
    PositiveInt,
    PrivacyConfig,
    Section,
    StoppingConfig,
    StrategyConfig,
    StrategyName,
    SystemConfig,
    TrainingConfig,
    Unit,
    split_list,
)

__all__ = [
    "AUGMENTATIONS",
    "TUNINGS",
    "DataConfig",
    "Mechanism",
    "Metrics",
    "ModelConfig",
    "Partitioner",
    "PrivacyConfig",
    "RunConfig",
    "StoppingConfig",
    "StrategyConfig",
    "StrategyName",
    "SystemConfig",
    "TrainingConfig",
    "Unit",
    "split_list",
]


class RunConfig(Section):
    """The settings of a whole run."""

    seed: int = Field(ge=0, lt=2**63, description="Root of all public random choices; private noise never uses it.")
    num_rounds: PositiveInt = Field(description="Rounds of training.")
    num_clients: PositiveInt = Field(description="Clients of the run.")
    client_fraction: float = Field(
        gt=0, le=1, description="Share of clients in each round; nobody is drawn twice before everybody was drawn once."
    )
    min_clients: OpenInt = Field(
        description="Fewest usable updates of a round, and with real clients how many are enough to begin. Empty: one "
        "update, and all clients to begin."
    )
    join_deadline: PositiveFloat = Field(description="Seconds in which real clients must declare themselves.")
    round_deadline: OpenFloat = Field(
        description="Seconds in which real clients must send an update; a simulation waits without limit. Empty: the "
        "default."
    )
    round_retries: int = Field(
        ge=0, le=100, description="How often a round with too few usable updates is tried again before it is skipped."
    )
    max_update_norm: OpenFloat = Field(
        description="Longest update, in weight units, that is used. Empty: compared with the other updates alone."
    )
    max_num_units: OpenInt = Field(description="Most units that a client may declare. Empty: any number.")
    node_keys: bool = Field(
        description="Whether each client has an admitted key, so that the server remembers it; set by `bract run`."
    )
    output_dir: str = Field(description="Folder for the results. Empty: a new folder in `runs/`.")
    resume: bool = Field(description="Continue the interrupted run in `output-dir`; set by `--resume`.")
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
        mechanism, metrics = self.privacy.mechanism, self.metrics
        if mechanism == "client-dp" and self.strategy.name not in UNIFORM_STRATEGIES:
            raise ValueError(
                f"strategy.name={self.strategy.name!r} does not go with privacy.mechanism='client-dp', whose noise is "
                f"for a uniform average: use one of {', '.join(UNIFORM_STRATEGIES)}"
            )
        if self.privacy.unit == "group" and mechanism != "dp-sgd":
            raise ValueError("privacy.unit='group' goes with privacy.mechanism='dp-sgd'")
        if metrics == "private" and mechanism != "dp-sgd":
            raise ValueError(
                "privacy.metrics='private' goes with privacy.mechanism='dp-sgd': "
                + (
                    "one client can change all of its counts; use none"
                    if mechanism == "client-dp"
                    else "without a mechanism counts are exact"
                )
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
        if mechanism == "client-dp" and self.max_update_norm is not None:
            raise ValueError(
                "max-update-norm leaves whole updates out; with privacy.mechanism='client-dp' they are clipped "
                "instead, by privacy.clipping-norm"
            )

    @property
    def metrics(self) -> Metrics:
        """How clients' counts leave: as set, or what goes with the mechanism where that was left open."""
        by_mechanism: dict[str, Metrics] = {"none": "exact", "dp-sgd": "private", "client-dp": "none"}
        return self.privacy.metrics or by_mechanism[self.privacy.mechanism]

    @property
    def tuning(self) -> str:
        """The value of `model.tuning`, with the default of the backbone for an empty one."""
        return self.model.tuning or ("full" if self.model.backbone == "cnn" else "head")

    @property
    def caches_features(self) -> bool:
        """True if clients train on features that a frozen backbone computed once."""
        return self.tuning == "head" and not self.training.augmentation

    @property
    def needs_no_torch(self) -> bool:
        """True if NumPy alone can train, as for a linear head on cached features."""
        return self.caches_features and self.model.head != "mlp"

    @property
    def private(self) -> bool:
        """Whether a differential-privacy mechanism is on, at the clients or at the server."""
        return self.privacy.mechanism != "none"

    @property
    def noises_gradients(self) -> bool:
        """Whether clients train under DP themselves, and trust nobody else with what they send."""
        return self.privacy.mechanism == "dp-sgd"

    @property
    def cohort_size(self) -> int:
        """Number of clients in a round, at least 1."""
        # 0.29 * 100 is 28.999... in floating point, and means 29.
        return max(1, int(self.num_clients * self.client_fraction + 1e-9))

    @property
    def participations(self) -> int:
        """Largest number of rounds in which one client takes part."""
        # Cohorts are drawn so that nobody exceeds the even share, rounded up.
        return -(-self.num_rounds * self.cohort_size // self.num_clients)
