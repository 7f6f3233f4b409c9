"""Whole federated run, from enrollment to the closing evaluation."""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.arrays import Arrays
from common.config.loading import defaults, resolved
from common.config.schema import RunConfig
from common.errors import ConfigError, FederationError
from common.inference.earlier_model import EarlierModel, open_earlier_model
from common.ledger.signed_heads import HeadKeeper
from common.messages.codec import Declaration
from common.messages.fields import Releases
from common.messages.secure_words import SecureWords
from common.models.initialization import initial_arrays
from common.privacy.noise_error import CURRENT_SAMPLER, FLOATING_POINT
from common.system.files import make_folder, write_atomic
from common.system.paths import bract_home
from server.aggregation.statistics_head import head_solver
from server.aggregation.strategies import build_strategy, check_strategy
from server.aggregation.summed_steps import SummedSteps
from server.late_joining import LateJoinHandler, rejection_reason
from server.reporting.artifacts import draw_outcome, save_checkpoint_of, save_progress, save_readme, save_statement
from server.reporting.counts_file import save_counts
from server.reporting.run_page.report import try_report
from server.reporting.trackers import FileTracker, Tracker, Trackers
from server.rounds.closing_evaluation import ClosingEvaluation, close_at_clients, evaluate_at_clients
from server.rounds.cohorts import draw_cohorts, shrunk_cohort
from server.rounds.enrollment import EnrolledClient, Enrollment, enroll_clients
from server.rounds.loop import RoundSettings, run_rounds
from server.rounds.node_registry import NODES_FILE, NodeRegistry
from server.rounds.replies import Channel
from server.rounds.secure_rounds import SecureRounds
from server.rounds.secure_setup import SecureSession, SetupExchange
from server.rounds.waiting import Waiting
from server.run_context import RunContext
from server.state.checkpoint import Checkpoint
from server.state.initial_model import INITIAL_FILE, keep_facts
from server.state.phase_timer import Clock
from server.state.resume import match_clients, mismatched_clients, open_checkpoint, restore
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState

# What all clients have announced for secure sums. Nothing in it is secret.
SETUP_FILE = "secure-setup.bin"


def run_federation(grid: Grid, config: RunConfig, make_context: Callable[[RunConfig], RunContext]) -> RunState:
    """Run a whole federation and write its run directory.

    Ctrl-C drops the open round, saves what is complete, and returns a state with the status `interrupted`. With
    `resume` the run continues after its last complete round. `make_context` is called once, before any client is asked.

    Raises:
        ConfigError: A setting cannot be honoured, or another process runs this run; nothing was trained.
        FederationError: Clients disagree, or a round got too few updates.
    """
    clock = Clock()
    check_strategy(config)
    start = None if config.resume else open_earlier_model(config.model, config.data.class_names)
    settings, releases = resolved(config), Releases.of(config)
    if config.resume:
        # A mistake must show before images are prepared, which can take minutes.
        open_checkpoint(Path(config.output_dir), settings)
    context = make_context(config)
    directory = RunDirectory.open(Path(config.output_dir)) if config.resume else RunDirectory.create(config)
    if context.record_images is not None and not config.resume:
        context.record_images(directory.path)
    with directory.lock():
        # Read the checkpoint again: before the lock another process could have replaced it.
        earlier = open_checkpoint(directory.path, settings) if config.resume else None
        if config.resume and earlier is None:
            start = open_earlier_model(config.model, config.data.class_names)
        initial = keep_facts(directory.path, start, directory.write_json)
        if config.model.initial and initial is None:
            raise ConfigError(
                f"--resume {directory.path}: its {INITIAL_FILE} is missing; restore it, or start a new run"
            )
        channel = Channel(
            grid,
            releases,
            # On disk before any client is asked: a client that has agreed to a run knows it by this id.
            directory.run_id(None if earlier is None else str(earlier.facts["run"])),
            _head_keeper(directory, simulated=context.simulated) if releases.signed else None,
            NodeRegistry(_server_folder() / NODES_FILE) if config.node_keys else None,
            one_by_one=not context.simulated,
            # A simulation waits for all its clients, because none of them can be cut off.
            reply_seconds=_reply_seconds(config.round_deadline, simulated=context.simulated),
            waiting=Waiting(directory.path, grid.get_node_ids, max(config.min_updates, config.strategy.min_cohort[0])),
        )
        strategy = build_strategy(config)
        state, turned_away = _begin(channel, config, context, clock, earlier, start)
        state.initial = initial
        if earlier is not None:
            restore(earlier, state, strategy, clock)
        _Run(channel, strategy, state, clock, directory, turned_away).execute()
    return state


