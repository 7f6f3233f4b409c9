"""Calls by which the product writes files, found in its syntax trees."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.support.house import name_of

# Functions of `common.system.files`, and what is built on them without an own choice of mode.
ATOMIC = ("write_atomic", "atomic_stream")
_RAW = (
    *("write_text", "write_bytes", "touch", "truncate", "tofile", "savefig", "save_file", "mkstemp", "dump"),
    *("copy", "copy2", "copyfile", "copytree", "move", "rename", "replace", "link", "NamedTemporaryFile"),
    *("save", "savez", "savez_compressed", "savetxt", "save_to_disk", "to_csv", "to_parquet", "extractall"),
)
# Methods of other types that write no file.
_OWNERS = {"copy": ("shutil",), "move": ("shutil",), "rename": ("os",), "replace": ("os",), "link": ("os",)}


@dataclass(frozen=True)
class Writer:
    """One call that writes a file.

    Attributes:
        place: File and function, such as `client/app.py train`.
        call: Name of what is called.
        durable: Whether an atomic write is on the disk when it returns; None if a variable decides.
        mode: Mode of an atomic write, None if a variable decides.
    """

    place: str
    call: str
    durable: bool | None = None
    mode: int | None = None


def writers_of(file: Path) -> tuple[Writer, ...]:
    """Return the calls of a file that write files."""
    return _writers(name_of(file), file.read_text(encoding="utf-8"))


@cache
def _writers(name: str, source: str) -> tuple[Writer, ...]:
    return tuple(_in(ast.parse(source), name, ""))


def _in(node: ast.AST, name: str, function: str) -> Iterator[Writer]:
    for child in ast.iter_child_nodes(node):
        inside = child.name if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else function
        if isinstance(child, ast.Call):
            called = _called(child)
            place = f"{name} {inside}".strip()
            if called in ATOMIC:
                given = {word.arg: word.value for word in child.keywords}
                yield Writer(place, called, _constant(given.get("durable")), _constant(given.get("mode")))
            elif called and (called != "open" or _opens_for_writing(child)):
                yield Writer(place, called)
        yield from _in(child, name, inside)


def _called(call: ast.Call) -> str:
    """Return the name of a call that may write a file, empty for others."""
    function = call.func
    if isinstance(function, ast.Name):
        return function.id if function.id in ("open", "save_file", "copyfile", "copytree", "mkstemp", *ATOMIC) else ""
    if not isinstance(function, ast.Attribute):
        return ""
    owner = function.value.id if isinstance(function.value, ast.Name) else ""
    if function.attr in _OWNERS:
        return function.attr if owner in _OWNERS[function.attr] else ""
    # Tensors may be written to a stream that is open already; who opened it is found by itself.
    if function.attr.startswith("save") and call.args and ast.unparse(call.args[0]) == "stream":
        return ""
    if function.attr == "open" and owner == "os":
        return "os.open"
    return function.attr if function.attr in (*_RAW, "open") else ""


def _opens_for_writing(call: ast.Call) -> bool:
    words = [*call.args, *(word.value for word in call.keywords if word.arg == "mode")]
    modes = [word.value for word in words if isinstance(word, ast.Constant) and isinstance(word.value, str)]
    return any(set(mode) <= set("rwaxbt+") and set(mode) & set("wax+") for mode in modes)


def _constant(value: ast.expr | None) -> int | None:
    return value.value if isinstance(value, ast.Constant) and isinstance(value.value, int) else None
