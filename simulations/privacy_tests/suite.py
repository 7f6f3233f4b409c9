"""The privacy tests that apply to a configuration."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial

from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.accounting import accountant
from simulations.privacy_tests.central_dp import central_noise_scale, central_replay
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.fault_injection import faults
from simulations.privacy_tests.independence import independence
from simulations.privacy_tests.neighbouring_data import amplified_replay, boundary_replay, neighbour_replay
from simulations.privacy_tests.noise_scale import noise_scale
from simulations.privacy_tests.opened_sums import opened_independence, opened_noise, opened_replay
from simulations.privacy_tests.released_fields import release_surface
from simulations.privacy_tests.sampling import sampler

# Privacy test -> its subject, for the table that users see.
ABOUT: Mapping[str, str] = {
    "T1": "neighbour replay: one unit more, the same noise",
    "T2": "scale of the noise",
    "T3": "independence of noise and batches",
    "T4": "sampling of batches",
    "T5": "accountant against an independent one",
    "T6": "release surface: fields and bytes",
    "T8": "ledger under faults",
}


def privacy_tests_of(harness: ClientHarness) -> dict[str, Callable[[], Iterable[Check]]]:
    """Return the privacy tests of a configuration's mechanism, by name.

    Args:
        harness: The configuration.

    Returns:
        `T1` to `T8` -> function that makes the checks.
    """
    surface = partial(release_surface, harness)
    # Rounding only processes what is released. The clip bound and the noise are tested where they are exact.
    exact = harness.with_settings(training={"update_bits": 32}) if harness.config.is_local_dp else harness
    if not harness.config.private:
        return {"T6": surface}
    if harness.config.secure is not None:
        # What one client sends is masked, so the tests are of what a server reads in a sum.
        sums = {"T1": opened_replay, "T2": opened_noise, "T3": opened_independence}
        return {test: partial(checks, harness) for test, checks in sums.items()}
    if harness.config.mechanism.noise_at_server:
        return {"T1": partial(central_replay, harness), "T2": partial(central_noise_scale, harness), "T6": surface}
    tests: dict[str, Callable[[], Iterable[Check]]] = {
        "T1": partial(_replays, exact),
        "T2": partial(noise_scale, exact),
        "T3": partial(independence, exact),
        "T4": partial(sampler, exact),
        "T5": partial(accountant, exact),
        "T6": surface,
        "T8": partial(faults, exact),
    }
    # With every unit in every step, there is no sampling to test.
    if harness.plan.sample_rate == 1:
        del tests["T4"]
    return tests


def _replays(harness: ClientHarness) -> Iterator[Check]:
    yield from neighbour_replay(harness)
    # Only the linear head computes in blocks of examples.
    if harness.config.needs_no_torch:
        yield from boundary_replay(harness)
    # And only a network's gradients could be computed in batches.
    elif harness.config.mechanism.clips_units:
        yield from amplified_replay(harness)