def _reply_seconds(round_deadline: float | None, *, simulated: bool) -> float | None:
    """Return the seconds that a round waits for replies, None for all."""
    # Nothing can cut off a simulated client, so waiting for it always ends.
    if simulated:
        return None
    # Runs from before this setting had a default hold an empty value.
    return round_deadline or float(defaults()["round-deadline"])


@dataclass(frozen=True)
class _Run:
    """Objects that work together from the first round to the last file."""

    channel: Channel
    strategy: Strategy
    state: RunState
    clock: Clock
    directory: RunDirectory
    turned_away: frozenset[int]

    def execute(self) -> None:
        """Run all rounds that are left and write every file."""
        state = self.state
        self._save_registration()
        tracker = Trackers(FileTracker(self.directory.path / "rounds.jsonl", state.rounds), state.context.tracker)
        try:
            tracker.start(state.config.num_rounds, len(state.clients), len(state.rounds))
            self._run_rounds(tracker)
            with self.clock.phase("closing_evaluation"):
                state.closing = self._evaluate_final_model()
                state.evaluate_publicly()
            with self.clock.phase("accounting"):
                state.finish()
        except KeyboardInterrupt:
            pass
        finally:
            tracker.stop()
            with self.clock.phase("saving"):
                statement = save_statement(self.directory, state, self.channel.keeper)
                draw_outcome(self.directory, state)
                save_counts(self.directory, state)
            save_progress(self.directory, state, self.clock)
            save_readme(self.directory, state, statement)
            if state.context.reports:
                try_report(self.directory.path)
        if state.status == "complete":
            # The last file to be written. A process that is killed before it leaves a run that can be resumed.
            self._save_checkpoint()
            close_at_clients(self.channel, state.clients if state.context.sizes is None else {})

    def _run_rounds(self, tracker: Tracker) -> None:
        state, config, context = self.state, self.state.config, self.state.context
        late_joining = LateJoinHandler(self.channel, state, turned_away=self.turned_away, saved=self._save_registration)
        settings = RoundSettings(
            state.clients,
            state.cohorts,
            min_clients=max(config.min_updates, config.strategy.min_cohort[0]),
            central=config.plan(config.cohort_size) if config.mechanism.noise_at_server else None,
            evaluate=context.evaluate if config.private and config.metrics != "exact" else None,
            public_test=context.public_test,
            public_every=config.evaluation.folder_every,
            retries=config.round_retries,
            max_update_norm=config.max_update_norm,
            skipped_before=[bool(line.get("skipped")) for line in state.rounds],
            secure=self._secure_rounds,
            # The clients of a simulation are never late.
            before_round=(lambda _: None) if context.simulated else late_joining.poll,
            solve=self._solve if config.takes_statistics else None,
            folder=self.directory.path,
        )
        # Some of Flower's strategies run the garbage collector for every array. Freezing spares it from
        # walking all modules and features that are loaded by now, none of which is garbage.
        gc.freeze()
        with self.clock.phase("rounds"):
            first = len(state.cohorts) + 1 if state.early else len(state.rounds) + 1
            for result in run_rounds(self.channel, self.strategy, state.arrays, settings, first=first):
                state.add(result)
                if settings.secure is not None and settings.secure.steps is not None:
                    state.momentum = settings.secure.steps.momentum
                # The checkpoint comes first. A round that is not in it has been shown to no one and may be repeated.
                self._save_checkpoint()
                tracker.round_done(state.rounds[-1])
                save_progress(self.directory, state, self.clock)
                if state.early:
                    break

    def _solve(self, names: Sequence[str], sums: Iterable[Arrays]) -> Arrays:
        """Return the head that follows from the clients' sums."""
        # Looked up when the sums are there: a late client may have come after the rounds' settings were made.
        state = self.state
        units = {name: client.declaration.num_units for name, client in state.clients.items()}
        shares = {} if state.privacy_cost is None else state.privacy_cost.shares
        noise = {name: share.plan.client_noise_stddev for name, share in shares.items()}
        return head_solver(state.config.training.statistics, units, noise)(names, sums)

    @cached_property
    def _secure_rounds(self) -> SecureRounds | None:
        """Secure sums of the run, None where updates come one by one."""
        state, config, file = self.state, self.state.config, self.directory.path / SETUP_FILE
        if config.secure is None:
            return None
        sizes = {name: client.declaration.num_units for name, client in state.clients.items()}
        shapes = {name: array.shape for name, array in state.arrays.items()}
        # All that is used of a plan is equal for all clients. The largest has the strictest check.
        plan = config.plan(max(sizes.values())) if config.is_local_dp else None
        words = SecureWords(shapes, len(state.classes), self.channel.releases, sizes, config.num_clients, plan)
        # The clients of a resumed run still hold the secrets of the rounds that are left.
        if file.exists():
            state.secure_session = SecureSession.from_bytes(file.read_bytes(), words)
            return self._rounds_of(state.secure_session)
        seconds = None if state.context.simulated else config.join_deadline
        exchange = SetupExchange(self.channel, state.clients, words, config.secure, config.num_rounds, seconds)
        with self.clock.phase("secure_setup"):
            state.secure_session, failures = exchange.run()
        state.refusals |= {f"client {name}": code for name, code in failures.items()}
        write_atomic(file, state.secure_session.to_bytes(), durable=not state.context.simulated, mode=0o600)
        self._save_registration()
        return self._rounds_of(state.secure_session)

    def _rounds_of(self, session: SecureSession) -> SecureRounds:
        config, words, training = self.state.config, session.words, self.state.config.training
        steps = None
        if words.plan is not None and config.sums_gradients:
            steps = SummedSteps(
                words.plan,
                total_units=sum(words.sizes[name] for name in session.present),
                num_clients=len(session.present),
                rule=training.step_rule,
                rate=training.learning_rate,
                factor=training.momentum,
            )
            # A resumed run goes on with the momentum of its last complete round.
            steps.momentum = self.state.momentum
        return SecureRounds(session, config.num_rounds, resolved(config), steps)

    def _evaluate_final_model(self) -> ClosingEvaluation:
        """Evaluate the final model at the clients.

        In a private simulation it is evaluated outside them too.
        """
        state, config = self.state, self.state.config
        closing = ClosingEvaluation()
        if config.metrics != "none":
            closing = evaluate_at_clients(
                self.channel,
                self.strategy,
                state.final,
                state.clients,
                len(state.cohorts),
                self._secure_rounds,
            )
        evaluate = state.context.evaluate_by_client
        if config.private and config.metrics != "exact" and evaluate:
            return closing.with_exact(evaluate(state.final))
        return closing

    def _save_registration(self) -> None:
        save_statement(self.directory, self.state, self.channel.keeper)
        self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        save_checkpoint_of(self.directory, self.state, self.strategy, self.clock)


