"""What deserves a look first in a changed bundle. No flag is no proof of harmlessness."""

import ast
from collections.abc import Iterator

_GUARDS = ("client/", "common/privacy/", "common/ledger/", "common/secagg/")
_GATES = (
    "common/messages/codec.py",
    "common/messages/checks.py",
    "common/messages/fields.py",
    "common/messages/serialization.py",
    "common/system/app_bundle.py",
)
_SETTINGS = ("pyproject.toml",)
_OUTWARD = frozenset(
    {"aiohttp", "asyncio", "ftplib", "http", "httpx", "requests", "smtplib", "socket", "socketserver", "ssl", "urllib"}
    | {"urllib3", "websocket", "websockets", "xmlrpc"}
)
_POWERFUL = frozenset(
    {"cffi", "code", "ctypes", "dill", "importlib", "marshal", "multiprocessing", "pickle", "pty", "runpy", "shelve"}
    | {"subprocess", "cloudpickle"}
)
_CALLS = frozenset({"__import__", "compile", "eval", "exec", "execv", "execve", "fork", "popen", "spawnv", "system"})


def flags_of(name: str, old: bytes | None, new: bytes | None) -> tuple[str, ...]:
    """Why a file that differs deserves a look, most telling first.

    Args:
        name: Its path in the bundle.
        old: What it was; None if it was not there.
        new: What it is; None if it is gone.
    """
    found = list(_flags_of_code(old, new)) if name.endswith(".py") else []
    if name.startswith(_GUARDS):
        found.append("runs beside the images, or guards them" if name.startswith("client/") else "guards the budget")
    elif name in _GATES:
        found.append("decides what may leave")
    elif name in _SETTINGS:
        found.append("names the apps, the defaults and what is installed")
    if not name.endswith((".py", ".toml", ".md", ".txt", ".typed")) and name not in ("LICENSE", ".gitignore"):
        found.append("no source code")
    return tuple(found)


def _flags_of_code(old: bytes | None, new: bytes | None) -> Iterator[str]:
    if new is None:
        return
    before, after = _reaches(old), _reaches(new)
    if after is None:
        yield "cannot be parsed as Python"
        return
    fresh = after - (before or set())
    for what, known in (("can reach a network", _OUTWARD), ("can run other code", _POWERFUL)):
        if modules := sorted(known & {name.removeprefix("import ") for name in fresh if name.startswith("import ")}):
            yield f"{what}: now imports {', '.join(modules)}"
    if calls := sorted(_CALLS & fresh):
        yield f"can run other code: now calls {', '.join(calls)}"


def _reaches(content: bytes | None) -> set[str] | None:
    """`import X` for each module, and the names of all calls; None if it cannot be parsed."""
    try:
        tree = ast.parse(content or b"")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {f"import {alias.name.split('.')[0]}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.add(f"import {node.module.split('.')[0]}")
        elif isinstance(node, ast.Call):
            found.add(node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", ""))
    return found
