"""Bract's Python interface and command line, made of each room's parts.

Nothing heavy is imported before it is used.
"""

import os
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

# Libraries read these when they are imported: they must be set first, and a user can override them.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# tqdm says so in every notebook without ipywidgets. Bract shows none of its bars.
warnings.filterwarnings("ignore", message="IProgress not found")

if TYPE_CHECKING:
    import typer

    from common.errors import BractError
    from common.inference.classifier import Classifier, load_model
    from common.inference.run_folder import Run, open_run
    from simulations.python_api import simulate

    app: typer.Typer

__all__ = ["BractError", "Classifier", "Run", "load_model", "open_run", "simulate"]

# Name -> module that has it.
_MODULES = {
    "BractError": "common.errors",
    "Classifier": "common.inference.classifier",
    "Run": "common.inference.run_folder",
    "load_model": "common.inference.classifier",
    "open_run": "common.inference.run_folder",
    "simulate": "simulations.python_api",
}
# Rooms with commands, in the order of the help.
_ROOMS = ("simulations", "common", "server", "client")


def __getattr__(name: str) -> Any:
    if name not in (*_MODULES, "app"):
        raise AttributeError(f"module 'bract' has no attribute {name!r}")
    value = _command_line() if name == "app" else getattr(import_module(_MODULES[name]), name)
    # Found without this function from now on.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _command_line() -> "typer.Typer":
    import typer

    from common.commands.help_text import unwrap_help

    made = typer.Typer(
        name="bract",
        help="Private federated image classification on Flower.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for room in _ROOMS:
        import_module(f"{room}.commands.cli").mount(made)
    unwrap_help(made)
    return made


def main() -> None:
    """Run the command line."""
    _command_line()()


if __name__ == "__main__":
    main()
