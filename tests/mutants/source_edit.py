"""Edits of one piece of a function's source, as a hurried hand would make them."""

import ast
import functools
import inspect
import textwrap
from pathlib import Path
from types import CodeType, FunctionType
from typing import Any

import pytest

from tests.support.paths import ROOT


class StaleFaultError(Exception):
    """A fault whose text the product no longer holds, so that it must be planted anew."""


def edit(patch: pytest.MonkeyPatch, function: Any, right: str, wrong: str) -> None:
    """Replace one piece of a function, wherever the function was imported.

    `function` may also be a property, a method or a decorated function. Its code is replaced in place. What its caches
    hold is forgotten before; whoever undoes the patch forgets it again, see `forget_results`.

    Raises:
        StaleFaultError: The piece is not there exactly once, so the fault must be planted anew.
    """
    forget_results(function)
    plain = _plain(function)
    patch.setattr(plain, "__code__", _edited(plain, right, wrong))


def edit_text(patch: pytest.MonkeyPatch, name: str, right: str, wrong: str) -> None:
    """Replace one piece of a file for all who read the product's source."""
    read, file = Path.read_text, ROOT / name

    def text(path: Path, *args: Any, **more: Any) -> str:
        found = read(path, *args, **more)
        if path != file:
            return found
        if found.count(right) != 1:
            raise StaleFaultError(f"{name} holds {right!r} {found.count(right)} times")
        return found.replace(right, wrong)

    patch.setattr(Path, "read_text", text)


def forget_results(function: Any) -> None:
    """Empty the caches around a function."""
    while function is not None:
        if hasattr(function, "cache_clear"):
            function.cache_clear()
        function = getattr(function, "__wrapped__", None)


def _plain(function: Any) -> FunctionType:
    while not isinstance(function, FunctionType) or hasattr(function, "__wrapped__"):
        inner = function.fget if isinstance(function, property) else None
        inner = function.func if isinstance(function, functools.cached_property) else inner
        function = inner or getattr(function, "__wrapped__", None) or function.__func__
    return function


def _edited(function: FunctionType, right: str, wrong: str) -> CodeType:
    source = textwrap.dedent(inspect.getsource(function))
    if source.count(right) != 1:
        raise StaleFaultError(f"{function.__qualname__} holds {right!r} {source.count(right)} times")
    tree = ast.parse(source.replace(right, wrong))
    (definition,) = tree.body
    assert isinstance(definition, ast.FunctionDef | ast.AsyncFunctionDef)
    definition.decorator_list = []
    names: dict[str, Any] = {}
    exec(compile(tree, f"<planted in {function.__qualname__}>", "exec"), dict(function.__globals__), names)  # noqa: S102
    code: CodeType = names[function.__name__].__code__
    return code
