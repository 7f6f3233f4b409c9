"""A whole federated run, from enrollment to the closing evaluation."""

import gc
import secrets
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.config.schema import RunConfig, split_list
from common.errors import FederationError
from common.ledger.signed_heads import HeadKeeper
from common.messages.codec import Declaration, Evaluation
from common.messages.fields import Releases
from common.metrics import NoisedCounts
from common.models.initialization import initial_arrays
from common.system.paths import bract_home
from server.aggregation.strategies import build_strategy, check_strategy, least_cohort
from server.late_joining import LateJoinHandler, join, rejection_reason
from server.reporting.artifacts import draw_outcome, save_checkpoint_of, save_progress, save_statement
from server.reporting.trackers import FileTracker, Tracker, Trackers
from server.rounds.cohorts import draw_cohorts, shrunk_cohort
from server.rounds.enrollment import enroll_clients
from server.rounds.loop import Arrays, Closing, RoundSettings, close_at_clients, evaluate_at_clients, run_rounds
from server.rounds.node_registry import NODES_FILE, NodeRegistry
from server.rounds.replies import Channel
from server.run_context import RunContext
from server.state.checkpoint import Checkpoint
from server.state.phase_timer import Clock
from server.state.resume import match_clients, mismatched_clients, open_checkpoint, restore
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState

# How long a round of real clients waits where round-deadline is left open.
_ROUND_DEADLINE = 600.0


def run_federation(grid: Grid, config: RunConfig, make_context: Callable[[RunConfig], RunContext]) -> RunState:
    """Run a whole federation and leave its run directory.

    Ctrl-C drops the round that is under way, saves what is complete, and gives
    an outcome that says `interrupted`. With `resume` it goes on after the last round that
    was complete.

    Args:
        grid: Any Flower grid.
        config: The run.
        make_context: Makes the surroundings, once, before any client is asked.

    Raises:
        ConfigError: A setting cannot be honoured, or another process runs this run; nothing was trained.
        FederationError: Clients disagree, or a round got too few updates.
    """
    clock = Clock()
    check_strategy(config)
    if config.resume:
        open_checkpoint(config)  # a mistake shows before anything is prepared
    context = make_context(config)
    directory = RunDirectory.open(config) if config.resume else RunDirectory.create(config)
    with directory.alone():
        return _federate(grid, config, context, clock, directory)


def _federate(grid: Grid, config: RunConfig, context: RunContext, clock: Clock, directory: RunDirectory) -> RunState:
    strategy, releases = build_strategy(config), Releases.of(config)
    earlier = open_checkpoint(config) if config.resume else None  # as it is now that nobody else writes it
    channel = _channel(grid, config, releases, directory, context, earlier)
    state = _begin(channel, config, context, clock, earlier)
    if earlier is not None:
        restore(earlier, state, strategy, clock)
    save_statement(directory, state, channel.keeper)
    save_checkpoint_of(directory, state, strategy, clock)
    tracker = Trackers(FileTracker(directory.path / "rounds.jsonl", state.rounds), context.tracker)
    try:
        tracker.start(config.num_rounds, len(state.clients), len(state.rounds))
        _run(channel, strategy, state, context, clock, tracker, directory)
    except KeyboardInterrupt:
        pass
    finally:
        tracker.stop()
        with clock.phase("saving"):
            save_statement(directory, state, channel.keeper)
            draw_outcome(directory, state)
        save_progress(directory, state, clock)
    if state.status == "complete":  # said last, when everything else is written: what was killed before it goes on
        save_checkpoint_of(directory, state, strategy, clock)
        close_at_clients(channel, state.clients, seconds=_deadline(config, context))
    return state


def _deadline(config: RunConfig, context: RunContext) -> float | None:
    """Seconds that a round waits; a simulation waits for its clients, which nothing can cut off."""
    return config.round_deadline or (None if context.simulated else _ROUND_DEADLINE)


def _least(config: RunConfig, context: RunContext) -> int | None:
    """How many clients are enough to begin with; None for all."""
    return None if context.simulated else config.min_clients


