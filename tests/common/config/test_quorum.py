"""The default of `min-clients`, and what a file of 0.1.0 means by an empty one."""

from pathlib import Path

import pytest

from common.config.loading import Scalar, defaults, load_file, override, parse, resolved
from common.errors import ConfigError
from tests.support.ledger.frozen_files import FROZEN


def min_clients_of(**given: Scalar) -> int | None:
    settings = {name.replace("__", ".").replace("_", "-"): value for name, value in given.items()}
    return parse(override(defaults(), settings)).min_clients


@pytest.mark.parametrize(
    ("num_clients", "expected"),
    [(1, 1), (2, 2), (3, 3), (4, 4), (5, 4), (6, 5), (10, 8), (35, 28), (36, 29), (10_000, 8000)],
)
def test_an_empty_min_clients_is_four_fifths_of_the_planned_cohort(num_clients: int, expected: int) -> None:
    assert min_clients_of(num_clients=num_clients) == expected


def test_an_empty_min_clients_follows_from_the_cohort_and_not_from_all_clients() -> None:
    assert min_clients_of(num_clients=50, client_fraction=0.2) == 8
    assert min_clients_of(num_clients=50, client_fraction=0.05) == 2
    assert min_clients_of(num_clients=50, client_fraction=0.02) == 1  # a written cohort of one is possible


def test_an_empty_min_clients_is_enough_for_the_strategy() -> None:
    assert min_clients_of(num_clients=5, strategy__name="FedAvg") == 4
    assert min_clients_of(num_clients=5, strategy__name="FedTrimmedAvg") == 5  # four would cut nobody off


def test_a_written_min_clients_is_kept() -> None:
    assert [min_clients_of(num_clients=5, min_clients=n) for n in (0, 1, 5)] == [0, 1, 5]
    with pytest.raises(ConfigError, match="min-clients=6 but a round has only 5 clients: lower it, or leave it empty"):
        min_clients_of(num_clients=5, min_clients=6)


def test_the_resolved_figure_is_sent_and_stays_when_it_is_read_again() -> None:
    sent = resolved(parse(defaults()))

    assert sent["min-clients"] == 4
    assert parse(sent).min_clients == 4


@pytest.mark.parametrize("name", ["open-run", "private-run"])
def test_the_file_of_an_old_run_means_all_clients_and_then_one_update(name: str) -> None:
    old = load_file(FROZEN / name / "config.toml")

    assert old["min-clients"] == 0
    assert parse(override(defaults(), old)).min_updates == 1


def test_a_users_own_file_may_leave_min_clients_empty(tmp_path: Path) -> None:
    (tmp_path / "study.toml").write_text('min-clients = ""\nnum-clients = 10\n')

    assert parse(override(defaults(), load_file(tmp_path / "study.toml"))).min_clients == 8
