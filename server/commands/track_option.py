"""Option that names experiment trackers."""

from typing import Annotated

import typer

Track = Annotated[
    list[str] | None,
    typer.Option(
        "--track",
        metavar="NAME",
        help="Also copy the run's figures to tensorboard, mlflow or wandb; may be repeated.",
    ),
]
