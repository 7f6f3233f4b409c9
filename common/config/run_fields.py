"""The fields of a run's settings."""

from typing import Annotated

from pydantic import Field

from common.config.evaluation import EvaluationConfig, StoppingConfig
from common.config.sections import (
    DataConfig,
    EmptyIsNone,
    ModelConfig,
    OpenFloat,
    OpenInt,
    PositiveFloat,
    PositiveInt,
    PrivacyConfig,
    Section,
    StrategyConfig,
    SystemConfig,
    TrainingConfig,
)


class RunFields(Section):
    """Settings of a run, each by itself.

    `common.config.schema.RunConfig` checks them against each other.
    """

    seed: int = Field(ge=0, lt=2**63, description="Root of all public random choices; private noise never uses it.")
    num_rounds: PositiveInt = Field(description="Rounds of training.")
    num_clients: PositiveInt = Field(description="Clients of the run.")
    client_fraction: float = Field(
        gt=0, le=1, description="Share of clients in each round; nobody is drawn twice before everybody was drawn once."
    )
    min_clients: Annotated[int | None, Field(ge=0), EmptyIsNone] = Field(
        description="Fewest usable updates of a round, and with real clients how many are enough to begin. Empty: four "
        "fifths of a round's planned clients, at least 2 and what the strategy needs. 0: all clients to begin, and "
        "then one update."
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
    evaluation: EvaluationConfig
    stopping: StoppingConfig
    system: SystemConfig