def _head_keeper(directory: RunDirectory, *, simulated: bool) -> HeadKeeper:
    files = [directory.path / "heads.jsonl"]
    if not simulated:
        # Entries that a real ledger has shown must be in it in every later run too.
        files.append(_server_folder() / "heads.jsonl")
    return HeadKeeper(files, durable=not simulated)


def _server_folder() -> Path:
    folder = bract_home() / "server"
    make_folder(folder, mode=0o700)
    return folder


def _begin(
    channel: Channel,
    config: RunConfig,
    context: RunContext,
    clock: Clock,
    earlier: Checkpoint | None,
    start: EarlierModel | None,
) -> tuple[RunState, frozenset[int]]:
    """Enroll the clients and make every plan.

    Return the state, and the nodes that were turned away.
    """
    for phase, seconds in context.seconds.items():
        clock.add(phase, seconds)
    # The clients of a simulation are all there, so one that cannot answer is a mistake to be fixed.
    min_clients = None if context.simulated else config.min_clients or None
    with clock.phase("meet_clients"):
        enrollment = enroll_clients(
            channel.grid,
            config.num_clients,
            run_id=channel.run_id,
            keeper=channel.keeper,
            nodes=channel.nodes,
            min_clients=min_clients,
            classes=config.data.class_names if min_clients else (),
            reject=partial(rejection_reason, config),
            one_by_one=channel.one_by_one,
            waiting=channel.waiting,
            wait_seconds=config.join_deadline,
            sizes=context.sizes,
        )
    clients, joined, mismatched = _clients_of(enrollment, earlier, min_clients)
    first = {name: client for name, client in clients.items() if name not in joined}
    # With fewer clients a cohort of the planned size would exceed each client's plan, so it shrinks too.
    cohort_size = shrunk_cohort(config.cohort_size, config.num_clients, taking_part=len(first))
    refusals = {**enrollment.refusals, **mismatched}
    if cohort_size < config.min_updates:
        raise FederationError(_too_few(len(first), config.num_clients, cohort_size, config.min_updates, refusals))
    state = RunState(
        config,
        channel.run_id,
        first,
        refusals,
        draw_cohorts(list(first), cohort_size=cohort_size, num_rounds=config.num_rounds, seed=config.seed),
        _initial_arrays(config, next(iter(clients.values())).declaration, start),
        context,
        # Checkpoints of earlier versions name no sampler. Theirs had no bound, and a part of the run was noised by it.
        sampler=CURRENT_SAMPLER if earlier is None else earlier.facts.get("sampler", FLOATING_POINT),
    )
    with clock.phase("accounting"):
        state.register()
        _refuse_beyond_budget(state)
        # In the order of joining: each client takes the room that those before it left.
        for name, server_round in joined.items():
            state.join(clients[name], server_round)
    return state, enrollment.turned_away


