"""The benchmark of accuracy against epsilon, by where the noise is added."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from simulations.benchmarks.contract import Benchmark, Case, Figure, Options, Variant
from simulations.benchmarks.simulated_run import run_simulation

_HERE = "simulations.benchmarks.accuracy"
_EPSILONS = (0.5, 1.0, 2.0, 4.0, 8.0)
_SPLITS: dict[str, dict[str, Any]] = {
    "IID": {"data.partitioner": "iid"},
    "Dirichlet 0.5": {"data.partitioner": "dirichlet", "data.alpha": 0.5},
}
# Name in tables -> the settings that differ from a default run. With noise in shares a round is one step, where one
# client makes up to four.
_WAYS: dict[str, dict[str, Any]] = {
    "noise at each client": {},
    "noise in shares": {"privacy.aggregation": "secure", "round-retries": 0, "num-rounds": 60},
    "one client with all images": {"num-clients": 1},
    "statistics, noise at each client": {"privacy.mechanism": "dp-statistics"},
}
_PLAIN = "no privacy"


def _cases(options: Options) -> list[Case]:
    if options.data:
        data: dict[str, Any] = {"data.source": "cifar10", "data.path": options.data, "num-clients": 10}
        shares = {"privacy.secure-colluding": 2, "privacy.secure-honest": 8}
    else:
        data, shares = {"num-clients": 5}, {"privacy.secure-colluding": 1, "privacy.secure-honest": 4}
    data |= {"num-rounds": 2} if options.quick else {}
    cases = []
    for split, of_split in _SPLITS.items():
        plain = {**data, **of_split, "privacy.mechanism": "none"}
        cases.append(Case(f"{split}, {_PLAIN}", (_variant("rounds", plain),)))
        for epsilon in _EPSILONS:
            target = {**of_split, "privacy.target-epsilon": epsilon}
            variants = []
            for way, settings in _WAYS.items():
                chosen = {**data, **settings, **target, **(shares if "privacy.aggregation" in settings else {})}
                variants.append(_variant(way, {**chosen, "num-rounds": 2} if options.quick else chosen))
            cases.append(Case(f"{split}, epsilon {epsilon:g}", tuple(variants)))
    return cases


def _variant(name: str, settings: dict[str, Any]) -> Variant:
    return Variant(name, f"{_HERE}:accuracy_of", {"settings": settings})


def accuracy_of(*, settings: Mapping[str, Any], repeat: int, scratch: str) -> dict[str, float]:
    """Run a simulation and return the accuracy of its final model.

    Args:
        settings: Settings that differ from the defaults.
        repeat: Seed of the run.
        scratch: Parent of the run's folder, which is removed afterwards.

    Returns:
        The accuracy on all held-out images, which only a simulation knows, and how far the one that the clients
        released is from it.
    """
    summary, folder = run_simulation({**settings, "seed": repeat}, scratch)
    shutil.rmtree(folder)
    released = summary["private_metrics"] or {"accuracy": summary["accuracy"]}
    return {"accuracy": summary["accuracy"], "released_error": abs(released["accuracy"] - summary["accuracy"])}


def accuracy_table(results: Mapping[str, Any]) -> str:
    """Return the medians of the seeds as a Markdown table.

    A row is a split and a place of the noise.
    """
    lines = ["| split | noise | " + " | ".join(f"epsilon {epsilon:g}" for epsilon in _EPSILONS) + " |"]
    lines.append("|---" * (len(_EPSILONS) + 2) + "|")
    for (split, way), by_epsilon in _curves(results).items():
        cells = [f"{by_epsilon[epsilon]:.3f}" if epsilon in by_epsilon else "" for epsilon in _EPSILONS]
        lines.append(f"| {split} | {way} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _curves(results: Mapping[str, Any]) -> dict[tuple[str, str], dict[float, float]]:
    """Return the median accuracy of each epsilon by split and place of the noise."""
    curves: dict[tuple[str, str], dict[float, float]] = {}
    for case in results["cases"]:
        split, _, rest = case["name"].partition(", ")
        at: Sequence[float] = _EPSILONS if rest == _PLAIN else (float(rest.removeprefix("epsilon ")),)
        for variant in case["variants"]:
            way = _PLAIN if rest == _PLAIN else variant["name"]
            values = [sample["accuracy"] for sample in variant.get("samples", ())]
            if values:
                curves.setdefault((split, way), {}).update(dict.fromkeys(at, median(values)))
    return curves


def draw(results: Mapping[str, Any], folder: Path) -> None:
    """Draw accuracy against epsilon for each split, with the table in a file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    (folder / "accuracy-table.md").write_text(accuracy_table(results))
    curves = _curves(results)
    for split in dict.fromkeys(split for split, _ in curves):
        figure, axes = pyplot.subplots(figsize=(6, 4), dpi=120)
        for (of, way), by_epsilon in curves.items():
            if of == split:
                axes.plot(list(by_epsilon), list(by_epsilon.values()), "--" if way == _PLAIN else "o-", label=way)
        axes.set_xscale("log", base=2)
        axes.set_xticks(_EPSILONS, [f"{epsilon:g}" for epsilon in _EPSILONS])
        axes.set_xlabel("epsilon of the whole run")
        axes.set_ylabel("accuracy, median of the seeds")
        axes.set_title(split)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(folder / f"accuracy-{split.split()[0].lower()}.png")
        pyplot.close(figure)


BENCHMARK = Benchmark(
    "accuracy",
    "Accuracy against epsilon with noise at each client, in shares, in one place, and of the head from sums.",
    "hours with CIFAR-10, whose features are computed once, minutes with the digits",
    (
        Figure("accuracy", "accuracy", larger_is_better=True, compared=False),
        Figure("released_error", "error of the released accuracy", compared=False),
        Figure("cpu_seconds", "CPU s", compared=False),
    ),
    _cases,
    draw=draw,
    notes=("A pair is a seed. All settings but the number of rounds follow from the public rules.",),
)
