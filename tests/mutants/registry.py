"""What a mutant is, and which layer of the audit must kill it."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pytest

import client.app as client_app
import client.training.trainer as trainer_module
from client.training import network_sgd as network_training
from common.config.loading import Scalar
from common.privacy import accounting
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.accounting import accountant
from simulations.privacy_tests.central_dp import central_noise_scale, central_replay
from simulations.privacy_tests.check import Check
from simulations.privacy_tests.fault_injection import faults
from simulations.privacy_tests.independence import independence
from simulations.privacy_tests.neighbouring_data import amplified_replay, boundary_replay, neighbour_replay
from simulations.privacy_tests.noise_scale import noise_scale
from simulations.privacy_tests.released_fields import release_surface
from simulations.privacy_tests.sampling import sampler

Patch = Callable[[pytest.MonkeyPatch], None]
CENTRAL = "client-dp"  # the mode in which the server adds the noise


@dataclass(frozen=True)
class Mutant:
    """One patch.

    Attributes:
        layer: Must kill it: `T1` to `T8`.
        mode: One of `harness_cases.MODES`, or `CENTRAL`.
        fails: Part of the name of a check that must fail.
        listed: What privacy.md calls it; empty if it is not in that list.
        settings: On top of the mode's.
        apply: Patches the real code.
    """

    layer: str
    mode: str
    fails: str
    listed: str
    settings: tuple[tuple[str, Scalar], ...]
    apply: Patch

    @property
    def name(self) -> str:
        return self.apply.__name__

    @property
    def bed(self) -> tuple[str, str, tuple[tuple[str, Scalar], ...]]:
        """What it runs on, which must hold without it."""
        return self.layer, self.mode, self.settings


MUTANTS: dict[str, Mutant] = {}


def mutant(
    layer: str, fails: str, *, mode: str = "head", listed: str = "", settings: Mapping[str, Scalar] | None = None
) -> Callable[[Patch], Patch]:
    """Register a patch; its docstring says what is broken, and where it has happened."""

    def register(apply: Patch) -> Patch:
        assert apply.__name__ not in MUTANTS, f"two mutants are called {apply.__name__}"
        MUTANTS[apply.__name__] = Mutant(layer, mode, fails, listed, tuple((settings or {}).items()), apply)
        return apply

    return register


def _replays(harness: ClientHarness) -> Iterator[Check]:
    yield from neighbour_replay(harness)
    if harness.config.needs_no_torch:
        yield from boundary_replay(harness, sizes=(0,))
    else:
        yield from amplified_replay(harness, draws=1)


# Sizes at which each layer still has teeth enough for every mutant.
LAYERS: dict[str, Callable[[ClientHarness], Iterable[Check]]] = {
    "T1": _replays,
    "T2": partial(noise_scale, draws=12_000, counts=300),
    "T3": independence,
    "T4": partial(sampler, rounds=60),
    "T5": accountant,
    "T6": release_surface,
    "T8": faults,
}
CENTRAL_LAYERS: dict[str, Callable[[ClientHarness], Iterable[Check]]] = {
    "T1": central_replay,
    "T2": central_noise_scale,
}


def checks_of(layer: str, mode: str, harness: ClientHarness) -> Iterable[Check]:
    """The checks of one layer, made one by one."""
    return (CENTRAL_LAYERS if mode == CENTRAL else LAYERS)[layer](harness)


def forget(*, figures: bool) -> None:
    """Let go of what a patched function may have left in a cache of this process.

    Args:
        figures: Also of what the accountant has worked out, which takes long.
    """
    client_app.SESSIONS.clear()
    network_training._CHECKED.clear()
    trainer_module._local.__dict__.clear()
    if figures:
        accounting.FIGURES.clear()
