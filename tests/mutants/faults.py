"""What a planted fault is, and the plain test that must fail under it.

A fault is a mutant for everything that no layer of the audit looks at: caches, messages, files, the server and its
deployment, data and accounts. It names the test that notices it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import Signature, signature
from typing import Any

import pytest

from tests.mutants.registry import Patch
from tests.mutants.source_edit import edit, edit_text, forget_results

Check = Callable[..., object]


@dataclass(frozen=True)
class Fault:
    """One wrong line of the product.

    Attributes:
        name: What is wrong, in words.
        check: Test that must fail under it. Its parameters are fixtures; `functools.partial` gives it other values.
        apply: Patches the real code.
        forget: Called after the patch was undone.
    """

    name: str
    check: Check
    apply: Patch
    forget: Callable[[], None] = lambda: None


FAULTS: dict[str, Fault] = {}


def every_case(test: Check) -> Check:
    """Return a check that runs a parametrized test with each set of its values, one after the other.

    Its other parameters are fixtures, which the cases share.
    """
    cases: list[dict[str, Any]] = [{}]
    for mark in test.pytestmark:  # type: ignore[attr-defined]
        if mark.name == "parametrize":
            names, sets = mark.args[0], mark.args[1]
            rows = [dict(zip(_names(names), [row] if isinstance(names, str) else row, strict=True)) for row in sets]
            cases = [case | row for case in cases for row in rows]

    def run(**fixtures: Any) -> None:
        for case in cases:
            test(**fixtures, **case)

    wanted = [each for name, each in signature(test).parameters.items() if name not in cases[0]]
    run.__signature__ = Signature(wanted)  # type: ignore[attr-defined]
    run.__name__, run.__module__ = test.__name__, test.__module__
    return run


def _names(names: str | Sequence[str]) -> list[str]:
    return [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)


def planted(check: Check, function: Any, faults: Mapping[str, tuple[str, str]]) -> None:
    """Register faults in each of which one piece of a function is another, by name: (right, wrong)."""
    for name, pieces in faults.items():
        _register(
            Fault(name, check, lambda patch, p=pieces: edit(patch, function, *p), partial(forget_results, function))  # type: ignore[misc]
        )


def planted_in_text(name: str, check: Check, file: str, right: str, wrong: str) -> None:
    """Register a fault in a file that a test reads as text."""
    _register(Fault(name, check, lambda patch: edit_text(patch, file, right, wrong)))


def planted_value(name: str, check: Check, owner: Any, attribute: str, wrong: Any) -> None:
    """Register a fault in which an attribute of a module or a class has another value."""
    _register(Fault(name, check, lambda patch: patch.setattr(owner, attribute, wrong)))


def noticed_by(check: Check) -> Callable[[Patch], Patch]:
    """Register a patch as a fault; its name says what is wrong."""

    def register(apply: Patch) -> Patch:
        _register(Fault(apply.__name__.replace("_", " "), check, apply))
        return apply

    return register


def _register(fault: Fault) -> None:
    assert fault.name not in FAULTS, f"two faults are called {fault.name!r}"
    FAULTS[fault.name] = fault


def raised_under(fault: Fault, arguments: dict[str, Any]) -> BaseException | None:
    """Return what a fault's check raises while the fault is in force."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            fault.apply(patch)
            try:
                fault.check(**arguments)
            # A failed `pytest.raises` is no Exception.
            except (Exception, pytest.fail.Exception) as error:
                return error
            return None
    finally:
        fault.forget()
