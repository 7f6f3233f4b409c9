"""Flower ServerApp that runs one federation."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config.loading import parse
from common.config.schema import RunConfig
from common.errors import BractError, ConfigError
from server.federation import run_federation
from server.reporting.run_page.report import try_report
from server.run_context import RunContext
from server.state.run_directory import write_stop_reason


def create_app(make_context: Callable[[RunConfig], RunContext]) -> ServerApp:
    """Return a ServerApp whose main function runs a whole federation."""
    created = ServerApp()

    @created.main()
    def main(grid: Grid, context: Context) -> None:
        config = parse(context.run_config)
        try:
            run_federation(grid, config, make_context)
        except BractError as error:
            # A resume that is refused with a ConfigError must leave the run's folder as it was.
            if not (config.resume and isinstance(error, ConfigError)):
                write_stop_reason(Path(config.output_dir), error)
                try_report(Path(config.output_dir))
            raise

    return created


app = create_app(lambda _: RunContext())
