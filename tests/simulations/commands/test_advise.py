"""`bract plan --advise` as a user meets it.

Drives `simulations.commands.advise`, `simulations.commands.advice_view`.
"""

import json
import shlex

import pytest
from typer.testing import CliRunner, Result

from bract import app
from common.commands.fitted_defaults import fit_to_sizes
from common.commands.run_settings import set_values
from common.config.loading import defaults, override, parse
from simulations.advice import ranking

SMALL = ("--sizes", "60,60,60,90", "--classes", "3", "--parameters", "48", "--epsilon", "3", "--rounds", "3")


@pytest.fixture(autouse=True)
def _one_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "NUM_SEEDS", 1)


def advise(*arguments: str, columns: int = 80) -> Result:
    return CliRunner().invoke(app, ["plan", "--advise", *arguments], env={"COLUMNS": str(columns)})


@pytest.mark.parametrize("columns", [80, 100])
def test_advice_prints_ranks_reasons_and_what_they_rest_on(columns: int) -> None:
    done = advise(*SMALL, columns=columns)

    assert done.exit_code == 0, done.output
    *lines, command = done.stdout.rstrip().splitlines()
    assert max(map(len, lines)) <= columns
    said = " ".join(done.stdout.split())
    for words in (
        "Advice: 4 clients, 270 images, 3 classes, 16 features, epsilon 3",
        "hard easy",
        "dp-sgd, secure, 3 rounds",
        "dp-statistics, 1 round",
        "without noise",
        "Each client adds all of its noise",
        "Clients share the noise, together",
        "hard ones like CIFAR-10 and easy ones like the digits",
        "the order, not the errors",
        "a roster of all clients' keys",
        "are honest (accept-honest-shares)",
    ):
        assert words in said, done.stdout
    assert command.startswith("Run  bract simulate --set num-clients=4 ")


def test_the_command_of_the_first_rank_is_its_settings() -> None:
    done = advise(*SMALL, "--set", "data.partitioner=iid", "--json")

    facts = json.loads(done.stdout)
    first, words = facts["ranked"][0], shlex.split(facts["command"])
    assert words[:2] == ["bract", "simulate"]
    assert set(words[2::2]) == {"--set"}
    # As `bract simulate` reads them, which fits what is open.
    fitted, _ = fit_to_sizes(set_values(words[3::2]), [60])
    run = parse(override(defaults(), fitted))
    assert (run.num_clients, run.data.partitioner, run.privacy.target_epsilon) == (4, "iid", 3.0)
    assert run.privacy.mechanism == first["mechanism"]
    assert run.privacy.aggregation == first["aggregation"]
    assert run.takes_statistics or run.num_rounds == first["num_rounds"] == 3


def test_json_has_every_error_and_what_they_were_computed_on() -> None:
    facts = json.loads(advise(*SMALL, "--json").stdout)

    assert [row["rank"] for row in facts["ranked"]] == list(range(1, len(facts["ranked"]) + 1))
    for row in facts["ranked"]:
        assert row["expected_error"] == pytest.approx(sum(map(sum, row["errors"].values())) / 2)
        assert row["reason"].endswith(".")
    assert facts["computed_on"]["of"] == 270
    assert facts["computed_on"]["tasks"] == {"hard": "CIFAR-10", "easy": "the digits"}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        (("--set", "privacy.mechanism=none"), "leave privacy.mechanism out"),
        (("--aggregation", "secure"), "leave privacy.aggregation out"),
        (("--set", "privacy.unit=group"), "leave privacy.unit out"),
        (("--batch-size", "8"), "leave training.batch-size out"),
        (("--plot", "x.png"), "leave --plot out"),
        (("--set", "model.tuning=full"), "a linear head on stored features"),
    ],
)
def test_advice_refuses_what_it_would_not_try(more: tuple[str, ...], text: str) -> None:
    done = advise(*SMALL, *more)

    assert done.exit_code == 2
    assert text in " ".join(done.output.split())


def test_advice_asks_for_the_size_of_the_head() -> None:
    done = advise("--sizes", "60,60")

    assert done.exit_code == 2
    assert "pass --classes N" in done.output
