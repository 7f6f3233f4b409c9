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
from server.state.run_state import Outcome


def save_progress(directory: RunDirectory, outcome: Outcome, clock: Clock) -> None:
    """Write model and summary after a round, so that they are true even if the process is killed.

    The cost does not depend on the number of clients.
    """
    directory.write_model(outcome.final, model_card(outcome))
    directory.write_json("summary.json", summarise(outcome, clock.seconds()))


def save_checkpoint_of(directory: RunDirectory, outcome: Outcome, strategy: Strategy, clock: Clock) -> None:
    """Write all that a fresh process needs to go on after the last complete round."""
    save_checkpoint(directory.path, checkpoint_of(outcome, strategy, clock))


def save_statement(directory: RunDirectory, outcome: Outcome, keeper: HeadKeeper | None) -> None:
    """Write the privacy statement: the whole plan before round 1, what was charged at the end."""
    statement = privacy_statement(
        outcome.config,
        outcome.spending,
        status=outcome.status,
        run_id=outcome.run_id,
        parties=Parties(
            outcome.refusals,
            {} if keeper is None else keeper.latest(outcome.clients),
            outcome.joined,
            outcome.bundles,
        ),
        simulated=outcome.simulated,
        early=outcome.early,
    )
    directory.write_json("privacy.json", statement)


def draw_outcome(directory: RunDirectory, outcome: Outcome) -> None:
    """Draw the pictures of a run that has ended, early or not."""
    folder = directory.path
    counts = outcome.counts()
    marks = " (simulation only)" if outcome.config.private else ""
    if counts is not None:
        title = f"model after round {outcome.evaluated_model}, {counts.num_examples} held-out images{marks}"
        draw_confusion(folder / "confusion.png", counts.confusion, outcome.classes, title)
    whose = "all clients" if outcome.config.private else "each round's clients"
    draw_curves(folder / "curves.png", [*outcome.rounds, *_closing_line(outcome)], f"held-out images of {whose}{marks}")
    if outcome.class_counts is not None:
        draw_partition(
            folder / "partition.png", outcome.class_counts, outcome.classes, images_unused=outcome.images_unused
        )


def _closing_line(outcome: Outcome) -> list[dict[str, Any]]:
    """The closing evaluation as one more point of the curves; under DP the last round has it already."""
    counts = total(outcome.closing.values())
    if counts is None or outcome.config.private or not counts.num_examples:
        return []
    personal = personal_figures(outcome.personal_counts())
    return [{"evaluated_model": outcome.final_round, **figures(counts), **personal}]
