"""Figures of the house rules, printed by `python -m tests.support.house`.

`tests/test_layout.py` holds the product to the same figures.
"""

import ast
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from common.privacy.mechanisms.registry import MECHANISMS
from tests.support.paths import ROOT
from tests.support.voice import faults_of

ROOMS = ("common", "client", "server", "simulations")
MAX_FILES, MAX_LINES, MAX_FUNCTION = 14, 400, 60
MAX_MECHANISM_FILES, MAX_RUN_CONFIG = 4, 45
PRIVATE = {name for name, mechanism in MECHANISMS.items() if mechanism.private}
# Names of the time before the rooms, each replaced by the field's word.
RETIRED_NAMES = (
    *("meet_clients", "drop_impostors", "LateComers", "unfit", "drop_absurd", "Gathering", "Usable", "Wire", "Course"),
    *("Surroundings", "Outcome", "Choice", "any_plan", "show_closing", "_hard_times", "_went_on", "reunite"),
    *("Stated", "StatedClient", "NodeBook", "Said", "LedgerOnLoan", "Books", "Holding", "Holdings", "same_images"),
    *("given_to_run", "deal_afresh", "Content", "Body", "num_mapped", "remembered", "in_line", "closed_form"),
    *("noises_gradients", "Local", "local_of", "Place", "place_of", "Bench", "Seen", "arranged", "in_place", "slopes"),
    *("voters", "least_cohort", "least_noise_multiplier", "MOST_EPSILON", "Findings", "NO_ROOM", "Share", "Spending"),
)
# A ledger's policy digest goes over these names for ever, and old policy files have them.
RETIRED_BUT_STORED = {"common/privacy/policy.py": {"least_cohort", "least_noise_multiplier"}}


@cache
def product_files() -> tuple[Path, ...]:
    """Return all product modules, in order."""
    return tuple(sorted([*(file for room in ROOMS for file in (ROOT / room).rglob("*.py")), ROOT / "bract.py"]))


def name_of(file: Path) -> str:
    """Return a file's path from the repository's root."""
    return file.relative_to(ROOT).as_posix()


@cache
def tree_of(file: Path) -> ast.Module:
    """Return a file's syntax tree."""
    return ast.parse(file.read_text(encoding="utf-8"))


@cache
def nodes_of(file: Path) -> tuple[ast.AST, ...]:
    """Return all nodes of a file's syntax tree."""
    return tuple(ast.walk(tree_of(file)))


