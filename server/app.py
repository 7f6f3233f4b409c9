"""ServerApp main: configure, build, run, save."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import Strategy

from common.config import RunConfig, parse
from common.metrics import Counts
from common.models.head import initial_head
from common.streams import public_stream
from server.aggregation import build_strategy
from server.clock import Clock
from server.cohort import draw_cohorts
from server.outcome import Outcome, save_outcome
from server.rounds import Arrays, Client, Evaluate, evaluate_at_clients, meet_clients, run_rounds
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
    outcome = Outcome(config, clients, cohorts, _initial_arrays(config, clients), around.class_counts)
    with clock.phase("accounting"):
        outcome.check_plans()
    directory = RunDirectory.create(config)
    outcome.directory = directory.path
    tracker = Trackers(FileTracker(directory.path / "rounds.jsonl"), around.tracker)
    try:
        tracker.start(config.num_rounds, len(clients))
        _train(grid, strategy, outcome, around, clock, tracker)
        outcome.status = "complete"
    except KeyboardInterrupt:
        outcome.status = "interrupted"
    finally:
        tracker.stop()
        save_outcome(directory, outcome, clock)
    return outcome


def _train(
    grid: Grid, strategy: Strategy, outcome: Outcome, around: Surroundings, clock: Clock, tracker: Tracker
) -> None:
    """All rounds, then the closing evaluation."""
    config, clients = outcome.config, outcome.clients
    evaluate = around.evaluate if config.private else None
    with clock.phase("rounds"):
        for result in run_rounds(grid, strategy, outcome.arrays, clients, outcome.cohorts, evaluate=evaluate):
            outcome.add(result)
            tracker.round_done(result.record)
    with clock.phase("closing_evaluation"):
        if not config.private:
            outcome.closing = evaluate_at_clients(grid, strategy, outcome.arrays, clients, config.num_rounds)
        elif around.evaluate_by_client is not None:
            outcome.closing = around.evaluate_by_client(outcome.arrays)


def _initial_arrays(config: RunConfig, clients: Mapping[str, Client]) -> Arrays:
    declared = next(iter(clients.values())).declaration
    if config.model.tuning == "head":
        return initial_head(declared.input_shape[0], len(declared.classes))
    from common.models.cnn import initial_cnn

    return initial_cnn(declared.input_shape, len(declared.classes), public_stream(config.seed, "weights"))


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
