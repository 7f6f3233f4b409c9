"""What a run says in its last lines when its model is of no use."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.errors import FederationError
from common.messages.codec import Declaration, Evaluation
from common.metrics import Counts, NoisedCounts
from server.reporting.outcome_warnings import outcome_warnings
from server.reporting.summary_view import print_summary
from server.rounds.closing_evaluation import ClosingEvaluation
from server.rounds.enrollment import EnrolledClient
from server.run_context import RunContext
from server.state.run_state import RunState
from simulations.simulate import run_job
from tests.support.clients.own_clients import picture, write_images

MakeConfig = Callable[..., RunConfig]
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none", "num-clients": 2, "num-rounds": 1}
PRIVATE: dict[str, Scalar] = {"privacy.noise-multiplier": 2.0, "num-clients": 2, "num-rounds": 1}
GUESSES, KNOWS = np.array([[30, 30], [30, 30]]), np.array([[55, 5], [5, 55]])
CNN: dict[str, Scalar] = {
    "privacy.mechanism": "none",
    "model.backbone": "cnn",
    # The network of 0.1.0, which diverges on large images.
    "model.cnn-depth": 2,
    "data.image-size": 96,
    "num-clients": 2,
    "num-rounds": 3,
    "training.local-epochs": 1,
    "training.batch-size": 16,
    "data.partitioner": "iid",
}


def complete(config: RunConfig, closing: Evaluation | None = None, **context: Any) -> RunState:
    clients = {
        name: EnrolledClient(Declaration(name, 60, ("a", "b"), (8, 8, 1), "cafe"), at) for at, name in enumerate("xy")
    }
    state = RunState(config, "run", clients, {}, [["x", "y"]], {"w": np.zeros(2, np.float32)}, RunContext(**context))
    state.closing = ClosingEvaluation({} if closing is None else {"x": closing})
    state.register()
    state.finish()
    return state


@pytest.mark.parametrize(
    ("cells", "loss", "said"),
    [
        (KNOWS, 60.0, None),
        (
            GUESSES,
            90.0,
            "The final model cannot be told from chance: accuracy 0.500 on 120 held-out images, and the largest class",
        ),
        (GUESSES, 90.0, "Likely causes: training.learning-rate=32 is too high or too low, num-rounds=1 is too small"),
        (GUESSES, 1e5, "Its loss, 833, says that training diverged. Likely cause: training.learning-rate=32 is too"),
        (GUESSES, float("nan"), "Its loss, nan, says that training diverged"),
        (np.zeros((2, 2), dtype=int), 0.0, "No image was held out, so nothing is known of the final model"),
        (np.eye(2, dtype=int), 1.0, "The 2 held-out images are too few: nothing tells the final model from chance"),
        (np.diag([9, 0]), 1.0, "The 9 held-out images are all of one class: nothing tells the final model from"),
    ],
)
def test_exact_counts_at_chance_are_named_with_a_cause(
    make_config: MakeConfig, cells: np.ndarray, loss: float, said: str | None
) -> None:
    warnings = outcome_warnings(complete(make_config(OPEN), Evaluation(Counts(cells, loss))))

    assert (warnings == []) is (said is None)
    assert said is None or said in warnings[0]


@pytest.mark.parametrize("code", ["NOT-FINITE", "NORM"])
def test_updates_that_were_left_out_are_counted(make_config: MakeConfig, code: str) -> None:
    state = complete(make_config(OPEN), Evaluation(Counts(KNOWS, 60.0)))
    state.rounds = [{"round": 1, "failures": {"x": code, "y": "LATE"}}]

    (warning,) = outcome_warnings(state)

    assert warning.startswith("1 updates of 1 clients were not finite or far too long")


def test_noise_of_all_clients_is_in_the_comparison_with_chance(make_config: MakeConfig) -> None:
    # Beyond chance by six times one client's noise, and within that of a hundred.
    cells = np.array([[1040, 960], [960, 1040]])
    found = [
        outcome_warnings(complete(make_config(PRIVATE), Evaluation(noised=NoisedCounts(cells, number))))
        for number in (1, 100)
    ]

    assert (len(found[0]), len(found[1])) == (0, 1)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (100 * KNOWS, None),
        (
            100 * GUESSES,
            r"By its private counts .* chance: accuracy 0\.500 \+- 0\.0\d\d, and the largest .* is 0\.500 of",
        ),
        (100 * GUESSES, r"Likely causes: more noise than signal, or training\.learning-rate is too high or too low"),
        (np.array([[3, 0], [0, 3]]), "The private counts have too much noise to tell the final model from chance"),
    ],
)
def test_under_dp_only_noised_counts_speak(make_config: MakeConfig, cells: np.ndarray, said: str | None) -> None:
    warnings = outcome_warnings(complete(make_config(PRIVATE), Evaluation(noised=NoisedCounts(cells))))

    assert (warnings == []) is (said is None)
    assert said is None or re.search(said, warnings[0])


def test_a_private_run_that_releases_no_counts_says_nothing(make_config: MakeConfig) -> None:
    assert outcome_warnings(complete(make_config(PRIVATE | {"privacy.metrics": "none"}))) == []


def test_a_private_simulation_uses_its_own_evaluation_and_marks_it(make_config: MakeConfig) -> None:
    exact = Evaluation(Counts(GUESSES, 90.0), noised=NoisedCounts(100 * KNOWS))

    (warning,) = outcome_warnings(complete(make_config(PRIVATE), exact, simulated=True))

    # Nothing accounts for it, so it does not go with the model.
    assert outcome_warnings(complete(make_config(PRIVATE), exact, simulated=True), passed_on=True) == []

    assert warning.startswith("The final model cannot be told from chance (simulation only): accuracy 0.500")


def test_personal_models_are_judged_by_their_own_counts(make_config: MakeConfig) -> None:
    settings = OPEN | {"model.personal": "batchnorm-affine", "model.tuning": "norm"}

    good = outcome_warnings(complete(make_config(settings), Evaluation(Counts(GUESSES, 1.0), Counts(KNOWS, 1.0))))
    bad = outcome_warnings(complete(make_config(settings), Evaluation(Counts(KNOWS, 1.0), Counts(GUESSES, 1.0))))

    assert (good, len(bad)) == ([], 1)


def test_an_interrupted_run_is_not_judged_yet(make_config: MakeConfig) -> None:
    state = complete(make_config(OPEN), Evaluation(Counts(GUESSES, 90.0)))
    state.status = "interrupted"

    assert outcome_warnings(state) == []


def test_warnings_about_a_simulations_images_come_first(make_config: MakeConfig) -> None:
    state = complete(make_config(OPEN), Evaluation(Counts(GUESSES, 90.0)), data_warnings=("All is dark.",))

    assert [warning.partition(".")[0] for warning in outcome_warnings(state)] == [
        "All is dark",
        "The final model cannot be told from chance: accuracy 0",
    ]


def last_line(summary: dict[str, Any], folder: Path) -> str:
    console = Console(file=io.StringIO(), record=True, width=400)
    print_summary(summary, folder, console)
    return console.export_text().rstrip().splitlines()[-1]


def run(
    make_config: MakeConfig, folder: Path, settings: dict[str, Scalar], console: Console | None = None
) -> dict[str, Any]:
    config = make_config(settings | {"output-dir": str(folder)})
    return run_job(config, engine="in-process", baselines=False, console=console or Console(quiet=True))[0]


@pytest.fixture(name="pictures")
def pictures_fixture(tmp_path: Path) -> dict[str, Scalar]:
    return {"data.source": str(write_images(tmp_path / "images", range(120)))}


def test_a_cnn_whose_updates_are_not_finite_stops_and_says_what_to_lower(
    make_config: MakeConfig, tmp_path: Path, pictures: dict[str, Scalar]
) -> None:
    with pytest.raises(FederationError, match=r"\(NOT-FINITE\).*\n  training diverged: lower training.learning-rate"):
        run(make_config, tmp_path / "run", CNN | pictures | {"training.learning-rate": 1e4})

    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["warnings"][0].startswith("4 updates of 2 clients were not finite or far too long")


def test_a_cnn_that_diverges_to_chance_says_so_in_its_last_line_summary_and_card(
    make_config: MakeConfig, tmp_path: Path, pictures: dict[str, Scalar]
) -> None:
    summary = run(make_config, tmp_path / "run", CNN | pictures | {"training.learning-rate": 0.5})

    assert summary["status"] == "complete"
    last = last_line(summary, tmp_path / "run")
    assert last.startswith("Warning  The final model cannot be told from chance: accuracy 0.")
    assert last.endswith("Likely cause: training.learning-rate=0.5 is too high. Try a tenth of it, or less.")
    card = json.loads((tmp_path / "run" / "model" / "card.json").read_text())
    assert card["warnings"] == summary["warnings"]


def test_a_run_on_labels_that_do_not_belong_to_the_images_says_so(make_config: MakeConfig, tmp_path: Path) -> None:
    for number in range(120):
        place = tmp_path / "images" / f"class {number % 2}"
        place.mkdir(parents=True, exist_ok=True)
        picture(number, 0).save(place / f"{number}.png")

    settings = CNN | {"data.source": str(tmp_path / "images"), "data.image-size": 8}
    console = Console(file=io.StringIO(), record=True, width=400)
    summary = run(make_config, tmp_path / "run", settings, console)
    last = last_line(summary, tmp_path / "run")

    # All of them are dark, at both clients, which is said before anything is trained.
    dark = "The upper quarter of the range of values is empty in all 120 images: "
    assert summary["warnings"][0].startswith(dark)
    assert f"Warning  {dark}" in console.export_text().partition("Training:")[0]
    assert last.startswith("Warning  The final model cannot be told from chance: accuracy 0.")
    assert last.endswith("or the labels do not belong to the images: `bract data inspect` shows them.")
