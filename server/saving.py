"""The files and pictures that a run leaves."""

from typing import Any

from common.metrics import total
from server.card import model_card
from server.clock import Clock
from server.outcome import Outcome
from server.report import draw_confusion, draw_curves, draw_partition
from server.run_directory import RunDirectory
from server.statement import privacy_statement
from server.summary import summarise
from server.tracking import figures, personal_figures


def save_progress(directory: RunDirectory, outcome: Outcome, clock: Clock) -> None:
    """Write model and summary after a round, so that they are true even if the process is killed.

    The cost does not depend on the number of clients.
    """
    directory.write_model(outcome.arrays, model_card(outcome))
    directory.write_json("summary.json", summarise(outcome, clock.seconds()))


def save_statement(directory: RunDirectory, outcome: Outcome) -> None:
    """Write the privacy statement: the whole plan before round 1, what was charged at the end."""
    statement = privacy_statement(outcome.config, outcome.spending, status=outcome.status)
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
    return [{"evaluated_model": outcome.config.num_rounds, **figures(counts), **personal}]
