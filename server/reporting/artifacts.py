"""Files and figures that a run writes to its folder."""

from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy

from common.data.partition_plot import draw_partition
from common.ledger.signed_heads import HeadKeeper
from server.reporting.missing_clients import missing_clients
from server.reporting.model_card import model_card
from server.reporting.plots import draw_confusion, draw_curves
from server.reporting.privacy_statement import Parties, privacy_statement
from server.reporting.readme.model_readme import model_readme
from server.reporting.summary import private_metrics, summarise
from server.rounds.round_record import figures, personal_figures
from server.state.checkpoint import save_checkpoint
from server.state.phase_timer import Clock
from server.state.resume import checkpoint_of
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState
from server.state.secure_statement import aggregation_statement


def save_progress(directory: RunDirectory, state: RunState, clock: Clock) -> None:
    """Write model and summary after a round.

    They are then right even if the process is killed. The cost does not depend on the number of clients.
    """
    directory.write_model(state.final, model_card(state))
    directory.write_json("summary.json", summarise(state, clock.seconds()))


def save_checkpoint_of(directory: RunDirectory, state: RunState, strategy: Strategy, clock: Clock) -> None:
    """Write the checkpoint from which another process can resume the run."""
    save_checkpoint(directory.path, checkpoint_of(state, strategy, clock))


def save_statement(directory: RunDirectory, state: RunState, keeper: HeadKeeper | None) -> dict[str, Any]:
    """Write the privacy statement and return it.

    It charges the whole plan until the run has ended, so that it is true even if the process is killed.
    """
    secure = state.config.secure
    heads = {} if keeper is None else keeper.latest(state.clients)
    statement = privacy_statement(
        state.config,
        state.privacy_cost,
        status=state.status,
        run_id=state.run_id,
        parties=Parties(state.refusals, heads, state.joined, state.bundles, missing_clients(state)),
        simulated=state.context.simulated,
        early=state.early,
        initial=state.initial,
        aggregation=None
        if secure is None
        else aggregation_statement(secure, state.secure_session, noised=state.config.private),
    )
    directory.write_json("privacy.json", statement)
    return statement


def save_readme(directory: RunDirectory, state: RunState, statement: Mapping[str, Any]) -> None:
    """Write the README of a model whose run has ended."""
    summary = summarise(state, {"total": 0.0})
    text = model_readme(model_card(state), summary, statement, simulated=state.context.simulated)
    directory.write_text("model/README.md", text)


def draw_outcome(directory: RunDirectory, state: RunState) -> None:
    """Draw the figures of a run that has ended."""
    folder, context = directory.path, state.context
    counts = state.counts()
    mark = " (simulation only)" if state.config.private else ""
    if counts is not None:
        title = f"model after round {state.evaluated_model}, {counts.num_examples} held-out images{mark}"
        draw_confusion(folder / "confusion.png", counts.confusion, state.classes, title)
    clients = "all clients" if state.config.private else "each round's clients"
    lines = [*state.rounds, *_closing_line(state)]
    public = "; public test: images of the server" if any("public_test" in line for line in lines) else ""
    draw_curves(folder / "curves.png", lines, f"held-out images of {clients}{public}", exact_mark=mark)
    if context.class_counts is not None:
        draw_partition(
            folder / "partition.png", context.class_counts, state.classes, images_unused=context.images_unused
        )


def _closing_line(state: RunState) -> list[dict[str, Any]]:
    """Return the closing evaluation as one more point of the curves."""
    line: dict[str, Any] = {}
    if state.closing.noised is not None:
        line["private"] = private_metrics(state)
    if state.latest_public_test and all(line.get("public_test") != state.latest_public_test for line in state.rounds):
        line["public_test"] = state.latest_public_test
    counts = state.closing.counts
    # Under a privacy mechanism the last round is evaluated with the final model already.
    if counts is not None and counts.num_examples and not state.config.private:
        personal = personal_figures(state.personal_counts())
        line |= {"evaluated_model": state.final_round, **figures(counts), **personal}
    return [line] if line else []
