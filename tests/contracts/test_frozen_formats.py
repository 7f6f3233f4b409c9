"""Digests, ids and lines that earlier code has stored, as literal values that never change.

Drives `common.messages.serialization`.
"""

import hashlib
import json
import tomllib
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord
from PIL import Image

from client.home import OwnHome
from client.session import ClientSession
from client.setup.init_client import init_client
from common.config.loading import defaults, override, parse
from common.config.schema import RunConfig
from common.data.decoding import pixel_digest
from common.ledger.database import Head
from common.ledger.hash_chain import Entry, canonical, hash_of
from common.ledger.holder_keys import HolderKeys
from common.ledger.image_index import content_of
from common.ledger.registrations import request_id
from common.ledger.signed_heads import HeadKeeper, read_heads, sign_head
from common.messages.serialization import digest_of, pack, unpack
from common.privacy.events import CountsEvent, DpSgdEvent, as_json, from_json
from common.privacy.plan import PrivacyPlan
from common.privacy.policy import ANYTHING
from common.system.app_bundle import files_digest
from common.system.progress import no_progress
from server.audit.attached_attacks import attach_audit
from server.deployment.server_folder import ServerHome, settings_text
from server.reporting.privacy_statement import Parties, privacy_statement
from server.rounds.node_registry import NodeRegistry
from server.state.privacy_spent import account
from tests.support.ledger.frozen_files import FROZEN
from tests.support.ledger.frozen_ledger import OPEN_RUN, PLAIN_PLAN, PLAN, holding, reply, request

KEYS = HolderKeys.simulated(0, "a")
NOISE: dict[str, Any] = {
    "privacy.noise-multiplier": 2.0,
    "num-rounds": 10,
    # As every settings file of before had them written: its plans hold no learning rate.
    "training.batch-size": 16,
    "training.local-epochs": 4,
    "training.learning-rate": 64.0,
}
# What `privacy.json` of a run with noise at the server holds.
STATEMENT = (
    "private statement mechanism run privacy_unit neighboring_relation sampling_method accountant delta "
    "epsilon_max epsilon_max_rdp max_grad_norm metrics charged scope ledger floating_point noise_error status "
    "not_protected refusals absent joined_late missing bundles clients versions"
)


def config_of(**given: Any) -> RunConfig:
    """Build a run's configuration from settings, with dots and dashes written as in TOML."""
    return parse(override(defaults(), given))


@pytest.mark.parametrize(
    ("changes", "digest"),
    [
        ({}, "61e686ad468841b5cdd60c0ebbadf63dba1af7414fd508b0d1a27af93bd43c34"),
        (
            {"privacy_unit": "group", "num_units": 20, "counts": None},
            "111e8a248688ad69041c317221fdfbcbfccf25ccb96c9733ead783b72f9f10ba",
        ),
        (
            {
                "mechanism": "client-dp",
                "privacy_unit": "client",
                "sample_rate": 1.0,
                "steps_per_round": 1,
                "counts": None,
            },
            "91d59e3c590052b4503111ebe93c6ec78bdbd02b43e6e9af7b18e33e3829a60e",
        ),
    ],
    ids=["dp-sgd with counts", "dp-sgd over groups", "client-dp"],
)
def test_a_stored_plan_keeps_its_names_and_its_digest(changes: dict[str, Any], digest: str) -> None:
    plan = PrivacyPlan.from_json(PLAIN_PLAN | changes)

    assert plan.as_json() == PLAIN_PLAN | changes
    assert list(plan.as_json()) == list(PLAIN_PLAN)
    assert plan.digest == digest


def test_the_plan_of_a_configuration_keeps_its_digest() -> None:
    counted = config_of(**NOISE).plan(128)
    grouped = config_of(**NOISE | {"privacy.metrics": "none", "privacy.unit": "group"}).plan(128)
    at_server = {"privacy.mechanism": "client-dp", "num-clients": 8, "client-fraction": 0.5}
    at_server |= {"privacy.clipping-norm": 1.0}
    central = config_of(**NOISE | at_server).plan(1)

    assert counted.digest == "fec48c6301a5e0d4c17b1772f1fca51f0ca693c20690bac335da059ed72dde58"
    assert grouped.digest == "e3589baf3220c059a58ec142f236880bebea8cd2ec8f8aa7d751a31bf87f1523"
    assert central.digest == "ffd06b9e9d5c837306065b675aee0670c67c402a03f09ef88dc6fb119d604425"


def test_the_policy_of_a_simulation_keeps_its_digest() -> None:
    # What came later changes it, which costs a simulation a second look at its budget.
    before = {"mechanisms": ("none", "dp-sgd", "client-dp"), "closing": ("matrix",), "subgroup_columns": ()}
    before |= {"aggregations": ("plain",), "accept_honest_shares": False, "gradients": ("auto",)}
    known = ANYTHING.model_copy(update=before)

    assert known.digest == "900304671a3c1e05997f56c4e0768480b89c8c1b9ade27148b4d32bab0fdad20"


