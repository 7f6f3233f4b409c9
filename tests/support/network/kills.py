"""Programs that tests start as processes of their own and kill, and what must hold of the ledgers they leave."""

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path

from common.ledger.database import Ledger
from common.ledger.hash_chain import check_chain
from tests.support.paths import ROOT

# Runs `bract simulate`, and writes down every message that leaves a client before anybody gets it.
SIMULATION = """
import hashlib, json, os, sys
import simulations.engines.in_process as engine

deliver = engine.InProcessGrid._deliver

def watched(self, message):
    reply = deliver(self, message)
    arrays = b"" if reply.has_error() or "arrays" not in reply.content else b"".join(
        array.numpy().tobytes() for array in reply.content.array_records["arrays"].values())
    config = message.content.config_records["config"]
    line = {"client": message.metadata.dst_node_id - 2, "kind": reply.metadata.message_type,
            "round": config.get("server-round", 0), "error": reply.has_error(),
            "digest": hashlib.sha256(arrays).hexdigest()}
    with open(os.environ["RELEASES"], "a") as stream:
        stream.write(json.dumps(line) + "\\n")
        stream.flush()
        os.fsync(stream.fileno())
    return reply

engine.InProcessGrid._deliver = watched
from bract import main
sys.argv[1:] = ["simulate", "--quiet", *sys.argv[1:]]
main()
"""

# Runs `bract simulate`, and kills itself when all clients have agreed and nothing of the run is saved yet.
KILLED_AFTER_ENROLLMENT = """
import os, signal, sys
from server import federation

federation._Run._save_registration = lambda self: os.kill(os.getpid(), signal.SIGKILL)
from bract import main
sys.argv[1:] = ["simulate", "--quiet", *sys.argv[1:]]
main()
"""

# A client over a folder of its own: answers the rounds named on its standard input, one line each.
CLIENT = """
import hashlib, json, sys
from pathlib import Path
from tests.support.clients.own_clients import OwnClient
from common.config.loading import parse

config = parse(json.loads(Path(sys.argv[2]).read_text()))
client = OwnClient.__new__(OwnClient)
client.folder = Path(sys.argv[1])
for line in sys.stdin:
    reply = client.ask(config, "train", run="killed", server_round=int(line))
    arrays = b"" if reply.has_error() else b"".join(
        array.numpy().tobytes() for array in reply.content.array_records["arrays"].values())
    print(json.dumps({"round": int(line), "error": reply.error.reason if reply.has_error() else "",
                      "digest": hashlib.sha256(arrays).hexdigest()}), flush=True)
"""


def start(program: str, arguments: list[str], **environment: str) -> "subprocess.Popen[str]":
    """A process group of its own, so that a kill takes everything with it."""
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def kill(process: "subprocess.Popen[str]") -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run_with_kills(folder: Path, arguments: list[str], kills: int, seed: int, **environment: str) -> int:
    """Run a simulation to its end, killed so many times at random points and resumed each time.

    Returns:
        How many kills hit a process that had begun its rounds.
    """
    chance = random.Random(seed)
    hits = done = 0
    while _status(folder) != "complete":
        resumes = (folder / "config.toml").is_file()
        process = start(
            SIMULATION, ["--resume", str(folder)] if resumes else ["--out", str(folder), *arguments], **environment
        )
        if done == kills:
            _, errors = process.communicate(timeout=300)
            assert process.returncode == 0, errors
            break
        before = _lines(folder)
        moment = chance.choice(["early", "round", "round", "round"])
        if moment == "early":
            _sleep_unless_ended(process, chance.uniform(0.0, 3.0))
        else:
            _wait_for_rounds(process, folder, before + chance.randrange(1, 3))
            _sleep_unless_ended(process, chance.uniform(0.0, 0.15))
        if process.poll() is not None:
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            break
        kill(process)
        done += 1
        hits += _lines(folder) > before
    return hits


def _status(folder: Path) -> str:
    file = folder / "summary.json"
    return str(json.loads(file.read_text())["status"]) if file.is_file() else "not started"


def _lines(folder: Path) -> int:
    file = folder / "rounds.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


def _wait_for_rounds(process: "subprocess.Popen[str]", folder: Path, wanted: int) -> None:
    while process.poll() is None and _lines(folder) < wanted:
        time.sleep(0.005)


def _sleep_unless_ended(process: "subprocess.Popen[str]", seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def check_ledgers(folder: Path, releases: Path, planned: int) -> int:
    """Every message that left was reserved and committed, no round left in two versions, every chain holds.

    Returns:
        How many training messages left.
    """
    left: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    for line in map(json.loads, releases.read_text().splitlines()):
        assert not line["error"], line
        if line["kind"] == "train":
            left[line["client"], line["round"]].add(line["digest"])
    assert all(len(versions) == 1 for versions in left.values()), "a round was released in two versions"
    for file in sorted(folder.glob("*.sqlite")):
        ledger = Ledger(file, durable=True)
        check_chain(ledger.entries())
        rounds = {
            kind: [
                entry.event["round"]
                for entry in ledger.entries("kind = ?", (kind,))
                if entry.event["release"] == "train"
            ]
            for kind in ("reserve", "commit")
        }
        ledger.close()
        client = int(file.stem)
        released = {number for who, number in left if who == client}
        assert released <= set(rounds["commit"]) <= set(rounds["reserve"])
        assert len(rounds["reserve"]) == len(set(rounds["reserve"])) <= planned
    return len(left)


def digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
