"""Reasons to read some files of a changed bundle before the others.

A file without a flag is not proven harmless.
"""

import ast
from collections.abc import Iterator

# Beginning of a file's path -> reason. A test holds every beginning to files that exist.
_GUARDS = {
    "client/": "runs beside the images, or guards them",
    "common/privacy/": "guards the budget",
    "common/ledger/": "guards the budget",
    "common/messages/": "decides what may leave",
    "common/system/app_bundle.py": "decides which code may run",
    "pyproject.toml": "names the apps, the defaults and what is installed",
}
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
    """Return the reasons to read a file that differs, most telling first.

    Args:
        name: The file's path in the bundle.
        old: Content before; None if the file is new.
        new: Content now; None if the file was removed.
    """
    flags = list(_flags_of_code(old, new)) if name.endswith(".py") else []
    flags += [reason for beginning, reason in _GUARDS.items() if name.startswith(beginning)]
    if not name.endswith((".py", ".toml", ".md", ".txt", ".typed")) and name not in ("LICENSE", ".gitignore"):
        flags.append("not source code")
    return tuple(flags)


def _flags_of_code(old: bytes | None, new: bytes | None) -> Iterator[str]:
    if new is None:
        return
    before, after = _imports_and_calls(old), _imports_and_calls(new)
    if after is None:
        yield "cannot be parsed as Python"
        return
    fresh = after - (before or set())
    imported = {name.removeprefix("import ") for name in fresh if name.startswith("import ")}
    for danger, known in (("can reach a network", _OUTWARD), ("can run other code", _POWERFUL)):
        if modules := sorted(known & imported):
            yield f"{danger}: now imports {', '.join(modules)}"
    if calls := sorted(_CALLS & fresh):
        yield f"can run other code: now calls {', '.join(calls)}"


def _imports_and_calls(content: bytes | None) -> set[str] | None:
    """Return `import X` for each module and the names of all calls.

    None stands for a file that cannot be parsed.
    """
    try:
        tree = ast.parse(content or b"")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {f"import {alias.name.split('.')[0]}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(f"import {node.module.split('.')[0]}")
        elif isinstance(node, ast.Call):
            names.add(node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", ""))
    return names
