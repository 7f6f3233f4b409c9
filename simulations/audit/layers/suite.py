"""All layers over one configuration, as a privacy officer runs them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from common.sections import RunConfig
from simulations.audit.layers.accountant import accountant
from simulations.audit.layers.bench import Bench
from simulations.audit.layers.central import central_noise_scale, central_replay
from simulations.audit.layers.faults import faults
from simulations.audit.layers.findings import Check, LayerReport, run_layer
from simulations.audit.layers.independence import independence
from simulations.audit.layers.noise_scale import noise_scale
from simulations.audit.layers.replay import boundary_replay, neighbour_replay
from simulations.audit.layers.sampler import sampler
from simulations.audit.layers.surface import release_surface

# What each layer asks, for people.
ABOUT: Mapping[str, str] = {
    "T1": "neighbour replay: one unit more, the same noise",
    "T2": "scale of the noise",
    "T3": "independence of noise and batches",
    "T4": "sampling of batches",
    "T5": "accountant against an independent one",
    "T6": "release surface: fields and bytes",
    "T8": "ledger under faults",
}


def layers_of(bench: Bench) -> dict[str, Callable[[], Iterable[Check]]]:
    """Layer -> makes its checks, for those layers that a configuration's mechanism has.

    Args:
        bench: The configuration.
    """
    config = bench.config
    if config.privacy.mechanism == "none":
        return {"T6": partial(release_surface, bench)}
    if config.privacy.mechanism == "client-dp":
        return {
            "T1": partial(central_replay, config),
            "T2": partial(central_noise_scale, config),
            "T6": partial(release_surface, bench),
        }
    found: dict[str, Callable[[], Iterable[Check]]] = {
        "T1": partial(_replays, bench),
        "T2": partial(noise_scale, bench),
        "T3": partial(independence, bench),
        "T5": partial(accountant, bench),
        "T6": partial(release_surface, bench),
        "T8": partial(faults, bench),
    }
    if bench.plan.sample_rate < 1:
        found["T4"] = partial(sampler, bench)
    return dict(sorted(found.items()))


def layer_names(config: RunConfig) -> tuple[str, ...]:
    """Layers that a configuration's mechanism has; T4 only where batches are sampled, which its plan tells."""
    if config.privacy.mechanism == "none":
        return ("T6",)
    return ("T1", "T2", "T6") if config.privacy.mechanism == "client-dp" else tuple(ABOUT)


def _replays(bench: Bench) -> Iterator[Check]:
    yield from neighbour_replay(bench)
    if bench.config.closed_form:
        yield from boundary_replay(bench)


def audit_layers(config: RunConfig, folder: Path, *, num_images: int = 8) -> Iterator[LayerReport]:
    """Run all layers, one after another.

    Args:
        config: The run.
        folder: Scratch for ledgers.
        num_images: Training images of the first client that go on the bench.

    Raises:
        BractError: The configuration cannot be run.
    """
    bench = Bench.of(config, folder, num_images=num_images)
    for layer, checks in layers_of(bench).items():
        yield run_layer(layer, checks)
