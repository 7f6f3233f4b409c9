"""The sections of a run's evaluation and its early end."""

from typing import Literal

from pydantic import Field

from common.config.sections import OpenFloat, PositiveInt, Section


class EvaluationConfig(Section):
    """The evaluation of the model during a run."""

    every: PositiveInt = Field(
        description="Number of rounds from one count of held-out images to the next; the final model is counted too. "
        "Fewer counts have less noise each."
    )
    folder: str = Field(
        description="Public labelled images at the server, a folder or a table with the run's classes, on which it "
        "evaluates the global model. No client is asked for that. Empty: none."
    )
    folder_every: PositiveInt = Field(
        description="Number of rounds from one evaluation on `evaluation.folder` to the next; the final model is "
        "evaluated too."
    )


class StoppingConfig(Section):
    """The early end of a run and the choice of its model."""

    patience: int = Field(
        ge=0, description="Counted rounds without a better model after which a run stops; 0 never stops it."
    )
    keep: Literal["last", "best"] = Field(description="Round whose model is kept.")
    max_epsilon: OpenFloat = Field(
        description="Most epsilon that the run may cost any client. It becomes a smaller number of rounds before the "
        "first one, where the planned rounds would cost more. Empty: `num-rounds` stands."
    )
