"""Each way of breaking the guarantee that is known is noticed by the layer that is there for it.

Drives `simulations.privacy_tests.central_dp`.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from common.config.loading import Scalar
from simulations.harness.client_harness import ClientHarness
from simulations.privacy_tests.central_dp import released
from simulations.privacy_tests.check import Check, run_privacy_test
from tests.mutants import (  # noqa: F401 -- each registers its mutants
    of_accounting,
    of_clipping,
    of_histograms,
    of_labels,
    of_ledger,
    of_noise,
    of_releases,
    of_replay,
    of_rounding,
    of_sampling,
    of_server,
    of_statistics,
    of_streams,
    of_subgroups,
)
from tests.mutants.registry import CENTRAL, LAYERS, MUTANTS, Mutant, checks_of, forget
from tests.support.simulations.harness import CLIENT_DP, MODES, harness_of

LISTED = """
no clipping; clip per batch; clip per tensor with one C; NaN example unclipped; augmentations clipped apart; a unit's
images voting twice; (correct, n) accounted at sensitivity 1; noise x 0.9; noise for the next clip bound; same noise
each round; equal seed at two clients; shuffled batches; empty batches skipped; accountant new each round; exact metrics
sent under DP; BatchNorm statistics in the payload; retry not recorded; sampling stream restored on resume; exception
text sent; old ledger restored
"""
# Modes without settings of their own are those of `test_suite`, which holds them to the same layers.
BEDS = sorted(
    {m.bed for m in MUTANTS.values() if m.settings or m.mode == CENTRAL or m.layer in ("T4", "T5", "T8")}, key=str
)


@contextmanager
def applied(mutant: Mutant, home: Path) -> Iterator[None]:
    """The patch is in force here only: nothing that it leaves in a cache outlives it."""
    forget(figures=mutant.layer == "T5")
    with pytest.MonkeyPatch.context() as patch:
        if mutant.layer == "T5":  # wrong figures must not be remembered on disk either
            patch.setenv("BRACT_HOME", str(home))
        mutant.apply(patch)
        yield
    forget(figures=mutant.layer == "T5")


def bench_for(folder: Path, mode: str, settings: Iterable[tuple[str, Scalar]]) -> ClientHarness:
    base: Mapping[str, Scalar] = CLIENT_DP if mode == CENTRAL else MODES[mode]
    return harness_of(folder, dict(base) | dict(settings))


def answers(harness: ClientHarness, mutant: Mutant) -> bool:
    """Whether a round still comes to its end: a mutant that breaks down is noticed by anybody."""
    if mutant.mode == CENTRAL:
        return released(harness, [np.zeros(400), np.ones(400)]).size == 400
    return not harness.ask("train", harness.images, name="somebody").failure


def until(checks: Iterable[Check], fails: str) -> Iterator[Check]:
    """Checks up to the one that kills."""
    for check in checks:
        yield check
        if fails in check.name and not check.passed:
            return


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS.keys())
def test_a_mutant_is_killed_by_its_layer(tmp_path: Path, caplog: pytest.LogCaptureFixture, mutant: Mutant) -> None:
    harness = bench_for(tmp_path, mutant.mode, mutant.settings)

    with applied(mutant, tmp_path / "home"):
        assert answers(harness, mutant)
        report = run_privacy_test(
            mutant.layer, lambda: until(checks_of(mutant.layer, mutant.mode, harness), mutant.fails)
        )

    assert any(mutant.fails in check.name for check in report.failed), (
        f"survived {report.test}: {[(check.name, check.seen) for check in report.failed]}"
    )
    if mutant.layer in ("T1", "T2", "T3", "T4", "T5"):
        assert "failed in" not in caplog.text  # it fails by what it releases, not by breaking down


@pytest.mark.parametrize("bed", BEDS, ids=str)
def test_the_layer_holds_without_any_mutant(
    tmp_path: Path, bed: tuple[str, str, tuple[tuple[str, Scalar], ...]]
) -> None:
    layer, mode, settings = bed

    report = run_privacy_test(layer, lambda: checks_of(layer, mode, bench_for(tmp_path, mode, settings)))

    assert report.holds, report.failed


def test_at_least_thirty_mutants_say_what_they_break_and_which_layer_kills_them() -> None:
    assert len(MUTANTS) >= 30
    for mutant in MUTANTS.values():
        assert mutant.apply.__doc__
        assert mutant.layer in LAYERS
        assert mutant.mode in {*MODES, CENTRAL}


def test_every_mutant_of_the_rules_is_there() -> None:
    wanted = {" ".join(name.split()) for name in LISTED.split(";")}

    assert {mutant.listed for mutant in MUTANTS.values()} - {""} == wanted
