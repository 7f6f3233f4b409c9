"""The benchmark of accuracy, its settings and its table.

Drives `simulations.benchmarks.simulated_run`.
"""

from pathlib import Path
from typing import Any

import pytest

from common.config.loading import defaults, override, parse
from common.config.schema import RunConfig
from simulations.benchmarks.accuracy import BENCHMARK, accuracy_of, accuracy_table, draw
from simulations.benchmarks.contract import Options

RESULTS = {
    "cases": [
        {"name": "IID, no privacy", "variants": [{"name": "rounds", "samples": [{"accuracy": 0.8}]}]},
        {
            "name": "IID, epsilon 2",
            "variants": [
                {"name": "noise in shares", "samples": [{"accuracy": value} for value in (0.7, 0.79, 0.78)]},
                {"name": "one client with all images", "samples": []},
            ],
        },
    ]
}


@pytest.mark.parametrize("options", [Options(), Options(data="folder"), Options(quick=True)], ids=str)
def test_every_variant_is_a_run_that_differs_from_the_others(options: Options) -> None:
    variants = [variant for case in BENCHMARK.cases(options) for variant in case.variants]

    configs = [parse(override(defaults(), variant.parameters["settings"])) for variant in variants]

    assert len({config.model_dump_json() for config in configs}) == len(configs) == 2 * (1 + 5 * 4)
    shared = [config.secure for config in configs if config.secure is not None]
    assert {(of.num_clients, of.honest, of.colluding) for of in shared} == {(10, 8, 2) if options.data else (5, 4, 1)}


def test_the_table_has_the_median_of_the_seeds_and_leaves_out_what_was_not_measured() -> None:
    head, _, plain, shares, *rest = accuracy_table(RESULTS).splitlines()

    assert head.startswith("| split | noise | epsilon 0.5 | epsilon 1 | epsilon 2 |")
    assert plain == "| IID | no privacy | 0.800 | 0.800 | 0.800 | 0.800 | 0.800 |"
    assert shares == "| IID | noise in shares |  |  | 0.780 |  |  |"
    assert not rest


def test_a_picture_is_drawn_of_each_measured_split(tmp_path: Path) -> None:
    draw(RESULTS, tmp_path)

    assert sorted(file.name for file in tmp_path.iterdir()) == ["accuracy-iid.png", "accuracy-table.md"]


@pytest.mark.parametrize(("released", "error"), [({"accuracy": 0.75}, 0.05), (None, 0.0)])
def test_accuracy_of_a_run_comes_with_the_error_of_the_released_one(
    released: dict[str, float] | None, error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def run(config: RunConfig, **options: Any) -> tuple[dict[str, Any], Path]:
        asked.append(config.seed)
        return {"accuracy": 0.8, "private_metrics": released}, Path(config.output_dir)

    monkeypatch.setattr("simulations.simulate.run_job", run)

    figures = accuracy_of(settings={"num-clients": 2}, repeat=3, scratch=str(tmp_path))

    assert figures == {"accuracy": 0.8, "released_error": pytest.approx(error)}
    assert asked == [3]
    assert not list(tmp_path.iterdir())
