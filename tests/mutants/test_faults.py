"""Each planted fault fails the test that it names; a fault that survives fails this suite."""

import inspect
from functools import partial

import pytest

from tests.mutants import (  # noqa: F401 -- each registers its faults
    of_accounts,
    of_budgets,
    of_caches,
    of_data,
    of_deployment,
    of_files,
    of_heads,
    of_messages,
    of_own_clients,
    of_policies,
    of_requests,
    of_resumes,
    of_stored_ledgers,
)
from tests.mutants.faults import FAULTS, Check, Fault, raised_under

# Under these a fault is written wrongly, and was noticed by nobody.
_BROKEN = (NameError, ImportError, AttributeError, SyntaxError)


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_a_planted_fault_fails_the_test_that_it_names(request: pytest.FixtureRequest, fault: Fault) -> None:
    given = fault.check.keywords if isinstance(fault.check, partial) else {}
    wanted = [name for name in inspect.signature(fault.check).parameters if name not in given]
    arguments = {name: request.getfixturevalue(name) for name in wanted}

    error = raised_under(fault, arguments)

    assert error is not None, f"nobody notices {fault.name}"
    assert not isinstance(error, _BROKEN), f"the fault is broken, and not the product: {error!r}"


# Tests hold by themselves, wherever they are.
CHECKS = sorted({fault.check for fault in FAULTS.values() if not isinstance(fault.check, partial)}, key=str)
PLAIN = [check for check in CHECKS if check.__module__.startswith("tests.mutants.")]


@pytest.mark.parametrize("check", PLAIN, ids=lambda check: check.__name__)
def test_the_check_holds_without_any_fault(request: pytest.FixtureRequest, check: Check) -> None:
    check(**{name: request.getfixturevalue(name) for name in inspect.signature(check).parameters})


def test_at_least_sixty_faults_are_planted_over_all_rooms() -> None:
    assert len(FAULTS) >= 60
