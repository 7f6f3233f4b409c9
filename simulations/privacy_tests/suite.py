"""Which layers a configuration has, and what each makes of it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.accounting import accountant
from simulations.privacy_tests.central_dp import central_noise_scale, central_replay
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.fault_injection import faults
from simulations.privacy_tests.independence import independence
from simulations.privacy_tests.neighbouring_data import boundary_replay, neighbour_replay
from simulations.privacy_tests.noise_scale import noise_scale
from simulations.privacy_tests.released_fields import release_surface
from simulations.privacy_tests.sampling import sampler

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


def layers_of(harness: ClientHarness) -> dict[str, Callable[[], Iterable[Check]]]:
    """Layer -> makes its checks, for those layers that a configuration's mechanism has.

    Args:
        harness: The configuration.
    """
    config = harness.config
    if not config.private:
        return {"T6": partial(release_surface, harness)}
    if config.mechanism.noise_at_server:
        return {
            "T1": partial(central_replay, config),
            "T2": partial(central_noise_scale, config),
            "T6": partial(release_surface, harness),
        }
    found: dict[str, Callable[[], Iterable[Check]]] = {
        "T1": partial(_replays, harness),
        "T2": partial(noise_scale, harness),
        "T3": partial(independence, harness),
        "T5": partial(accountant, harness),
        "T6": partial(release_surface, harness),
        "T8": partial(faults, harness),
    }
    if harness.plan.sample_rate < 1:
        found["T4"] = partial(sampler, harness)
    return dict(sorted(found.items()))


def _replays(harness: ClientHarness) -> Iterator[Check]:
    yield from neighbour_replay(harness)
    if harness.config.needs_no_torch:
        yield from boundary_replay(harness)
