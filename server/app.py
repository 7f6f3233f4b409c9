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
from common.records import Declaration, Findings
from common.releases import Releases
from common.sections import RunConfig
from server.aggregation import build_strategy
from server.clock import Clock
from server.cohort import draw_cohorts
from server.outcome import Outcome
from server.rounds import Arrays, Closing, Evaluate, evaluate_at_clients, meet_clients, run_rounds
from server.run_directory import RunDirectory
from server.saving import draw_outcome, save_progress, save_statement
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
        images_unused: Images that the partitioner gave to nobody; simulations only.
        skipped_files: Files that could not be used; simulations only, because a real
            client keeps that number to itself.
        seconds: Seconds of phases that came before the run, such as `features`.
    """

    tracker: Tracker = field(default_factory=LogTracker)
    evaluate: Evaluate | None = None
    evaluate_by_client: Callable[[Arrays], dict[str, Counts]] | None = None
    class_counts: np.ndarray | None = None
    images_unused: int = 0
    skipped_files: int = 0
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
    strategy, releases = build_strategy(config), Releases.of(config)
    around = surround(config)
    outcome = _begin(grid, config, around, clock)
    directory = RunDirectory.create(config)
    save_statement(directory, outcome)
    evaluate = around.evaluate if config.private else None
    tracker = Trackers(FileTracker(directory.path / "rounds.jsonl"), around.tracker)
    try:
        tracker.start(config.num_rounds, len(outcome.clients))
        with clock.phase("rounds"):
            start, clients, cohorts = outcome.arrays, outcome.clients, outcome.cohorts
            for result in run_rounds(grid, strategy, start, clients, cohorts, releases=releases, evaluate=evaluate):
                outcome.add(result)
                tracker.round_done(result.record)
                save_progress(directory, outcome, clock)
        with clock.phase("closing_evaluation"):
            outcome.close(_close(grid, strategy, outcome, around))
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


def _begin(grid: Grid, config: RunConfig, around: Surroundings, clock: Clock) -> Outcome:
    """Meet the clients and make every plan; nothing has been trained yet."""
    for phase, seconds in around.seconds.items():
        clock.add(phase, seconds)
    with clock.phase("meet_clients"):
        clients = meet_clients(grid, config.num_clients)
    cohorts = draw_cohorts(
        list(clients), cohort_size=config.cohort_size, num_rounds=config.num_rounds, seed=config.seed
    )
    declared = next(iter(clients.values())).declaration
    outcome = Outcome(
        config,
        clients,
        cohorts,
        _travelling(config, declared),
        around.class_counts,
        images_unused=around.images_unused,
        skipped_files=around.skipped_files,
    )
    with clock.phase("accounting"):
        outcome.register()
    return outcome


def _travelling(config: RunConfig, declared: Declaration) -> Arrays:
    """The starting model without what stays at each client."""
    arrays = initial_arrays(config, declared.input_shape, declared.classes)
    if not config.model.personal:
        return arrays
    from common.models.network import personal_names

    kept = personal_names(config, declared.input_shape, len(declared.classes))
    return {name: array for name, array in arrays.items() if name not in kept}


def _close(grid: Grid, strategy: Strategy, outcome: Outcome, around: Surroundings) -> Closing:
    """What is found of the final model by client: by the clients, or beside them under DP."""
    config, last = outcome.config, len(outcome.cohorts)
    if not config.private:
        releases = Releases.of(config)
        return evaluate_at_clients(grid, strategy, outcome.arrays, outcome.clients, last, releases=releases)
    found = around.evaluate_by_client(outcome.arrays) if around.evaluate_by_client else {}
    return {name: Findings(counts) for name, counts in found.items()}


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