def _run(
    channel: Channel,
    strategy: Strategy,
    state: RunState,
    context: RunContext,
    clock: Clock,
    tracker: Tracker,
    directory: RunDirectory,
) -> None:
    config = state.config

    def joined() -> None:
        save_statement(directory, state, channel.keeper)
        save_checkpoint_of(directory, state, strategy, clock)

    simulates_evaluation = config.private and config.metrics != "exact"
    settings = RoundSettings(
        state.clients,
        state.cohorts,
        min_clients=max(config.min_clients or 1, least_cohort(config)[0]),
        central=config.plan(config.cohort_size) if config.mechanism.noise_at_server else None,
        evaluate=context.evaluate if simulates_evaluation else None,
        seconds=_deadline(config, context),
        retries=config.round_retries,
        max_update_norm=config.max_update_norm,
        before=[bool(line.get("skipped")) for line in state.rounds],
        before_round=_nobody if context.simulated else LateJoinHandler(channel, state, joined).poll,
    )
    gc.freeze()  # some of Flower's strategies collect garbage for every array: what is loaded by now is none
    with clock.phase("rounds"):
        first = len(state.cohorts) + 1 if state.early else len(state.rounds) + 1
        for result in run_rounds(channel, strategy, state.arrays, settings, first=first):
            state.add(result)
            # The checkpoint first: a round that is not in it has told nobody anything, and may be run again.
            save_checkpoint_of(directory, state, strategy, clock)
            tracker.round_done(state.rounds[-1])
            save_progress(directory, state, clock)
            if state.early:
                break
    with clock.phase("closing_evaluation"):
        state.close(_close(channel, strategy, state, context))
    with clock.phase("accounting"):
        state.finish()


def _channel(
    grid: Grid,
    config: RunConfig,
    releases: Releases,
    directory: RunDirectory,
    context: RunContext,
    earlier: Checkpoint | None,
) -> Channel:
    run_id = secrets.token_hex(16) if earlier is None else str(earlier.facts["run"])
    nodes, real = None, not context.simulated
    if config.node_keys:
        folder = _home()
        nodes = NodeRegistry(folder / NODES_FILE)
    if not releases.signed:
        return Channel(grid, releases, run_id, nodes=nodes, one_by_one=real)
    files = [directory.path / "heads.jsonl"]
    if not context.simulated:  # what a ledger had once must be there in every later run
        files.append(_home() / "heads.jsonl")
    return Channel(grid, releases, run_id, HeadKeeper(files), nodes, one_by_one=real)


def _nobody(_: int) -> None:
    """In a simulation nobody comes late."""


def _home() -> Path:
    folder = bract_home() / "server"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _begin(
    channel: Channel, config: RunConfig, context: RunContext, clock: Clock, earlier: Checkpoint | None
) -> RunState:
    """Meet the clients and make every plan; nothing has been trained yet, or nothing since the checkpoint."""
    for phase, seconds in context.seconds.items():
        clock.add(phase, seconds)
    with clock.phase("meet_clients"):
        enrollment = enroll_clients(
            channel.grid,
            config.num_clients,
            run_id=channel.run_id,
            keeper=channel.keeper,
            nodes=channel.nodes,
            classes=split_list(config.data.classes) if _least(config, context) else (),
            refuse=partial(rejection_reason, config),
            one_by_one=channel.one_by_one,
            least=_least(config, context),
            wait_seconds=config.join_deadline,
        )
    clients = dict(enrollment.clients)
    joined: dict[str, int] = {}
    if earlier is not None:
        clients, joined = (
            match_clients(earlier, enrollment, least=_least(config, context)),
            dict(earlier.facts["joined"]),
        )
        known = earlier.facts["clients"]
        joined |= {name: len(earlier.facts["rounds"]) + 1 for name in clients if name not in known}
        enrollment = replace(enrollment, refusals={**enrollment.refusals, **mismatched_clients(earlier, enrollment)})
    first = {name: client for name, client in clients.items() if name not in joined}
    declared = next(iter(clients.values())).declaration
    state = RunState(
        config,
        channel.run_id,
        first,
        enrollment.refusals,
        _cohorts(config, list(first)),
        _travelling(config, declared),
        context.class_counts,
        images_unused=context.images_unused,
        skipped_files=context.skipped_files,
        simulated=context.simulated,
        turned_away=enrollment.turned_away,
    )
    with clock.phase("accounting"):
        state.register()
        for name in joined:  # in the order in which they came: each takes the room that those before it left
            join(state, clients[name], joined[name])
    return state


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


def _close(channel: Channel, strategy: Strategy, state: RunState, context: RunContext) -> Closing:
    """What is found of the final model: by the clients as far as it may leave, and beside them in a simulation."""
    config, last = state.config, len(state.cohorts)
    found: Closing = {}
    if config.metrics != "none":
        found, state.closing_failures = evaluate_at_clients(
            channel, strategy, state.final, state.clients, last, seconds=_deadline(config, context)
        )
    if config.private and config.metrics != "exact" and context.evaluate_by_client:
        seen = context.evaluate_by_client(state.final)
        return {name: Evaluation(seen.get(name), noised=_noised(found, name)) for name in {*seen, *found}}
    return found


def _noised(found: Closing, name: str) -> NoisedCounts | None:
    return found[name].noised if name in found else None
