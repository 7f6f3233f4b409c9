"""The rooms keep their directions, sizes, names and voice, and every default lives in one place.

Drives `bract`.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from common.config.loading import defaults
from common.config.schema import RunConfig
from tests.support.house import FIGURES, Figure, name_of, nodes_of, product_files, tree_of
from tests.support.paths import ROOT

ROOMS = ("common", "client", "server", "simulations")

MAY_IMPORT = {
    "common": {"common"},
    "client": {"client", "common"},
    "server": {"server", "common"},
    "simulations": set(ROOMS),
    "bract": set(ROOMS),
}
PUBLIC_FLOWER = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.serverapp.strategy"}
# Which files may import which internals of Flower, and why; they change monthly, so nothing else may.
FLOWER_INTERNALS: dict[str, set[str]] = {
    # Builds messages outside a Flower process.
    "simulations/engines/in_process.py": {"flwr.supercore.task_identity", "flwr.supercore.run"},
    # Runs Flower's own simulation to compare with.
    "simulations/benchmarks/engine.py": {"flwr.simulation"},
    "simulations/benchmarks/peers/flower_opacus.py": {"flwr.simulation"},
    # Makes the bundle that `flwr run` would send.
    "common/system/app_bundle.py": {"flwr.cli.build"},
    # Runs a SuperNode, and speaks with it in place of Flower's own ClientApp process.
    "client/runtime/supernode_api.py": {
        "flwr.common.serde",
        "flwr.proto.fleet_pb2",
        "flwr.proto.message_pb2",
        "flwr.proto.node_pb2",
        "flwr.proto.runtime_pb2",
        "flwr.supercore.app_utils",
        "flwr.supercore.constant",
        "flwr.supercore.heartbeat",
        "flwr.supercore.inflatable.inflatable_object",
        "flwr.supercore.inflatable.inflatable_protobuf_utils",
        "flwr.supercore.inflatable.inflatable_utils",
        "flwr.supercore.interceptors",
        "flwr.supercore.retry",
        "flwr.supercore.run",
        "flwr.supercore.runtime",
        "flwr.supercore.task_identity",
        "flwr.supernode.cli.flower_supernode",
        "flwr.supernode.fleet_http_client",
        "flwr.supernode.runtime.run_clientapp",
    },
    # Admits nodes and removes them as `flwr supernode` does, starts runs as `flwr run` does.
    "server/deployment/superlink_control.py": {
        "flwr.common.serde",
        "flwr.proto.control_pb2",
        "flwr.supercore.control",
        "flwr.supercore.error",
        "flwr.supercore.fab",
    },
    # Starts the SuperLink.
    "server/deployment/gate/push_quota.py": {"flwr.proto.fleet_pb2", "flwr.proto.message_pb2"},
    "server/deployment/superlink_main.py": {"flwr.superlink", "flwr.superlink.cli.flower_superlink"},
}
FILES = product_files()


def imports(file: Path) -> Iterator[str]:
    for node in nodes_of(file):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_follow_the_direction_of_rooms(file: Path) -> None:
    room = file.relative_to(ROOT).parts[0].removesuffix(".py")
    ours = {module.split(".")[0] for module in imports(file)} & {*ROOMS, "bract"}

    assert ours <= MAY_IMPORT[room]


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_flower_is_imported_by_its_public_names(file: Path) -> None:
    flower = {module for module in imports(file) if module.split(".")[0] == "flwr"}
    internals = FLOWER_INTERNALS.get(name_of(file), set())

    assert flower <= PUBLIC_FLOWER | internals
    assert internals <= flower  # a row that is not needed any more goes


def test_flowers_internals_are_listed_for_files_that_are_there() -> None:
    assert set(FLOWER_INTERNALS) <= set(map(name_of, FILES))


def test_common_imports_flower_in_few_files() -> None:
    users = [name_of(f) for f in FILES if f.is_relative_to(ROOT / "common") and any("flwr" in m for m in imports(f))]

    few = {
        "common/messages/codec.py",
        "common/messages/checks.py",
        "common/messages/held_array.py",
        "common/messages/secure_messages.py",
        "common/messages/secure_words.py",
        "common/messages/serialization.py",
        "common/system/app_bundle.py",
    }
    few |= {"common/data/partitioning/partitioners.py"}
    assert set(users) == few


def test_privacy_imports_neither_flower_nor_torch() -> None:
    rooms = [ROOT / "common" / room for room in ("privacy", "ledger", "secagg")]
    found = {module.split(".")[0] for room in rooms for file in room.rglob("*.py") for module in imports(file)}

    assert "numpy" in found
    assert not found & {"flwr", "torch"}


def test_no_seed_reaches_private_noise() -> None:
    makers = ("noise", "counts/discrete_gaussian", "clipping")
    for name in (
        *(f"common/privacy/{maker}.py" for maker in makers),
        "common/secagg/noise_shares.py",
        "client/training/statistics.py",
        "client/training/dp_sgd.py",
        "client/evaluation/private_counts.py",
        "client/evaluation/evaluate.py",
        "server/aggregation/central_dp.py",
    ):
        text = (ROOT / name).read_text()
        assert "default_rng" not in text
        assert "public_stream" not in text
        assert "seed:" not in text


@pytest.mark.parametrize("figure", FIGURES, ids=lambda figure: figure.name)
def test_the_house_keeps_its_limits(figure: Figure) -> None:
    found = figure.find()

    assert len(found) <= figure.limit, "\n".join(map(str, found))


def test_marks_of_tiers_stand_in_the_files_of_their_tests() -> None:
    """`make test-slow` and `make test-avx2` find their files by the text of a mark."""
    marks = re.compile(r"mark\.(slow|numerical)\b")
    others = [file for file in (ROOT / "tests").rglob("*.py") if not file.name.startswith("test_")]

    assert [file for file in others if marks.search(file.read_text())] == []


def test_no_file_is_named_after_nothing() -> None:
    assert not {file.stem for file in FILES} & {"utils", "helpers", "misc", "base"}


def test_every_default_lives_in_the_project_file() -> None:
    """A default in code would win over the file wherever a section is built without it."""
    keys = set()
    for name, field in RunConfig.model_fields.items():
        section = field.annotation if isinstance(field.annotation, type) else None
        leaves = section.model_fields if section is not None and issubclass(section, BaseModel) else {}
        assert field.is_required(), name
        assert all(leaf.is_required() for leaf in leaves.values()), name
        kebab = name.replace("_", "-")
        keys |= {f"{kebab}.{leaf.replace('_', '-')}" for leaf in leaves} or {kebab}

    assert keys == set(defaults())


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_public_functions_have_docstrings_that_name_their_arguments(file: Path) -> None:
    for node in tree_of(file).body:
        if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
            continue
        text = ast.get_docstring(node) or ""
        assert text, node.name
        raised = {
            child.exc.func.id
            for child in ast.walk(node)
            if isinstance(child, ast.Raise) and isinstance(child.exc, ast.Call) and isinstance(child.exc.func, ast.Name)
        }
        stated = {name for name in raised if name.endswith("Error")}
        assert all(name in text for name in stated), f"{node.name} does not say that it raises {stated}"


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_only_the_audit_chooses_the_streams_of_a_release(file: Path) -> None:
    """A run whose keys are not fresh is not private, yet its ledger would charge and sign as if it were."""
    if name_of(file).startswith(("simulations/attacks/", "simulations/harness/", "simulations/privacy_tests/")):
        return
    calls = [node for node in nodes_of(file) if isinstance(node, ast.Call)]
    given = {
        ast.unparse(keyword)
        for call in calls
        for keyword in call.keywords
        if keyword.arg == "streams" or (keyword.arg == "stream" and ast.unparse(call.func) == "RoundSettings")
    }

    assert given <= {"streams=self.streams"}
    assert all(len(call.args) <= 6 for call in calls if ast.unparse(call.func) == "ClientSession")
