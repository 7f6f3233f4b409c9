"""A whole federated run, from enrollment to the closing evaluation."""

import gc
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.config.schema import RunConfig, parts
from common.errors import FederationError
from common.ledger.signed_heads import HeadKeeper
from common.messages.codec import Declaration, Findings
from common.messages.fields import Releases
from common.metrics import NoisedCounts
from common.models.initialization import initial_arrays
from common.privacy.plan import server_plan
from common.system.paths import bract_home
from server.aggregation.strategies import build_strategy, check_strategy, least_cohort
from server.late_joining import LateComers, join, unfit
from server.reporting.artifacts import draw_outcome, save_checkpoint_of, save_progress, save_statement
from server.reporting.trackers import FileTracker, Tracker, Trackers
from server.rounds.cohorts import draw_cohorts, shrunk_cohort
from server.rounds.enrollment import meet_clients
from server.rounds.loop import Arrays, Closing, Course, close_at_clients, evaluate_at_clients, run_rounds
from server.rounds.node_registry import NODES_FILE, NodeBook
from server.rounds.replies import Wire
from server.run_context import Surroundings
from server.state.checkpoint import Checkpoint
from server.state.phase_timer import Clock
from server.state.resume import left_out, open_checkpoint, restore, reunite
from server.state.run_directory import RunDirectory
from server.state.run_state import Outcome

# How long a round of real clients waits where round-deadline is left open.
_ROUND_DEADLINE = 600.0


def run_federation(grid: Grid, config: RunConfig, surround: Callable[[RunConfig], Surroundings]) -> Outcome:
    """Run a whole federation and leave its run directory.

    Ctrl-C drops the round that is under way, saves what is complete, and gives
    an outcome that says `interrupted`. With `resume` it goes on after the last round that
    was complete.

    Args:
        grid: Any Flower grid.
        config: The run.
        surround: Makes the surroundings, once, before any client is asked.

    Raises:
        ConfigError: A setting cannot be honoured, or another process runs this run; nothing was trained.
        FederationError: Clients disagree, or a round got too few updates.
    """
    clock = Clock()
    check_strategy(config)
    if config.resume:
        open_checkpoint(config)  # a mistake shows before anything is prepared
    around = surround(config)
    directory = RunDirectory.open(config) if config.resume else RunDirectory.create(config)
    with directory.alone():
        return _federate(grid, config, around, clock, directory)


def _federate(grid: Grid, config: RunConfig, around: Surroundings, clock: Clock, directory: RunDirectory) -> Outcome:
    strategy, releases = build_strategy(config), Releases.of(config)
    earlier = open_checkpoint(config) if config.resume else None  # as it is now that nobody else writes it
    wire = _wire(grid, config, releases, directory, around, earlier)
    outcome = _begin(wire, config, around, clock, earlier)
    if earlier is not None:
        restore(earlier, outcome, strategy, clock)
    save_statement(directory, outcome, wire.keeper)
    save_checkpoint_of(directory, outcome, strategy, clock)
    tracker = Trackers(FileTracker(directory.path / "rounds.jsonl", outcome.rounds), around.tracker)
    try:
        tracker.start(config.num_rounds, len(outcome.clients), len(outcome.rounds))
        _run(wire, strategy, outcome, around, clock, tracker, directory)
    except KeyboardInterrupt:
        pass
    finally:
        tracker.stop()
        with clock.phase("saving"):
            save_statement(directory, outcome, wire.keeper)
            draw_outcome(directory, outcome)
        save_progress(directory, outcome, clock)
    if outcome.status == "complete":  # said last, when everything else is written: what was killed before it goes on
        save_checkpoint_of(directory, outcome, strategy, clock)
        close_at_clients(wire, outcome.clients, seconds=_deadline(config, around))
    return outcome


def _deadline(config: RunConfig, around: Surroundings) -> float | None:
    """Seconds that a round waits; a simulation waits for its clients, which nothing can cut off."""
    return config.round_deadline or (None if around.simulated else _ROUND_DEADLINE)


def _least(config: RunConfig, around: Surroundings) -> int | None:
    """How many clients are enough to begin with; None for all."""
    return None if around.simulated else config.min_clients


def _run(
    wire: Wire,
    strategy: Strategy,
    outcome: Outcome,
    around: Surroundings,
    clock: Clock,
    tracker: Tracker,
    directory: RunDirectory,
) -> None:
    config = outcome.config

    def joined() -> None:
        save_statement(directory, outcome, wire.keeper)
        save_checkpoint_of(directory, outcome, strategy, clock)

    simulates_evaluation = config.private and config.metrics != "exact"
    course = Course(
        outcome.clients,
        outcome.cohorts,
        min_clients=max(config.min_clients or 1, least_cohort(config)[0]),
        central=server_plan(config) if config.privacy.mechanism == "client-dp" else None,
        evaluate=around.evaluate if simulates_evaluation else None,
        seconds=_deadline(config, around),
        retries=config.round_retries,
        max_update_norm=config.max_update_norm,
        before=[bool(line.get("skipped")) for line in outcome.rounds],
        before_round=_nobody if around.simulated else LateComers(wire, outcome, joined).look,
    )
    gc.freeze()  # some of Flower's strategies collect garbage for every array: what is loaded by now is none
    with clock.phase("rounds"):
        first = len(outcome.cohorts) + 1 if outcome.early else len(outcome.rounds) + 1
        for result in run_rounds(wire, strategy, outcome.arrays, course, first=first):
            outcome.add(result)
            # The checkpoint first: a round that is not in it has told nobody anything, and may be run again.
            save_checkpoint_of(directory, outcome, strategy, clock)
            tracker.round_done(outcome.rounds[-1])
            save_progress(directory, outcome, clock)
            if outcome.early:
                break
    with clock.phase("closing_evaluation"):
        outcome.close(_close(wire, strategy, outcome, around))
    with clock.phase("accounting"):
        outcome.finish()