def test_stored_events_keep_their_kinds_and_names() -> None:
    stored = [
        {"kind": "dp-sgd", "sample-rate": 0.5, "noise-multiplier": 4.0, "steps": 6, "group-size": 2},
        {"kind": "counts", "noise-stddev": 25.0, "releases": 3, "group-size": 1},
    ]
    events = [DpSgdEvent(0.5, 4.0, 6, 2), CountsEvent(25.0, 3)]

    assert [as_json(event) for event in events] == stored
    assert [from_json(event) for event in stored] == events


def test_a_request_and_a_reply_keep_their_digests_and_bytes() -> None:
    packed, asked = pack(reply(2)), request(OPEN_RUN, 2)
    digest = digest_of(asked)
    asked["config"] = ConfigRecord({"server-round": 2, "run-id": OPEN_RUN})

    assert digest == "921d45e8eeeda679c2e969e88e14c9716e13a1a95ee9fd65868763ca749b7479"
    assert digest_of(asked) == digest
    assert hashlib.sha256(packed).hexdigest() == "b12c9ed35cf1683a92b1e2c1871a01613e9aef6582d5b7b4d5c51eee1b2e335b"
    assert packed.startswith(
        b'\0\0\0\0\0\0\0\xe0{"arrays": {"arrays": [["head.weight", "float32", [2, 3], "numpy.ndarray", 152], '
        b'["head.bias", "float32", [2], "numpy.ndarray", 136]]}, "metrics": {"metrics": {"num-examples": 100, '
        b'"noised-correct": 14, "noised-wrong": -2}}}\x93NUMPY'
    )
    assert pack(unpack(packed)) == packed


def test_ids_of_requests_keep_their_values() -> None:
    found = request_id("run", "ward-7", PLAN.digest, 3, "train")

    assert found == "64ca0734566e5dae881e04d474b7be51b083557b406e95a059e580f33d6f4e40"


def test_an_entry_keeps_its_canonical_text_and_its_hash() -> None:
    event = {"run": "r", "client": "wärd", "round": 1, "charges": {"training": [1.5, None, True]}}
    fields = {
        "seq": 2,
        "prev_hash": "0" * 64,
        "kind": "reserve",
        "time": "2026-01-02T03:04:05.678+00:00",
        "request_id": "a" * 64,
        "content_digest": "b" * 64,
        "dataset": "c" * 64,
        "event": {"run": "r", "client": "ward-7", "round": 1},
        "versions": {"flwr": "1.41"},
    }

    assert canonical(event) == '{"charges":{"training":[1.5,null,true]},"client":"w\\u00e4rd","round":1,"run":"r"}'
    assert hash_of(Entry(**fields)) == "5ff94e309e22d59587d737c0d01e30c0042472f8de71df612ee15c4946b8a801"


def test_names_of_images_keep_their_values() -> None:
    image = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(2, 2, 3))
    plain, grouped = (holding(0, 4), holding(4, 6)), (holding(0, 4, 2), holding(4, 6))

    assert pixel_digest(image).hex() == "8b8552d4c4a02c6171339da44a61edbaa7cc505f2fa182f3844b5f12e1f54cc4"
    assert KEYS.public == "6bd3b74fcfeb3d8e7b36163c2214e860eaf48655d20d08d020877a05df67d312"
    assert KEYS.ledger_id == "09cff6e60cc7039e36ef2597392318d8"
    for kind, name in {
        "file": "1547aa2c73b3e9974998bf19b5787e5134a7610f12f8054fd8d25acf0aa3d8e0",
        "pixels": "be08cae0d2f65ea4be8d657556c7f3b3355625a59e31d7f49490732b20db0db3",
    }.items():
        assert KEYS.name_of(b"x" * 32, kind).hex() == name
    for unit, parts, name in (
        ("image", plain, "397ea8ff16a17020c9b0d0897133a3e12b139b86436a19a250a25df135730bc5"),
        ("group", grouped, "b24e6012d3f662ef7d84372e3e1a5b0e8528ba9b6dfd18cade0cd7cc97f3f71e"),
    ):
        assert content_of(KEYS, unit, parts) == name


