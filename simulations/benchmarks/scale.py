"""The benchmark of large federations, on synthetic features."""

from pathlib import Path
from typing import Any

from simulations.benchmarks.contract import Benchmark, Case, Figure, Options, Variant
from simulations.benchmarks.simulated_run import run_simulation, seconds_a_round

_HERE = "simulations.benchmarks.scale"
_PER_CLIENT = 10
_SMALL_WIDTH, _WIDTH = 128, 1280


def _cases(options: Options) -> list[Case]:
    from common.config.loading import defaults

    private = str(defaults()["privacy.mechanism"])
    rounds = 3 if options.quick else 10
    populations, cohorts, images = [1_000, 10_000, 100_000], [10, 100, 1_000], [1_000, 10_000, 100_000, 1_000_000]
    if options.quick:
        populations, cohorts, images = [200, 2_000], [10, 100], [1_000, 10_000]
    cohort = min(100, populations[0] // 2)

    def variant(name: str, clients: int, cohort: int, number: int, width: int, **settings: Any) -> Variant:
        sizes = {"num_clients": clients, "cohort": cohort, "number": number, "width": width, "num_rounds": rounds}
        return Variant(name, f"{_HERE}:run", {**sizes, "settings": settings})

    def of_population(clients: int, **settings: Any) -> Variant:
        return variant(f"{clients:,} clients", clients, cohort, clients * _PER_CLIENT, _SMALL_WIDTH, **settings)

    plain = {"privacy.mechanism": "none"}
    ten = f"{_PER_CLIENT} images a client"
    return [
        Case(f"cohort {cohort}, {ten}, no privacy", tuple(of_population(size, **plain) for size in populations)),
        Case(
            f"cohort {cohort}, {ten}, {private}",
            tuple(of_population(size, **{"privacy.delta": 1e-2}) for size in populations[:2]),
        ),
        Case(
            f"{cohorts[-1]:,} clients, {ten}, no privacy",
            tuple(
                variant(f"cohort {size:,}", cohorts[-1], size, cohorts[-1] * _PER_CLIENT, _SMALL_WIDTH, **plain)
                for size in cohorts
            ),
        ),
        Case(
            f"10 clients, {_WIDTH} features, no privacy",
            tuple(variant(f"{number:,} images", 10, 10, number, _WIDTH, **plain) for number in images),
        ),
    ]


def run(
    *,
    num_clients: int,
    cohort: int,
    number: int,
    width: int,
    num_rounds: int,
    settings: dict[str, Any],
    repeat: int,
    scratch: str,
) -> dict[str, float]:
    """Run a simulation whose images are synthetic features.

    Args:
        num_clients: Number of clients.
        cohort: Clients of a round.
        number: Number of images.
        width: Values of an image's features.
        num_rounds: Number of rounds.
        settings: More settings of the run.
        repeat: Number of the pair, and the run's seed.
        scratch: Where features are kept for all pairs.
    """
    from simulations.benchmarks.synthetic import put_in_place, synthetic_features

    # A source of so many images does not exist here. All other code is that of every simulation.
    put_in_place(synthetic_features(Path(scratch), number=number, width=width))
    chosen: dict[str, Any] = {
        "num-clients": num_clients,
        "client-fraction": cohort / num_clients,
        "num-rounds": num_rounds,
        "seed": repeat,
        "data.partitioner": "iid",
        "training.local-epochs": 1,
    }
    summary, folder = run_simulation({**chosen, **settings}, scratch)
    rounds, seconds = seconds_a_round(folder), summary["seconds"]
    return {
        "round_seconds": rounds,
        "message_ms": 1000 * rounds / cohort,
        "enrolment_seconds": seconds["meet_clients"],
        "closing_seconds": seconds["closing_evaluation"],
        "whole_seconds": seconds["total"],
        "features_mb": number * width * 4 / 1e6,
        "disk_mb": sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6,
    }


BENCHMARK = Benchmark(
    "scale",
    "Seconds a round, memory and disk as clients, cohorts and images grow, on synthetic features.",
    "90 minutes",
    (
        Figure("round_seconds", "s a round"),
        Figure("message_ms", "ms a client and round", compared=False),
        Figure("enrolment_seconds", "enrolment s", compared=False),
        Figure("closing_seconds", "closing evaluation s", compared=False),
        Figure("peak_mb", "peak MB", compared=False),
        Figure("features_mb", "features MB", compared=False),
        Figure("disk_mb", "run's folder MB", compared=False),
        Figure("cpu_seconds", "CPU s"),
    ),
    _cases,
    notes=(
        "Here x says how many times the first variant's cost each other one has. A round includes its checkpoint "
        "and files.",
    ),
)