def _refuse_beyond_budget(state: RunState) -> None:
    """Refuse a plan that costs more than `stopping.max-epsilon`.

    Raises:
        ConfigError: It does. No client has been asked to train.
    """
    most, cost = state.config.stopping.max_epsilon, state.privacy_cost
    if most is not None and cost is not None and cost.epsilon_max > most:
        raise ConfigError(
            f"stopping.max-epsilon={most:g}, but {state.config.num_rounds} rounds cost epsilon "
            f"{cost.epsilon_max:.3f}: set num-rounds lower, or start the run by a `bract` command, which does so itself"
        )


def _too_few(num_clients: int, planned: int, cohort_size: int, min_updates: int, refusals: Mapping[str, str]) -> str:
    """Return the error text for a run in which too few clients take part."""
    listed = ", ".join(f"{client} ({reason})" for client, reason in list(refusals.items())[:5])
    return (
        f"only {num_clients} of {planned} clients take part: a round of {cohort_size} of them is less than "
        f"min-clients={min_updates}"
        + (f"\n  not taking part: {listed}" if listed else "")
        + "\n  wait for the others, or lower min-clients to go on without them"
    )


def _clients_of(
    enrollment: Enrollment, earlier: Checkpoint | None, min_clients: int | None
) -> tuple[Mapping[str, EnrolledClient], dict[str, int], dict[str, str]]:
    """Return the clients of a run after matching them with its checkpoint.

    Return clients by name, the first round of each late one, and refusals.
    """
    if earlier is None:
        return enrollment.clients, {}, {}
    clients = match_clients(earlier, enrollment, min_clients=min_clients)
    known, next_round = earlier.facts["clients"], len(earlier.facts["rounds"]) + 1
    joined = dict(earlier.facts["joined"]) | {name: next_round for name in clients if name not in known}
    return clients, joined, mismatched_clients(earlier, enrollment)


def _initial_arrays(config: RunConfig, declared: Declaration, start: EarlierModel | None) -> Arrays:
    """Return the initial model without tensors that stay with clients."""
    arrays = initial_arrays(config, declared.input_shape, declared.classes)
    if start is not None:
        return start.start(
            config.model,
            arrays,
            classes=declared.classes,
            input_shape=declared.input_shape,
            backbone_sha256=declared.backbone_hash,
        )
    if not config.model.personal:
        return arrays
    # Imported here, because it loads torch, which most runs do not need.
    from common.models.classifier import build_network, personal_names

    kept = personal_names(build_network(config, declared.input_shape, len(declared.classes)), config.model)
    return {name: array for name, array in arrays.items() if name not in kept}
