"""The gate in front of Flower's real app.

Drives `server.deployment.superlink_api`.
"""

import asyncio
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import uvicorn

from common.errors import FederationError
from server.deployment.request_filter import LARGEST_BODY
from server.deployment.server_folder import ServerHome
from server.deployment.start import start_changes
from server.deployment.superlink_api import OPEN_TO_NODES, PUSH_OBJECT, REPLY_VARIABLE
from server.deployment.superlink_main import SERVER_OPTIONS, install_gate, main
from tests.support.server.requests import STRANGER


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Flower's real app behind the gate."""
    from flwr.superlink import extensions
    from flwr.superlink.main import create_app

    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    install_gate()
    return create_app()


@pytest.mark.parametrize("path", ["control/register-node", "control/start-run", "runtime/acquire-task"])
def test_flowers_own_app_is_behind_the_gate(flower: Any, path: str) -> None:
    async def post(client: tuple[str, int]) -> httpx.Response:
        transport = httpx.ASGITransport(flower, client=client)
        async with httpx.AsyncClient(transport=transport, base_url="https://fl.example.org") as caller:
            return await caller.post(f"/v1/{path}", headers={"content-type": "application/protobuf"})

    stranger = asyncio.run(post(STRANGER))
    local = asyncio.run(post(("127.0.0.1", 5)))

    assert stranger.status_code == 403
    assert "another machine" in stranger.json()["detail"]
    assert "another machine" not in local.text
    assert local.status_code != 415


def test_flowers_own_app_is_behind_the_quota(flower: Any) -> None:
    async def push() -> httpx.Response:
        from flwr.proto.message_pb2 import PushObjectRequest

        body = PushObjectRequest(run_id=1, object_id="x", session_id="x").SerializeToString()
        transport = httpx.ASGITransport(flower, client=STRANGER)
        async with httpx.AsyncClient(transport=transport, base_url="https://fl.example.org") as caller:
            return await caller.post(PUSH_OBJECT, content=body)

    answer = asyncio.run(push())

    assert (answer.status_code, answer.json()["detail"][:24]) == (400, "This belongs to no reply")


def test_the_servers_settings_reach_the_quota(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from flwr.superlink import extensions

    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    home = ServerHome(tmp_path, "127.0.0.1", 9443, (), 825, reply_megabytes=3)
    for name, value in start_changes(home, {}).items():
        if name == REPLY_VARIABLE:
            monkeypatch.setenv(name, value)

    install_gate()

    first = next(iter(extensions.get_middleware()))
    assert first.kwargs["quota"]._extra == 3 * 1024 * 1024


def test_flower_without_the_hook_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink import extensions
    from flwr.superlink import main as superlink_main

    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(superlink_main, "_get_middleware", list)

    with pytest.raises(FederationError, match="no place for the gate"):
        install_gate()


def test_flowers_fleet_is_the_one_the_gate_knows() -> None:
    from flwr.supercore.protobuf.translation import PROTOBUF_REQUEST_TYPES

    fleet = {path for method, path in PROTOBUF_REQUEST_TYPES if path.startswith("/v1/fleet/")}

    assert fleet == OPEN_TO_NODES | {"/v1/fleet/register-node", "/v1/fleet/unregister-node"}


def test_flower_starts_uvicorn_by_the_name_that_we_replace() -> None:
    text = inspect.getsource(importlib.import_module("flwr.superlink.cli.flower_superlink"))

    assert text.count("uvicorn.run(") == 1
    assert "import uvicorn\n" in text
    assert set(SERVER_OPTIONS) <= set(inspect.signature(uvicorn.run).parameters)


def test_server_runs_with_our_options(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink import extensions

    told: dict[str, Any] = {}
    monkeypatch.setattr(extensions, "get_middleware", extensions.get_middleware)
    monkeypatch.setattr(uvicorn, "run", lambda **options: told.update(options))
    module = importlib.import_module("flwr.superlink.cli.flower_superlink")
    monkeypatch.setattr(module, "flower_superlink", lambda: uvicorn.run(app="app", access_log=True))

    main()

    assert told == {"app": "app"} | SERVER_OPTIONS


def test_largest_honest_push_is_well_below_the_bound() -> None:
    from flwr.app import Array, ArrayRecord, RecordDict
    from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects

    weights = np.random.default_rng(0).standard_normal(5_000_000).astype(np.float32)
    record = RecordDict({"arrays": ArrayRecord({"w": Array(weights)})})

    sizes = [len(piece.deflate()) for piece in get_all_nested_objects(record).values()]

    assert sum(sizes) > weights.nbytes
    assert max(sizes) < LARGEST_BODY / 3