def test_a_signed_head_is_the_same_line_at_every_server(tmp_path: Path) -> None:
    head = sign_head(KEYS, Head(7, "ab" * 32))
    stored = {
        "client": "ward-7",
        "ledger": "09cff6e60cc7039e36ef2597392318d8",
        "seq": 7,
        "hash": "ab" * 32,
        "public_key": "6bd3b74fcfeb3d8e7b36163c2214e860eaf48655d20d08d020877a05df67d312",
        "signature": "2e029ae9b41c0501dbb25f800f1f218bf905f4523d6921cb6a6a9e1cdde5515c"
        "fb173ba26d70c0afdd35080e6607bd42f0f569c721fb85f5ad38e6e52b401402",
    }

    assert not HeadKeeper([tmp_path / "heads.jsonl"]).accept([("ward-7", head)])

    assert {"client": "ward-7"} | asdict(head) == stored
    assert (tmp_path / "heads.jsonl").read_text() == json.dumps(stored) + "\n"
    assert read_heads(tmp_path / "heads.jsonl") == [("ward-7", head)]


def test_a_server_remembers_nodes_in_the_same_lines(tmp_path: Path) -> None:
    NodeRegistry(tmp_path / "nodes.jsonl").check(4711, "ward-7", "09cff6e6")

    assert (tmp_path / "nodes.jsonl").read_text() == '{"node": 4711, "name": "ward-7", "ledger": "09cff6e6"}\n'
    assert not NodeRegistry(tmp_path / "nodes.jsonl").owns(4712, "ward-7")


def test_personal_tensors_stay_where_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path))
    client: Any = SimpleNamespace(
        trainer=SimpleNamespace(config=config_of(**{"privacy.mechanism": "none"})), plan=None, home=OwnHome(), name="a"
    )

    ClientSession.personal(client, "run").keep(2, {"head.weight": np.ones(2)})
    client.plan = PLAN
    ClientSession.personal(client, "run").keep(13, {"head.weight": np.ones(2)})

    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.npz")) == [
        "holder/personal/38a9b65f67eb3a282fb280b2fdaa08b6/a/round-000002.npz",
        "holder/personal/90e71dcc41079770b0d9eba79f0364f3/a/round-000013.npz",
    ]


def test_a_pinned_bundle_keeps_its_digest() -> None:
    digest = files_digest({"b/c.py": b"", "a.py": b"1"})

    assert digest == "361a46c900b6d3c4d9ce91d588cc5b4e7c640a0250e41f5e18766ae609f4c855"


def test_a_statement_of_noise_at_the_server_keeps_its_names() -> None:
    config = config_of(**NOISE | {"privacy.mechanism": "client-dp", "num-clients": 3})
    privacy_cost = account(config, {"a": 10, "b": 20}, [["a", "b"]] * 10, complete=True)

    found = privacy_statement(
        config, privacy_cost, status="complete", run_id="r", parties=Parties({"node 3": "POLICY"})
    )

    assert list(found) == STATEMENT.split()
    assert list(found["clients"]["a"]) == ["epsilon", "epsilon_rdp", "rounds", "closing", "num_units", "events"]
    assert (found["mechanism"], found["privacy_unit"], found["charged"]) == ("client-dp", "client", "rounds sent")
    assert (found["refusals"], found["absent"], found["metrics"]) == ({"node 3": "POLICY"}, 0, {"release": "none"})


def test_attacks_are_attached_under_the_same_names(tmp_path: Path) -> None:
    (tmp_path / "privacy.json").write_text('{"status": "complete"}')

    attach_audit(tmp_path, "empirical", {"verdict": "consistent", "sentence": "It held.", "more": 1})

    stated = json.loads((tmp_path / "privacy.json").read_text())["audits"]
    digest = hashlib.sha256((tmp_path / "audit.json").read_bytes()).hexdigest()
    named = {"verdict": "consistent", "sentence": "It held."}
    assert stated == {"file": "audit.json", "sha256": digest, "empirical": named}
    assert json.loads((tmp_path / "audit.json").read_text()) == {"empirical": named | {"more": 1}}


def test_a_server_of_today_writes_the_settings_of_a_frozen_one() -> None:
    home = ServerHome(Path("server"), "0.0.0.0", 9443, ("fl.example.org", "192.0.2.7"), 825)  # noqa: S104

    frozen = tomllib.loads((FROZEN / "server" / "server.toml").read_text())

    assert tomllib.loads(settings_text(home)) == frozen
    assert list(frozen) == ["host", "port", "names", "days"]


def test_a_client_of_today_writes_the_settings_of_a_frozen_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    images = str(FROZEN / "images.parquet")

    init_client(tmp_path / "client", images, path="", name="ward-7", progress=no_progress, server="fl.example.org:9443")

    found = tomllib.loads((tmp_path / "client" / "client.toml").read_text())
    frozen = tomllib.loads((FROZEN / "client" / "client.toml").read_text())
    assert found == frozen | {"source": images}
    assert {file.name for file in (tmp_path / "client").iterdir()} >= {"policy.toml", "node.key", "node.pub"}
    assert {file.name for file in (tmp_path / "home" / "holder").iterdir()} >= {
        "ledger.sqlite",
        "fingerprint.key",
        "signing.key",
    }