def _wire(
    grid: Grid,
    config: RunConfig,
    releases: Releases,
    directory: RunDirectory,
    around: Surroundings,
    earlier: Checkpoint | None,
) -> Wire:
    run_id = secrets.token_hex(16) if earlier is None else str(earlier.facts["run"])
    nodes, real = None, not around.simulated
    if config.node_keys:
        folder = _home()
        nodes = NodeBook(folder / NODES_FILE)
    if not releases.signed:
        return Wire(grid, releases, run_id, nodes=nodes, one_by_one=real)
    files = [directory.path / "heads.jsonl"]
    if not around.simulated:  # what a ledger had once must be there in every later run
        files.append(_home() / "heads.jsonl")
    return Wire(grid, releases, run_id, HeadKeeper(files), nodes, one_by_one=real)


def _nobody(_: int) -> None:
    """In a simulation nobody comes late."""


def _home() -> Path:
    folder = bract_home() / "server"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _begin(wire: Wire, config: RunConfig, around: Surroundings, clock: Clock, earlier: Checkpoint | None) -> Outcome:
    """Meet the clients and make every plan; nothing has been trained yet, or nothing since the checkpoint."""
    for phase, seconds in around.seconds.items():
        clock.add(phase, seconds)
    with clock.phase("meet_clients"):
        meeting = meet_clients(
            wire.grid,
            config.num_clients,
            run_id=wire.run_id,
            keeper=wire.keeper,
            nodes=wire.nodes,
            classes=parts(config.data.classes) if _least(config, around) else (),
            refuse=partial(unfit, config),
            one_by_one=wire.one_by_one,
            least=_least(config, around),
            wait_seconds=config.join_deadline,
        )
    clients = dict(meeting.clients)
    joined: dict[str, int] = {}
    if earlier is not None:
        clients, joined = reunite(earlier, meeting, least=_least(config, around)), dict(earlier.facts["joined"])
        known = earlier.facts["clients"]
        joined |= {name: len(earlier.facts["rounds"]) + 1 for name in clients if name not in known}
        meeting = replace(meeting, refusals={**meeting.refusals, **left_out(earlier, meeting)})
    first = {name: client for name, client in clients.items() if name not in joined}
    declared = next(iter(clients.values())).declaration
    outcome = Outcome(
        config,
        wire.run_id,
        first,
        meeting.refusals,
        _cohorts(config, list(first)),
        _travelling(config, declared),
        around.class_counts,
        images_unused=around.images_unused,
        skipped_files=around.skipped_files,
        simulated=around.simulated,
        turned_away=meeting.turned_away,
    )
    with clock.phase("accounting"):
        outcome.register()
        for name in joined:  # in the order in which they came: each takes the room that those before it left
            join(outcome, clients[name], joined[name])
    return outcome


def _cohorts(config: RunConfig, names: list[str]) -> list[list[str]]:
    """Cohorts of those that take part; smaller ones where some do not, so that nobody's plan is exceeded."""
    size = shrunk_cohort(config, len(names))
    if size < (config.min_clients or 1):
        raise FederationError(
            f"only {len(names)} of {config.num_clients} clients take part: a round of {size} of them is less "
            f"than min-clients={config.min_clients or 1}"
        )
    return draw_cohorts(names, cohort_size=size, num_rounds=config.num_rounds, seed=config.seed)


def _travelling(config: RunConfig, declared: Declaration) -> Arrays:
    """The starting model without what stays at each client."""
    arrays = initial_arrays(config, declared.input_shape, declared.classes)
    if not config.model.personal:
        return arrays
    from common.models.classifier import personal_names

    kept = personal_names(config, declared.input_shape, len(declared.classes))
    return {name: array for name, array in arrays.items() if name not in kept}


def _close(wire: Wire, strategy: Strategy, outcome: Outcome, around: Surroundings) -> Closing:
    """What is found of the final model: by the clients as far as it may leave, and beside them in a simulation."""
    config, last = outcome.config, len(outcome.cohorts)
    found: Closing = {}
    if config.metrics != "none":
        found, outcome.closing_failures = evaluate_at_clients(
            wire, strategy, outcome.final, outcome.clients, last, seconds=_deadline(config, around)
        )
    if config.private and config.metrics != "exact" and around.evaluate_by_client:
        seen = around.evaluate_by_client(outcome.final)
        return {name: Findings(seen.get(name), noised=_noised(found, name)) for name in {*seen, *found}}
    return found


def _noised(found: Closing, name: str) -> NoisedCounts | None:
    return found[name].noised if name in found else None
