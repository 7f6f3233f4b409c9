"""The files and pictures that a run leaves."""

from typing import Any

from flwr.serverapp.strategy import Strategy

from common.ledger.signed_heads import HeadKeeper
from common.metrics import total
from server.reporting.model_card import model_card
from server.reporting.plots import draw_confusion, draw_curves, draw_partition
from server.reporting.privacy_statement import Parties, privacy_statement
from server.reporting.summary import summarise
from server.rounds.round_record import figures, personal_figures
from server.state.checkpoint import save_checkpoint
from server.state.phase_timer import Clock
from server.state.resume import checkpoint_of
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState


def save_progress(directory: RunDirectory, state: RunState, clock: Clock) -> None:
    """Write model and summary after a round, so that they are true even if the process is killed.

    The cost does not depend on the number of clients.
    """
    directory.write_model(state.final, model_card(state))
    directory.write_json("summary.json", summarise(state, clock.seconds()))


def save_checkpoint_of(directory: RunDirectory, state: RunState, strategy: Strategy, clock: Clock) -> None:
    """Write all that a fresh process needs to go on after the last complete round."""
    save_checkpoint(directory.path, checkpoint_of(state, strategy, clock))


def save_statement(directory: RunDirectory, state: RunState, keeper: HeadKeeper | None) -> None:
    """Write the privacy statement: the whole plan before round 1, what was charged at the end."""
    statement = privacy_statement(
        state.config,
        state.privacy_cost,
        status=state.status,
        run_id=state.run_id,
        parties=Parties(
            state.refusals,
            {} if keeper is None else keeper.latest(state.clients),
            state.joined,
            state.bundles,
        ),
        simulated=state.context.simulated,
        early=state.early,
    )
    directory.write_json("privacy.json", statement)


def draw_outcome(directory: RunDirectory, state: RunState) -> None:
    """Draw the pictures of a run that has ended, early or not."""
    folder = directory.path
    counts = state.counts()
    marks = " (simulation only)" if state.config.private else ""
    if counts is not None:
        title = f"model after round {state.evaluated_model}, {counts.num_examples} held-out images{marks}"
        draw_confusion(folder / "confusion.png", counts.confusion, state.classes, title)
    whose = "all clients" if state.config.private else "each round's clients"
    draw_curves(folder / "curves.png", [*state.rounds, *_closing_line(state)], f"held-out images of {whose}{marks}")
    context = state.context
    if context.class_counts is not None:
        draw_partition(
            folder / "partition.png", context.class_counts, state.classes, images_unused=context.images_unused
        )


def _closing_line(state: RunState) -> list[dict[str, Any]]:
    """The closing evaluation as one more point of the curves; under DP the last round has it already."""
    counts = total(state.closing.exact.values())
    if counts is None or state.config.private or not counts.num_examples:
        return []
    personal = personal_figures(state.personal_counts())
    return [{"evaluated_model": state.final_round, **figures(counts), **personal}]
