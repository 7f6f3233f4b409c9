"""ServerApp main: configure, build, run, save."""

from collections.abc import Callable
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common.config.loading import parse
from common.config.schema import RunConfig
from common.errors import BractError, ConfigError
from server.federation import run_federation
from server.run_context import RunContext
from server.state.run_directory import leave_word


def create_app(make_context: Callable[[RunConfig], RunContext]) -> ServerApp:
    """A ServerApp with surroundings made from its configuration.

    Args:
        make_context: See `run_federation`.
    """
    created = ServerApp()

    @created.main()
    def main(grid: Grid, context: Context) -> None:
        config = parse(context.run_config)
        try:
            run_federation(grid, config, make_context)
        except BractError as error:
            if not (config.resume and isinstance(error, ConfigError)):  # which says that nothing was touched
                leave_word(Path(config.output_dir), error)
            raise

    return created


app = create_app(lambda _: RunContext())
