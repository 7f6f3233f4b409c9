"""What earlier code has left on a disk can be opened, checked and gone on from by the code of today."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Message
from safetensors.numpy import load_file, save_file

from client.client_config import load_site
from common.errors import PolicyError
from common.ledger.data_holder import own_holder
from common.messages.serialization import digest_of, pack
from common.privacy.noise_error import MITIGATION
from common.privacy.policy import load_policy
from server.deployment.server_folder import load_home
from tests.support.ledger.frozen_files import (
    FROZEN,
    bract,
    checkpoint,
    copied,
    lost,
    recorded,
    reserved,
    rows_of,
    shape_of,
    start,
    stopped_in_round,
)
from tests.support.ledger.frozen_ledger import (
    CLOSED_RUN,
    GROUP_PLAN,
    GROUP_RUN,
    OPEN_RUN,
    PLAIN_PLAN,
    PLAN,
    fill_ledger,
    holding,
    reply,
    request,
)

# Type of a message -> what it holds, and what its reply holds: fields by record.
RUN, ROUND = {"config": {"run-id"}}, {"config": {"run-id", "server-round"}, "arrays": {"head.weight"}}
QUERY = {"config": {"run-id", "protocol"}}
CLIENT = {"client": {"name", "num-units", "classes", "input-shape", "backbone-hash", "bundle"}}
HEAD = {"ledger": {"ledger-id", "seq", "head", "public-key", "signature"}}
MODEL, EXACT = {"arrays": {"head.weight"}}, {"metrics": {"num-examples", "confusion", "loss-sum"}}
PAIR, MATRIX = (
    {"metrics": {"num-examples", "noised-correct", "noised-wrong"}},
    {"metrics": {"num-examples", "noised-confusion"}},
)
# What privacy.json says that it did not say in 0.1.0.
SHAPES = {
    "open-run": {
        "query": (QUERY, CLIENT),
        "train": (ROUND, MODEL | EXACT),
        "evaluate": (ROUND, EXACT),
        "query.close": (RUN, {}),
    },
    "private-run": {
        "query": (QUERY, CLIENT | HEAD),
        "train": (ROUND, MODEL | PAIR | HEAD),
        "evaluate": (ROUND, MATRIX | HEAD),
        "query.close": (RUN, HEAD),
    },
}
# What a run says of privacy today that frozen ones did not.
ADDED: dict[str, list[str]] = {"open-run": [".missing"], "private-run": [".epsilon_parts", ".missing"]}
# What a statement of today says beyond a frozen one: the error of the noise, and each event's sampler and draws.
NOISE_SINCE = {".noise_error", *(f".clients.{name}.events.training[]" for name in ("00000", "00001"))}


@pytest.fixture(autouse=True)
def beside_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    """The frozen runs name their images from this folder."""
    monkeypatch.chdir(FROZEN)


@pytest.fixture(name="holder")
def holder_fixture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The frozen holder, as the holder of this test."""
    for name in ("holder", "heads"):
        copied(name, tmp_path)
    for key in (tmp_path / "holder").glob("*.key"):
        key.chmod(0o600)
    monkeypatch.setenv("BRACT_HOME", str(tmp_path))
    return tmp_path / "holder" / "ledger.sqlite"