def module_of(file: Path) -> str:
    """Return the name that a product file is imported by."""
    return name_of(file).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def imports_of(file: Path) -> Iterator[str]:
    """Yield the modules that a file imports anywhere, names of submodules included."""
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def functions_of(file: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Yield every function and method of a file."""
    for node in nodes_of(file):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def folder_sizes() -> dict[str, int]:
    """Return folder -> number of modules in it."""
    sizes: dict[str, int] = {}
    for file in product_files():
        folder = name_of(file.parent) if file.parent != ROOT else "."
        sizes[folder] = sizes.get(folder, 0) + 1
    return sizes


def import_circles() -> list[set[str]]:
    """Return the groups of modules that import each other, found as strongly connected components."""
    modules = {module_of(file): file for file in product_files()}
    graph = {name: {other for other in imports_of(file) if other in modules} - {name} for name, file in modules.items()}
    return [group for group in _components(graph) if len(group) > 1]


def _components(graph: Mapping[str, set[str]]) -> list[set[str]]:
    """Return strongly connected components. Source: Kosaraju's two passes, without recursion."""
    order: list[str] = []
    seen: set[str] = set()
    for start in graph:
        stack = [(start, iter(sorted(graph[start])))] if start not in seen else []
        seen.add(start)
        while stack:
            name, targets = stack[-1]
            following = next((target for target in targets if target not in seen), None)
            if following is None:
                order.append(name)
                stack.pop()
            else:
                seen.add(following)
                stack.append((following, iter(sorted(graph[following]))))
    backwards: dict[str, set[str]] = {name: set() for name in graph}
    for name, targets in graph.items():
        for target in targets:
            backwards[target].add(name)
    groups: list[set[str]] = []
    left = set(graph)
    for start in reversed(order):
        if start not in left:
            continue
        group, frontier = set(), [start]
        while frontier:
            name = frontier.pop()
            if name in left:
                left.discard(name)
                group.add(name)
                frontier.extend(backwards[name] & left)
        groups.append(group)
    return groups


def retired_names() -> list[str]:
    """Return `file: name` of each retired name that is still an identifier."""
    found = []
    for file in product_files():
        used = set()
        for node in nodes_of(file):
            if isinstance(node, ast.Name):
                used.add(node.id)
            elif isinstance(node, ast.Attribute):
                used.add(node.attr)
            elif isinstance(node, ast.arg):
                used.add(node.arg)
            elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                used.add(node.name)
        left = used & set(RETIRED_NAMES) - RETIRED_BUT_STORED.get(name_of(file), set())
        found += [f"{name_of(file)}: {name}" for name in sorted(left)]
    return found


def mechanism_files() -> list[str]:
    """Return the files outside of the mechanisms' room that hold a mechanism's name as a value."""
    names = re.compile(f"""["']({"|".join(sorted(PRIVATE))})["']""")
    holding = [name_of(file) for file in product_files() if names.search(file.read_text(encoding="utf-8"))]
    return [name for name in holding if not name.startswith("common/privacy/mechanisms/")]


def mechanism_comparisons() -> list[str]:
    """Return `file:line` of each comparison with a mechanism's name outside of `common/config` and the mechanisms."""
    found = []
    for file in product_files():
        if name_of(file).startswith(("common/config/", "common/privacy/mechanisms/")):
            continue
        for node in nodes_of(file):
            if isinstance(node, ast.Compare):
                values = {part.value for part in ast.walk(node) if isinstance(part, ast.Constant)}
                named = values & PRIVATE or ("none" in values and "mechanism" in ast.unparse(node))
                if named:
                    found.append(f"{name_of(file)}:{node.lineno}")
    return found


def run_config_functions() -> list[str]:
    """Return `file: function` of each function that takes a whole `RunConfig`."""
    found = []
    for file in product_files():
        for function in functions_of(file):
            arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
            if any(item.annotation and re.search(r"\bRunConfig\b", ast.unparse(item.annotation)) for item in arguments):
                found.append(f"{name_of(file)}: {function.name}")
    return found


def mock_imports() -> list[str]:
    """Return the product files that import `unittest.mock`."""
    return [name_of(file) for file in product_files() if any(name.startswith("unittest") for name in imports_of(file))]


def long_files() -> list[str]:
    """Return the files with more lines than the limit."""
    return [name_of(file) for file in product_files() if len(file.read_text().splitlines()) > MAX_LINES]


def long_functions() -> list[str]:
    """Return the functions with more lines than the limit."""
    return [
        f"{name_of(file)}: {function.name}"
        for file in product_files()
        for function in functions_of(file)
        if (function.end_lineno or 0) - function.lineno >= MAX_FUNCTION
    ]


def product_lines() -> int:
    """Return the number of lines of all product modules."""
    return sum(len(file.read_text(encoding="utf-8").splitlines()) for file in product_files())


def voice_faults() -> list[str]:
    """Return every docstring summary or text that breaks the rules of voice."""
    return [f"{name_of(file)}:{fault}" for file in product_files() for fault in faults_of(nodes_of(file))]


def untested_modules() -> list[str]:
    """Return the modules without a namesake in tests that no test's docstring names either."""
    tests = list((ROOT / "tests").rglob("test_*.py"))
    named = " ".join(ast.get_docstring(tree_of(file)) or "" for file in tests)
    untested = []
    for file in product_files():
        folder, namesake = ROOT / "tests" / file.relative_to(ROOT).parent, f"test_{file.stem}.py"
        mentioned = re.search(rf"`{re.escape(module_of(file))}`", named)
        if file.stem != "__init__" and not (folder / namesake).is_file() and not mentioned:
            untested.append(name_of(file))
    return untested


def crowded_folders() -> list[str]:
    """Return the folders with more modules than the limit."""
    return [f"{folder}: {number}" for folder, number in folder_sizes().items() if number > MAX_FILES]


@dataclass(frozen=True)
class Figure:
    """One line of the report.

    Its value is the number of places that it finds when it is asked. Nothing is read when this module is imported.
    """

    name: str
    find: Callable[[], Sequence[object]]
    limit: int = 0


FIGURES = (
    Figure("import circles", import_circles),
    Figure(f"folders with more than {MAX_FILES} modules", crowded_folders),
    Figure(f"files with more than {MAX_LINES} lines", long_files),
    Figure(f"functions of {MAX_FUNCTION} lines or more", long_functions),
    Figure("uses of retired names", retired_names),
    Figure("files that name a mechanism", mechanism_files, MAX_MECHANISM_FILES),
    Figure("comparisons with a mechanism's name", mechanism_comparisons, 1),
    Figure("functions that take RunConfig", run_config_functions, MAX_RUN_CONFIG),
    Figure("product modules that import unittest", mock_imports),
    Figure("modules that no test names", untested_modules),
    Figure("faults of voice", voice_faults),
)


def main() -> None:
    """Print every figure, and what is beyond its limit."""
    print(f"{product_lines():>6}  lines of product code in {len(product_files())} modules")  # noqa: T201
    for figure in FIGURES:
        found = figure.find()
        print(f"{len(found):>6}  {figure.name} (limit {figure.limit})")  # noqa: T201
        if len(found) > figure.limit:
            for line in found:
                print(f"          {line}")  # noqa: T201


if __name__ == "__main__":
    main()
