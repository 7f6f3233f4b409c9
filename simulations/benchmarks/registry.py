"""The names of all benchmarks, each in a file of its own."""

from importlib import import_module

from common.errors import ConfigError
from simulations.benchmarks.contract import Benchmark

# In the order of `bract bench`.
_MODULES = ("engine", "end_to_end", "features", "dp", "cross_device", "accuracy", "scale")


def all_benchmarks() -> list[Benchmark]:
    """Return every benchmark, in order."""
    return [import_module(f"simulations.benchmarks.{module}").BENCHMARK for module in _MODULES]


def benchmark_named(name: str) -> Benchmark:
    """Return a benchmark.

    Raises:
        ConfigError: There is none of this name.
    """
    known = {benchmark.name: benchmark for benchmark in all_benchmarks()}
    if name not in known:
        raise ConfigError(f"{name!r} is not a benchmark: {', '.join(known)}")
    return known[name]