def audited(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(bract("audit", *arguments, "--json").stdout)
    return found


def test_a_frozen_ledger_is_verified(holder: Path) -> None:
    found = audited("ledger", holder, "--heads", holder.with_name("heads-at-a-server.jsonl"))

    (report,) = found["ledgers"]
    assert (report["verdict"], report["entries"]) == ("verified", 19)
    assert {run["run"]: run["rounds"] for run in report["runs"]} == {CLOSED_RUN: 3, OPEN_RUN: 2, GROUP_RUN: 1}
    assert report["worst_image"]["spent"] == pytest.approx({"pld": 2.78236368, "rdp": 4.76842312}, rel=1e-6)


def test_a_holder_of_today_writes_the_entries_of_a_frozen_one(holder: Path) -> None:
    written = {table: rows_of(holder, table) for table in ("entry", "fingerprint", "link", "part", "reply")}
    objects = rows_of(holder, "sqlite_master")
    holder.unlink()
    for head in (holder.parents[1] / "heads").iterdir():
        head.unlink()

    fill_ledger(load_policy(FROZEN / "policy.toml"))

    assert [row[2:3] + row[4:8] for row in rows_of(holder, "entry")] == [
        row[2:3] + row[4:8] for row in written.pop("entry")
    ]  # the times and versions, and so the hashes, are another day's
    assert {table: rows_of(holder, table) for table in written} == written
    assert {row[4] for row in rows_of(holder, "sqlite_master")} == {row[4] for row in objects}


def test_a_frozen_ledger_answers_a_repeated_request_without_a_new_charge(holder: Path) -> None:
    policy, before = load_policy(FROZEN / "policy.toml"), rows_of(holder, "entry")
    with own_holder().open_session() as session:
        agreed = session.register(OPEN_RUN, "ward-7", PLAN, (holding(4, 10), holding(10, 12)), policy)

        sent = session.reserve(agreed, 1, "train", digest_of(request(OPEN_RUN, 1)), policy)
        unsent = session.reserve(agreed, 2, "train", digest_of(request(OPEN_RUN, 2)), policy)
        with pytest.raises(PolicyError, match="another model"):
            session.reserve(agreed, 2, "train", digest_of(request(OPEN_RUN, 3)), policy)

    assert (sent, unsent) == (pack(reply(1)), None)
    assert rows_of(holder, "entry") == before


def test_a_frozen_ledger_counts_in_every_later_budget(holder: Path) -> None:
    policy = load_policy(FROZEN / "policy.toml")
    small = policy.model_copy(update={"max_epsilon": 1.8})
    with own_holder().open_session() as session:
        fresh = (holding(40, 46), holding(46, 48))
        used = (holding(0, 6), holding(6, 8))
        assert session.register("1" * 32, "ward-7", PLAN, fresh, small).seq == 20
        with pytest.raises(PolicyError, match="over all runs"):
            session.register("2" * 32, "ward-7", PLAN, used, small)
        with pytest.raises(PolicyError, match="agreed to with another plan"):
            session.register(GROUP_RUN, "clinic", PLAN, used, policy)
        assert session.registration(GROUP_RUN, "clinic").plan == GROUP_PLAN


def test_a_frozen_client_shows_what_it_has_spent(holder: Path, tmp_path: Path) -> None:
    folder = copied("client", tmp_path)

    found = json.loads(bract("client", "status", folder, "--json").stdout)

    assert found["ledger"] == {
        "id": "f0abbd56f4d2a37e5f32ac8036008493",
        "verdict": "internally consistent",
        "doubts": [],
    }
    wanted = {"spent": 2.78236368, "limit": 8.0, "left": 5.21763632, "images": 26}
    assert found["budget"] == pytest.approx(wanted, rel=1e-6)
    assert [(run["run"], run["rounds"], run["closed"]) for run in found["runs"]] == [
        (CLOSED_RUN, 3, True),
        (OPEN_RUN, 2, False),
    ]
    assert found["runs"][0]["plan"] == PLAIN_PLAN


def test_frozen_folders_of_client_and_server_are_read() -> None:
    site, home = load_site(FROZEN / "client"), load_home(FROZEN / "server")

    assert (site.name, site.source, site.path, site.weights) == ("ward-7", "/data/images.parquet", "", "")
    assert (site.superlink, site.authority) == ("fl.example.org:9443", "")
    assert (home.host, home.port, home.days) == ("0.0.0.0", 9443, 825)  # noqa: S104
    assert home.names == ("fl.example.org", "192.0.2.7")


@pytest.mark.parametrize(
    ("file", "digest"),
    [
        ("policy.toml", "00f6e41faf86c6cc5058a2a76945703ac39e3f5ac29b64f341b86f70f2d87566"),
        ("client/policy.toml", "f91f220d4488d64de42a00e5b7075c07dd5e56a49acf705cff0556c769eb646d"),
    ],
)
def test_a_frozen_policy_means_what_it_meant(file: str, digest: str) -> None:
    assert load_policy(FROZEN / file).digest == digest


@pytest.mark.parametrize(("name", "verdict"), [("open-run", "NOT PRIVATE"), ("private-run", "verified")])
def test_a_frozen_run_is_audited_as_it_was(tmp_path: Path, name: str, verdict: str) -> None:
    folder = copied(name, tmp_path)

    found = audited("run", folder)

    assert (found["verdict"], found["doubts"]) == (verdict, [])


def test_a_frozen_private_run_goes_on_without_a_new_charge(tmp_path: Path) -> None:
    folder = copied("private-run", tmp_path)
    ledgers = sorted((folder / "ledgers").glob("*.sqlite"))
    before = {ledger: rows_of(ledger, "entry") for ledger in ledgers}

    with recorded() as messages:
        bract("simulate", "--quiet", "--resume", folder)

    assert dict(map(shape_of, messages)) == SHAPES["private-run"]
    for ledger in ledgers:
        assert rows_of(ledger, "entry")[: len(before[ledger])] == before[ledger]
        assert sorted(reserved(ledger)) == [("closing", 4), *(("train", number) for number in (1, 2, 3, 4))]
    # In round 3 one client had answered, and gives the same answer again; the other had only reserved it.
    kept = {row[5] for rows in before.values() for row in rows if row[2] == "commit"}
    third = [reply.content for message, reply in messages if round_of(message) == 3]
    assert len(third) == 2
    for content in third:
        del content["ledger"]
    assert sum(hashlib.sha256(pack(content)).hexdigest() in kept for content in third) == 1
    found, stated = audited("run", folder), json.loads((folder / "privacy.json").read_text())
    assert (found["verdict"], found["doubts"]) == ("verified", [])
    # Its first rounds had noise without a bound, so it never claims one.
    assert found["noise"] == stated["floating_point"] == MITIGATION
    assert "noise_error" not in stated


def test_a_frozen_open_run_ends_as_if_nobody_had_stopped_it(tmp_path: Path) -> None:
    folder = copied("open-run", tmp_path)
    start("open-run", tmp_path / "whole")
    with stopped_in_round():
        start("open-run", tmp_path / "stopped")
    take_numbers(tmp_path / "stopped", folder)

    with recorded() as messages:
        bract("simulate", "--quiet", "--resume", folder)

    # Simulated clients that keep nothing are told of no end any more. The private run above still is.
    wanted_shapes = {kind: shape for kind, shape in SHAPES["open-run"].items() if kind != "query.close"}
    assert dict(map(shape_of, messages)) == wanted_shapes
    (found, _), (wanted, _) = checkpoint(folder), checkpoint(tmp_path / "whole")
    assert {name: array.tobytes() for name, array in found.items()} == {n: a.tobytes() for n, a in wanted.items()}
    models = [load_file(place / "model" / "model.safetensors") for place in (folder, tmp_path / "whole")]
    assert models[0]["head.weight"].tobytes() == models[1]["head.weight"].tobytes()


def round_of(message: Message) -> object:
    """Return the round of a training message; None for any other."""
    config = message.content.config_records["config"]
    return config.get("server-round") if message.metadata.message_type == "train" else None


def take_numbers(fresh: Path, frozen: Path) -> None:
    """Give a frozen checkpoint the tensors that this machine computes, which may differ in the last digits."""
    (now, metadata), (then, kept) = checkpoint(fresh), checkpoint(frozen)
    assert metadata["order"] == kept["order"]
    for name, array in then.items():
        assert np.vdot(now[name], array) > 0.95 * np.linalg.norm(now[name]) * np.linalg.norm(array), name
    if any(now[name].tobytes() != array.tobytes() for name, array in then.items()):
        save_file(now, frozen / "checkpoint.safetensors", kept)


def test_lost_names_are_found_at_any_depth_and_added_ones_are_allowed() -> None:
    then = {"a": 1, "b": [{"c": {"d": 1}}]}

    assert lost({"a": 2, "b": [{"c": {"d": 3, "e": 4}}], "f": 5}, then) == []
    assert lost({"b": [{"c": {}}]}, then) == [".a", ".b[]"]
    assert lost({"a": {"g": 1}, "b": 1}, then) == [".a", ".b"]


@pytest.mark.parametrize("name", ["open-run", "private-run"])
def test_a_run_of_today_writes_every_name_of_a_frozen_one(tmp_path: Path, name: str) -> None:
    with stopped_in_round():
        start(name, tmp_path / "run")

    for file in ("privacy.json", "summary.json", "model/card.json"):
        now, then = (json.loads((place / file).read_text()) for place in (tmp_path / "run", FROZEN / name))
        assert lost(now, then) == [], file
        # What a run says of privacy is listed.
        assert file != "privacy.json" or set(lost(then, now)) in (set(ADDED[name]), {*ADDED[name], *NOISE_SINCE})
        assert now.get("charged") == then.get("charged")  # an audit reads this sentence
    for file in ("rounds.jsonl", "heads.jsonl"):
        if (FROZEN / name / file).is_file():
            now, then = (json.loads((p / file).read_text().splitlines()[-1]) for p in (tmp_path / "run", FROZEN / name))
            assert lost(now, then) == [], file
            assert file != "heads.jsonl" or lost(then, now) == []  # Heads leave the clients.
    (_, now), (_, then) = checkpoint(tmp_path / "run"), checkpoint(FROZEN / name)
    assert lost(json.loads(now["facts"]), json.loads(then["facts"])) == []
