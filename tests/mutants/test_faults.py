"""Each planted fault fails the test that it names; a fault that survives fails this suite."""

import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from common.ledger.holder_keys import HolderKeys
from common.system.files import write_atomic
from common.system.threads import one_thread
from tests.mutants import (  # noqa: F401 -- each registers its faults
    of_accounts,
    of_batched_gradients,
    of_budgets,
    of_bundles,
    of_caches,
    of_data,
    of_deployment,
    of_explanations,
    of_exports,
    of_files,
    of_heads,
    of_histograms,
    of_labels,
    of_live_pages,
    of_masked_words,
    of_messages,
    of_models,
    of_own_clients,
    of_policies,
    of_reports,
    of_requests,
    of_resumes,
    of_rounding,
    of_secure_runs,
    of_secure_statistics,
    of_secure_sums,
    of_shares,
    of_statistics,
    of_stored_ledgers,
    of_subgroups,
    of_summed_clients,
)
from tests.mutants.faults import FAULTS, Check, Fault, raised_under
from tests.mutants.source_edit import StaleFaultError

# Under these a fault is written wrongly, and was noticed by nobody.
_BROKEN = (NameError, ImportError, AttributeError, SyntaxError, StaleFaultError)


@pytest.fixture(autouse=True, name="own_home")
def home_of_one_fault(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give each fault a home of its own, whose keys are the same in every run.

    What a fault writes into caches on disk is read by no other test. The keys decide which images are held out: with
    new keys in each run, a fault that moves one image would be noticed in four runs of five.
    """
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("BRACT_HOME", str(home))
    keys, folder = HolderKeys.simulated(1, "holder of planted faults"), home / "holder"
    folder.mkdir(mode=0o700)
    for name, secret in (("fingerprint.key", keys.fingerprint), ("signing.key", keys.signing)):
        write_atomic(folder / name, secret, durable=False, mode=0o600)
    return home


@pytest.fixture(autouse=True, name="client_thread")
def thread_of_a_client() -> Iterator[None]:
    """Limit PyTorch to one thread, as a client does.

    Some checks rely on it, and their own files see to it by fixtures that are not theirs here.
    """
    with one_thread():
        yield


def name_of(check: Check) -> str:
    function = check.func if isinstance(check, partial) else check
    return f"{function.__module__.rpartition('.')[2]}.{function.__name__}"


def arguments_of(request: pytest.FixtureRequest, check: Check) -> dict[str, Any]:
    """Return the fixtures that a check takes."""
    given = check.keywords if isinstance(check, partial) else {}
    return {name: request.getfixturevalue(name) for name in inspect.signature(check).parameters if name not in given}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_fails_the_test_that_it_names(request: pytest.FixtureRequest, fault: Fault) -> None:
    arguments = arguments_of(request, fault.check)

    error = raised_under(fault, arguments)

    assert error is not None, f"nobody notices {fault.name}"
    assert not isinstance(error, _BROKEN), f"the fault is broken, and not the product: {error!r}"


def runs_anyway(check: Check) -> bool:
    return name_of(check).split(".")[-1].startswith("test_")


# A check that fails without any fault, here or by itself, would notice nothing. Most are tests that run anyway.
CHECKS = {id(fault.check): fault.check for fault in FAULTS.values()}.values()
OF_FAULTS = [
    pytest.param(check, id=name_of(check), marks=pytest.mark.soak if runs_anyway(check) else ()) for check in CHECKS
]


@pytest.mark.parametrize("check", OF_FAULTS)
def test_a_check_holds_without_any_fault(request: pytest.FixtureRequest, check: Check) -> None:
    check(**arguments_of(request, check))


def test_at_least_sixty_faults_are_planted_over_all_rooms() -> None:
    assert len(FAULTS) >= 60
