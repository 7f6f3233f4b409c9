"""ServerApp main: configure, build, run, save."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from common.config import parse
from common.metrics import Counts
from common.models.initial import initial_arrays
from common.sections import RunConfig
from server.aggregation import build_strategy
from server.clock import Clock
from server.cohort import draw_cohorts
from server.outcome import Outcome, draw_outcome, save_progress, save_statement
from server.rounds import Arrays, Evaluate, evaluate_at_clients, meet_clients, run_rounds
from server.run_directory import RunDirectory
from server.tracking import FileTracker, LogTracker, Tracker, Trackers


@dataclass(frozen=True)
class Surroundings:
    """What is around a federation, outside every client and message.

    Attributes:
        tracker: Listens to the rounds.
        evaluate: Counts a model's predictions on all held-out images; simulations
            only, None elsewhere.
        evaluate_by_client: The same, by client name.
        class_counts: (classes, clients) images held; simulations only.
        seconds: Seconds of phases that came before the run, such as `features`.
    """

    tracker: Tracker = field(default_factory=LogTracker)
    evaluate: Evaluate | None = None
    evaluate_by_client: Callable[[Arrays], dict[str, Counts]] | None = None
    class_counts: np.ndarray | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)


def run_federation(grid: Grid, config: RunConfig, surround: Callable[[RunConfig], Surroundings]) -> Outcome:
    """Run a whole federation and leave its run directory.

    Ctrl-C drops the round that is under way, saves what is complete, and gives
    an outcome that says `interrupted`.

    Args:
        grid: Any Flower grid.
        config: The run.
        surround: Makes the surroundings, once, before any client is asked.

    Raises:
        ConfigError: A setting cannot be honoured; nothing was trained.
        FederationError: Clients disagree, or a round got no update.
    """
    clock = Clock()
    strategy = build_strategy(config)
    around = surround(config)
    for phase, seconds in around.seconds.items():
        clock.add(phase, seconds)
    with clock.phase("meet_clients"):
        clients = meet_clients(grid, config.num_clients)
    cohorts = draw_cohorts(
        list(clients), cohort_size=config.cohort_size, num_rounds=config.num_rounds, seed=config.seed
    )
    declared = next(iter(clients.values())).declaration
    arrays = initial_arrays(config, declared.input_shape, len(declared.classes))
    outcome = Outcome(config, clients, cohorts, arrays, around.class_counts)
    with clock.phase("accounting"):
        outcome.register()
    directory = RunDirectory.create(config)
    save_statement(directory, outcome)
    evaluate = around.evaluate if config.private else None
    tracker = Trackers(FileTracker(directory.path / "rounds.jsonl"), around.tracker)
    try:
        tracker.start(config.num_rounds, len(clients))
        with clock.phase("rounds"):
            for result in run_rounds(grid, strategy, outcome.arrays, clients, cohorts, evaluate=evaluate):
                outcome.add(result)
                tracker.round_done(result.record)
                save_progress(directory, outcome, clock)
        with clock.phase("closing_evaluation"):
            outcome.closing = _close(grid, strategy, outcome, around)
        with clock.phase("accounting"):
            outcome.finish()
    except KeyboardInterrupt:
        pass
    finally:
        tracker.stop()
        with clock.phase("saving"):
            save_statement(directory, outcome)
            draw_outcome(directory, outcome)
        save_progress(directory, outcome, clock)
    return outcome


def _close(grid: Grid, strategy: Strategy, outcome: Outcome, around: Surroundings) -> dict[str, Counts]:
    """Counts of the final model by client: from the clients, or beside them under DP."""
    if not outcome.config.private:
        return evaluate_at_clients(grid, strategy, outcome.arrays, outcome.clients, len(outcome.cohorts))
    return around.evaluate_by_client(outcome.arrays) if around.evaluate_by_client else {}


def create_app(surround: Callable[[RunConfig], Surroundings]) -> ServerApp:
    """A ServerApp with surroundings made from its configuration.

    Args:
        surround: See `run_federation`.
    """
    created = ServerApp()

    @created.main()
    def main(grid: Grid, context: Context) -> None:
        run_federation(grid, parse(context.run_config), surround)

    return created


app = create_app(lambda _: Surroundings())
