"""What a run says of itself: summary, model card, curves and the closing table.

Drives `server.reporting.model_card`, `server.reporting.plots`, `server.reporting.summary_view`.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.messages.codec import Declaration, Evaluation
from common.metrics import Counts, NoisedCounts
from common.system.console import format_epsilon
from server.reporting import artifacts
from server.reporting import model_card as card
from server.reporting.plots import draw_curves
from server.reporting.summary import summarise
from server.reporting.summary_view import _less_leakage, print_summary
from server.rounds.closing_evaluation import ClosingEvaluation
from server.rounds.enrollment import EnrolledClient
from server.rounds.loop import RoundResult
from server.rounds.round_record import RoundRecord
from server.run_context import RunContext
from server.state.run_directory import RunDirectory
from server.state.run_state import RunState

MakeConfig = Callable[..., RunConfig]
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none", "num-clients": 2, "num-rounds": 1}
SHARED = Counts(np.array([[1, 3], [0, 4]]), 4.0)
OWN = Counts(np.array([[4, 0], [1, 3]]), 1.0)


def outcome_of(config: RunConfig, **more: Any) -> RunState:
    clients = {
        name: EnrolledClient(Declaration(name, 10, ("a", "b"), (8, 8, 1), "cafe"), at) for at, name in enumerate("xy")
    }
    return RunState(config, "run", clients, {}, [["x", "y"]], {"w": np.zeros((2, 2), np.float32)}, RunContext(**more))


def record(**more: Any) -> RoundRecord:
    given: dict[str, Any] = {"counts": SHARED, "simulation_only": False} | more
    return RoundRecord(server_round=1, num_clients=2, failures={}, seconds=0.1, bytes_up=1.0, bytes_down=1.0, **given)


def shown(summary: dict[str, Any], folder: Path) -> str:
    console = Console(file=io.StringIO(), record=True, width=400)
    print_summary(summary, folder, console)
    return console.export_text()


def test_summary_of_a_personal_run_shows_both_accuracies(make_config: MakeConfig, tmp_path: Path) -> None:
    state = outcome_of(make_config(OPEN | {"model.personal": "batchnorm-affine", "model.tuning": "norm"}))
    state.add(RoundResult(state.arrays, record(personal=OWN)))
    latest = summarise(state, {"total": 1.0})
    state.closing = ClosingEvaluation({"x": Evaluation(SHARED, OWN), "y": Evaluation(SHARED, SHARED)})
    state.finish()

    summary = summarise(state, {"total": 1.0})

    assert (latest["accuracy"], latest["personal"]["accuracy"]) == (5 / 8, 7 / 8)
    assert (summary["accuracy"], summary["personal"]["accuracy"]) == (5 / 8, 12 / 16)
    spread = summary["personal"]["spread_over_clients"]["accuracy"]
    assert (spread["min"], spread["max"]) == (5 / 8, 7 / 8)
    assert "0.7500 of clients' own models" in shown(summary, tmp_path)


def test_round_record_puts_personal_figures_beside_the_global_ones() -> None:
    line = record(personal=OWN).as_dict()

    assert (line["accuracy"], line["personal_accuracy"], line["personal_loss"]) == (5 / 8, 7 / 8, 1 / 8)
    assert not any(key.startswith("personal") for key in record().as_dict())


@pytest.mark.parametrize(("unused", "skipped"), [(0, 0), (7, 0), (0, 3)])
def test_summary_and_table_say_what_was_left_out(
    make_config: MakeConfig, tmp_path: Path, unused: int, skipped: int
) -> None:
    state = outcome_of(make_config(OPEN), images_unused=unused, skipped_files=skipped)

    summary = summarise(state, {"total": 1.0})
    table = shown(summary, tmp_path)

    assert (summary["images_unused"], summary["skipped_files"]) == (unused, skipped)
    assert (f"{unused}: the partitioner assigned them to no client" in table) is bool(unused)
    assert (f"{skipped} bad, without a label or of a class left out  (simulation only" in table) is bool(skipped)


@pytest.mark.parametrize(
    ("failures", "skipped", "said"),
    [
        (1, 0, "1 update missing: rounds.jsonl"),
        (2, 1, "2 updates missing, 1 round skipped: rounds.jsonl"),
        (9, 3, "9 updates missing, 3 rounds skipped: rounds.jsonl"),
    ],
)
def test_table_counts_what_was_missing(
    make_config: MakeConfig, tmp_path: Path, failures: int, skipped: int, said: str
) -> None:
    summary = summarise(outcome_of(make_config(OPEN)), {"total": 1.0})

    assert said in shown(summary | {"failures": failures, "rounds_skipped": skipped}, tmp_path)


@pytest.mark.parametrize(
    ("weights", "said"), [("", ""), ("random", "random"), ("/home/ward-7/secret/vgg.pth", "vgg.pth")]
)
def test_model_card_names_the_weights_but_no_place(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, weights: str, said: str
) -> None:
    monkeypatch.setattr(card, "_preprocessing", lambda config, shape: {"image_size": shape[0]})
    config = make_config(OPEN | {"model.weights": weights, "model.head": "mlp"})

    found = card.model_card(outcome_of(config))

    assert (found["weights"], found["head"], found["personal"]) == (said, "mlp", "")
    assert "ward-7" not in str(found)


@pytest.mark.parametrize(
    ("settings", "values"),
    [({}, None), ({"data.bit-depth": 12, "data.gray-window": "-5,900"}, {"bit-depth": 12, "gray-window": [-5, 900]})],
)
def test_model_card_says_how_stored_values_become_pixels(
    make_config: MakeConfig, settings: dict[str, Any], values: dict[str, Any] | None
) -> None:
    found = card.model_card(outcome_of(make_config(OPEN | {"model.backbone": "cnn"} | settings)))

    assert found["preprocessing"].get("values") == values
    assert ("values" in found["preprocessing"]) is bool(settings)


def test_draw_curves_has_a_line_of_its_own_for_personal_accuracy(tmp_path: Path) -> None:
    for name, personal in (("without", None), ("with", OWN)):
        draw_curves(tmp_path / f"{name}.png", [record(personal=personal).as_dict(), record().as_dict()], "two rounds")

    assert (tmp_path / "with.png").read_bytes() != (tmp_path / "without.png").read_bytes()


def test_closing_evaluation_keeps_noised_counts_beside_a_simulations_exact_ones() -> None:
    noised = NoisedCounts(np.array([5, 3]))
    closing = ClosingEvaluation({"x": Evaluation(noised=noised)}, {"y": "LATE"}).with_exact({"x": SHARED, "y": OWN})

    assert closing.exact == {"x": SHARED, "y": OWN}
    assert closing.noised is noised
    assert (closing.personal, closing.failures) == ({}, {"y": "LATE"})


def private_state(config: RunConfig, pairs: list[NoisedCounts | None]) -> RunState:
    state = outcome_of(config)
    state.cohorts = [["x", "y"]] * len(pairs)
    state.register()
    for number, pair in enumerate(pairs, start=1):
        line = replace(record(counts=None, noised=pair), server_round=number)
        state.add(RoundResult({"w": np.full((2, 2), number, np.float32)}, line))
    return state


@pytest.mark.parametrize(
    ("cells", "text"),
    [([98, 2], "0.980 +- 0.139 (0.841 to 1.000) of the model after round 1"), ([1, -1], "only noise")],
)
def test_interval_of_private_accuracy_never_passes_1(
    make_config: MakeConfig, tmp_path: Path, cells: list[int], text: str
) -> None:
    settings: dict[str, Scalar] = {"num-clients": 2, "num-rounds": 2, "privacy.counts-noise": 10.0}
    state = private_state(make_config(settings), [None, NoisedCounts(np.array(cells), 2)])

    assert text in shown(summarise(state, {"total": 1.0}), tmp_path)


def test_rounds_without_counts_keep_the_figures_of_the_round_before(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"num-clients": 2, "num-rounds": 3, "evaluation.every": 2, "stopping.keep": "best"})
    pair = NoisedCounts(np.array([30, 10]), 2)

    state = private_state(config, [None, pair, None])
    state.finish()
    summary = summarise(state, {"total": 1.0})

    assert state.latest.noised is pair
    assert ["private" in line for line in state.rounds] == [False, True, False]
    assert (summary["private_metrics"]["accuracy"], summary["private_metrics"]["evaluated_model"]) == (0.75, 1)
    # The only counted model is the best one; rounds that are not counted have no part in the choice.
    assert (state.final_round, state.early_stopping.rounds_without_improvement) == (1, 0)
    draw_curves(tmp_path / "curves.png", state.rounds, "noised counts alone")


def test_summary_states_the_cost_of_trained_and_of_held_out_units(make_config: MakeConfig, tmp_path: Path) -> None:
    state = private_state(make_config({"num-clients": 2, "num-rounds": 3, "training.batch-size": 5}), [None] * 3)
    state.finish()

    summary = summarise(state, {"total": 1.0})

    parts = summary["epsilon_parts"]
    assert max(parts["trained"], parts["held_out"]) == summary["epsilon_max"] <= 8.0
    assert parts["held_out"] > 7.9
    assert max(parts["held_out_rounds"], parts["held_out_closing"]) < parts["held_out"]
    assert f"each that was held out (rounds {format_epsilon(parts['held_out_rounds'])}, closing" in shown(
        summary, tmp_path
    )


def test_summary_says_that_balanced_weights_follow_from_exact_counts(make_config: MakeConfig, tmp_path: Path) -> None:
    texts = []
    for weights in ("balanced", "1, 2"):
        state = outcome_of(make_config(OPEN | {"training.class-weights": weights}))
        state.add(RoundResult(state.arrays, record()))
        texts.append(shown(summarise(state, {"total": 1.0}), tmp_path))

    assert "balanced, by each client's exact number of images of each class" in texts[0]
    assert "exact number" not in texts[1]


def test_closing_accuracy_uses_the_totals_of_rounds_in_which_all_clients_were_counted(
    make_config: MakeConfig,
) -> None:
    settings: dict[str, Scalar] = {"num-clients": 2, "num-rounds": 3, "privacy.counts-noise": 9.0}
    pairs: list[NoisedCounts | None] = [NoisedCounts(np.array([30, 12]), 2), NoisedCounts(np.array([5, 5]), 1), None]
    state = private_state(make_config(settings), [*pairs[:2], NoisedCounts(np.array([28, 14]), 2)])
    matrix = NoisedCounts(np.array([[20, 9], [9, 20]]), 2)
    noise = state.privacy_cost.example_plan.counts.closing_noise_stddev

    def accuracy(by_client: dict[str, Evaluation]) -> tuple[float, float]:
        state.closing = ClosingEvaluation(by_client)
        found = summarise(state, {"total": 1.0})["private_metrics"]
        return found["accuracy"], found["accuracy_stddev"]

    halves = [NoisedCounts(matrix.cells - 5), NoisedCounts(np.full((2, 2), 5))]
    both = accuracy({name: Evaluation(noised=half) for name, half in zip("xy", halves, strict=True)})
    one = accuracy({"x": Evaluation(noised=halves[0])})

    # Two rounds of both clients, each with a total of 42 and the noise of four counts.
    assert both == pytest.approx(matrix.accuracy(noise, total=(42.0, 4 * 81 / 2)))
    assert one == pytest.approx(halves[0].accuracy(noise))


@pytest.mark.parametrize(
    ("settings", "setting"),
    [
        ({"privacy.target-epsilon": 8.0}, "privacy.target-epsilon=2"),
        ({"privacy.target-epsilon": 2.5}, "privacy.target-epsilon=2"),
        ({"privacy.target-epsilon": 2.0}, "privacy.target-epsilon=1"),
        ({"privacy.target-epsilon": 0.5}, "privacy.target-epsilon=0.25"),
        ({"privacy.target-epsilon": "", "privacy.noise-multiplier": 4.0}, "privacy.noise-multiplier=8"),
    ],
)
def test_the_next_step_is_one_that_the_run_has_not_taken(settings: dict[str, Any], setting: str) -> None:
    assert _less_leakage(settings) == setting


def test_curves_end_with_the_closing_counts_and_name_the_public_images(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[list[dict[str, Any]], str]] = []
    monkeypatch.setattr(artifacts, "draw_curves", lambda _, lines, title, **__: drawn.append((lines, title)))
    state = private_state(make_config({"num-clients": 2, "num-rounds": 2}), [NoisedCounts(np.array([90, 10]), 2)] * 2)
    state.rounds[-1]["public_test"] = {"evaluated_model": 1, "accuracy": 0.5}
    state.closing = ClosingEvaluation({"x": Evaluation(noised=NoisedCounts(np.array([[90, 9], [8, 90]])))})
    folder = RunDirectory.create(state.config.model_copy(update={"output_dir": str(tmp_path / "run")}))

    artifacts.draw_outcome(folder, state)

    ((lines, title),) = drawn
    assert len(lines) == 3
    assert lines[-1]["private"] == summarise(state, {"total": 1.0})["private_metrics"]
    assert title == "held-out images of all clients; public test: images of the server"
