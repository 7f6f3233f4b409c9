"""kill -9 at random points: nothing unreserved is released, and a resumed run ends as if nothing had been."""

import contextlib
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from common.config.loading import resolved
from common.data.preprocessing import Prepared
from common.ledger.data_holder import own_holder
from common.ledger.hash_chain import check_chain
from tests.support.clients.own_clients import SMALL, MakeConfig, OwnClient, write_images
from tests.support.network.kills import CLIENT, check_ledgers, digest_of, kill, run_with_kills, start

FEW = pytest.param(3, marks=pytest.mark.slow)
MANY = pytest.param(int(os.environ.get("BRACT_KILLS", "50")), marks=pytest.mark.soak)
SETTINGS = ["--set", "num-rounds=20", "--set", "training.local-epochs=1"]


@pytest.mark.parametrize("kills", [FEW, MANY])
def test_a_killed_private_simulation_releases_nothing_that_was_not_reserved(
    tmp_path: Path, digits: Prepared, kills: int
) -> None:
    folder, releases = tmp_path / "run", tmp_path / "releases.jsonl"
    done = hits = 0
    while done < kills:  # a run may be over before it was killed often enough: then another one
        now = min(6, kills - done)
        settings = [*SETTINGS, "--set", "system.ledger=durable"]
        hits += run_with_kills(folder, settings, now, seed=done, RELEASES=str(releases))
        done += now
        assert check_ledgers(folder / "ledgers", releases, planned=20) == 20 * 5
        summary = json.loads((folder / "summary.json").read_text())
        assert (summary["status"], summary["rounds"]) == ("complete", 20)
        folder, releases = tmp_path / f"run{done}", tmp_path / f"releases{done}.jsonl"

    assert hits >= kills // 3


@pytest.mark.parametrize("kills", [FEW, MANY])
def test_a_killed_and_resumed_simulation_ends_bit_identical(tmp_path: Path, digits: Prepared, kills: int) -> None:
    settings = [*SETTINGS, "--set", "privacy.mechanism=none", "--set", "strategy.name=FedAvgM"]
    settings += ["--set", "strategy.server-momentum=0.5"]
    whole = tmp_path / "whole"
    run_with_kills(whole, settings, 0, seed=0, RELEASES=str(tmp_path / "releases"))
    done = 0
    while done < kills:
        now = min(6, kills - done)
        folder = tmp_path / f"run{done}"
        run_with_kills(folder, settings, now, seed=100 + done, RELEASES=str(tmp_path / "releases"))
        done += now

        assert digest_of(folder / "model" / "model.safetensors") == digest_of(whole / "model" / "model.safetensors")
        assert len((folder / "rounds.jsonl").read_text().splitlines()) == 20


@pytest.mark.parametrize("kills", [FEW, MANY])
def test_a_killed_client_process_answers_each_round_once(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    config = make_config(SMALL | {"num-rounds": 20, "training.batch-size": 8})
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(40)))
    settings = tmp_path / "run.json"
    settings.write_text(json.dumps(resolved(config)))
    chance, answers, killed, number = random.Random(1), dict[int, set[str]](), 0, 1

    process = start(CLIENT, [str(client.folder), str(settings)])
    while number <= 20:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{number}\n")
        process.stdin.flush()
        if killed < kills and chance.random() < 0.8:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(chance.uniform(0.0, 0.25) + (2.5 if chance.random() < 0.3 else 0.0))
            kill(process)
            killed += 1
            process = start(CLIENT, [str(client.folder), str(settings)])
            continue
        answer = json.loads(process.stdout.readline())
        assert not answer["error"], answer
        answers.setdefault(answer["round"], set()).add(answer["digest"])
        if chance.random() < 0.5 or answers[number]:
            number += 1
    kill(process)

    with own_holder().open_session() as session:
        check_chain(session.ledger.entries())
        reserved = [entry.event["round"] for entry in session.ledger.entries("kind = 'reserve'")]
    assert sorted(reserved) == sorted(answers) == list(range(1, 21))
    assert all(len(versions) == 1 for versions in answers.values())
    assert killed >= kills // 2
