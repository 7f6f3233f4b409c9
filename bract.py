"""The command line, made of the commands of each room."""

import os

# Libraries read these when they are imported: they must be set first, and a user can override them.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")

import typer

from client.commands import cli as client_cli
from common.commands import cli as common_cli
from common.commands.help_text import unwrap_help
from server.commands import cli as server_cli
from simulations.commands import cli as simulations_cli

app = typer.Typer(
    name="bract",
    help="Private federated image classification on Flower.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
simulations_cli.mount(app)
common_cli.mount(app)
server_cli.mount(app)
client_cli.mount(app)
unwrap_help(app)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
