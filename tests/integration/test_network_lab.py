"""The bed of separate machines: it does what its faults say, sees what crosses, and leaves nothing behind."""

import contextlib
import os
import signal
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.network.namespaces import left_behind, remove_left_behind, started_at
from tests.support.network.network_lab import Bed, Machine, Program, machines, needs, wait_until
from tests.support.network.tls_decryption import decrypted, read_keys
from tests.support.network.wire_capture import WireError, check_tls, check_wire
from tests.support.paths import ROOT

pytestmark = pytest.mark.slow
PORT = 9443
# Answers each piece with itself; over TLS where it is given a certificate.
ECHO = """
import socket, ssl, sys, threading
listening = socket.create_server(("0.0.0.0", int(sys.argv[1])))
if len(sys.argv) > 2:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(sys.argv[2])
def serve(connection):
    if len(sys.argv) > 2:
        connection = context.wrap_socket(connection, server_side=True)
    while piece := connection.recv(65536):
        connection.sendall(piece)
    connection.close()
while True:
    threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
"""
# Sends a text again and again and says how long each took.
ASK = """
import socket, ssl, sys, time
host, port, text, times, pause = sys.argv[1:6]
connection, text = socket.create_connection((host, int(port)), timeout=30), text.encode()
if len(sys.argv) > 6:
    connection = ssl.create_default_context(cafile=sys.argv[6]).wrap_socket(connection, server_hostname=host)
for number in range(int(times)):
    started, got = time.monotonic(), b""
    connection.sendall(text)
    while len(got) < len(text):
        piece = connection.recv(65536)
        if not piece:
            print("broken", flush=True)
            sys.exit(3)
        got += piece
    assert got == text
    print(f"{time.monotonic() - started:.4f}", flush=True)
    time.sleep(float(pause))
"""


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    needs("ip", "tc", "tcpdump", "mount", "cc")
    with machines(tmp_path_factory.mktemp("bed"), ["server", "near", "far"], clocks=["far"]) as made:
        yield made


@pytest.fixture(scope="module")
def echo(bed: Bed) -> Program:
    program = bed["server"].popen([sys.executable, "-c", ECHO, str(PORT)])
    wait_until(lambda: bed["server"].listens(PORT), seconds=20, programs=[program])
    return program


def ask(machine: Machine, text: str, times: int = 1, pause: float = 0.0, *, port: int = PORT) -> Program:
    return machine.popen([sys.executable, "-c", ASK, "10.77.0.1", str(port), text, str(times), str(pause)])


def seconds_of(program: Program) -> list[float]:
    return [float(line) for line in program.text().splitlines()]


def interfaces_and_routes() -> list[str]:
    """Of the machine that the test runs on, without the counters that always move."""
    return [Path("/proc/net/route").read_text(), *sorted(os.listdir("/sys/class/net"))]


def test_machines_reach_each_other_and_nobody_else(bed: Bed, echo: Program) -> None:
    before = interfaces_and_routes()

    assert ask(bed["near"], "hello").wait(seconds=20) == 0
    routes = bed["near"].check(["ip", "route"])

    assert routes.split() == ["10.77.0.0/24", "dev", "eth0", "proto", "kernel", "scope", "link", "src", "10.77.0.2"]
    assert interfaces_and_routes() == before


def test_a_pulled_cable_stops_everything_and_a_connection_survives_it(bed: Bed, echo: Program) -> None:
    near = bed["near"]
    asking = ask(near, "hello", times=1000, pause=0.01)
    wait_until(lambda: len(asking.text().splitlines()) > 3, seconds=20, programs=[asking])

    near.link_down()
    time.sleep(0.2)
    held = len(asking.text().splitlines())
    time.sleep(0.5)
    assert len(asking.text().splitlines()) == held
    near.link_up()

    wait_until(lambda: len(asking.text().splitlines()) > held + 3, seconds=20, programs=[asking])
    asking.kill()


def test_a_slow_cable_is_slow_either_way_until_it_is_fast_again(bed: Bed, echo: Program) -> None:
    near, text = bed["near"], "x" * 60_000

    near.slow("1mbit")
    slow = ask(near, text)
    assert slow.wait(seconds=30) == 0
    near.fast()
    fast = ask(near, text)
    assert fast.wait(seconds=30) == 0

    # 60 kB less the bucket take 0.45 s up; what comes back overlaps.
    assert seconds_of(slow)[0] > 0.4
    assert seconds_of(fast)[0] < seconds_of(slow)[0]


def test_a_relay_delays_stalls_and_cuts(tmp_path: Path) -> None:
    needs("ip", "tc")
    with machines(tmp_path, ["server", "client"]) as bed:
        server, client = bed["server"], bed["client"]
        echo = server.popen([sys.executable, "-c", ECHO, str(PORT)])
        wait_until(lambda: server.listens(PORT), seconds=20, programs=[echo])
        relay = bed.relay(client, server, PORT)

        relay.latency(0.2)
        slow = ask(client, "hello", times=2)
        assert slow.wait(seconds=30) == 0
        assert min(seconds_of(slow)) > 0.4
        relay.latency(0.0)
        asking = ask(client, "hello", times=10_000, pause=0.01)
        wait_until(lambda: len(asking.text().splitlines()) > 3, seconds=20, programs=[asking])
        relay.stall(1.0)
        wait_until(lambda: max(seconds_of(asking)) > 0.9, seconds=20, programs=[asking])
        relay.cut()
        assert asking.wait(seconds=20) != 0
        assert ask(client, "x" * 100_000, times=10).wait(seconds=20) == 0  # new connections pass
        assert relay.passed() > 2_000_000


def test_a_killed_program_takes_all_it_started_with_it(bed: Bed) -> None:
    let_go = "import os, time; os.setsid(); time.sleep(600)"
    command = f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {let_go!r}]); time.sleep(600)"
    program = bed["near"].popen([sys.executable, "-c", command])
    wait_until(lambda: len(program.pids()) == 2, seconds=20, programs=[program])
    pids = program.pids()

    program.kill()

    assert program.pids() == []
    assert not [pid for pid in pids if started_at(pid) is not None]


def test_a_shifted_clock_is_one_machines_only_and_moves_in_running_programs(bed: Bed) -> None:
    clock = "import time\nwhile True:\n    print(int(time.time()), flush=True)\n    time.sleep(0.1)"
    far, near = (bed[name].popen([sys.executable, "-c", clock]) for name in ("far", "near"))

    def ahead(program: Program) -> int:
        lines = program.text().splitlines()
        return round(int(lines[-1]) - time.time()) if lines else 0

    wait_until(lambda: far.text() and near.text(), seconds=20, programs=[far, near])
    assert abs(ahead(far)) < 5
    bed["far"].shift_clock(3600)
    wait_until(lambda: abs(ahead(far) - 3600) < 5, seconds=20, programs=[far])
    assert abs(ahead(near)) < 5
    bed["far"].shift_clock(0)
    wait_until(lambda: abs(ahead(far)) < 5, seconds=20, programs=[far])
    far.kill()
    near.kill()


def test_a_full_disk_is_full_for_its_programs_until_it_is_freed(bed: Bed, tmp_path: Path) -> None:
    disk = bed["near"].small_disk(tmp_path / "disk", megabytes=2)
    write = [sys.executable, "-c", f"open({str(tmp_path / 'disk' / 'file')!r}, 'wb').write(bytes(100_000))"]

    assert bed["near"].run(write).process.returncode == 0
    (tmp_path / "disk" / "file").unlink()
    disk.fill()
    full = bed["near"].run(write)
    disk.free()

    assert "No space left on device" in full.text()
    assert bed["near"].run(write).process.returncode == 0


def certificate(file: Path) -> Path:
    """One for 10.77.0.1, with its key, signed by itself."""
    import ipaddress

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "x")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("10.77.0.1"))]), critical=False)
        .sign(key, hashes.SHA256())
    )
    plain = serialization.NoEncryption()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
    file.write_bytes(pem + made.public_bytes(serialization.Encoding.PEM))
    return file


def test_a_capture_passes_tls_and_finds_everything_else(tmp_path: Path) -> None:
    needs("ip", "tcpdump")
    pem, secret = str(certificate(tmp_path / "server.pem")), "patient-4711" * 3000
    with machines(tmp_path, ["server", "client"]) as bed:
        server, client = bed["server"], bed["client"]
        for port, more in ((PORT, [pem]), (PORT + 1, [])):
            server.popen([sys.executable, "-c", ECHO, str(port), *more])
            wait_until(lambda port=port: server.listens(port), seconds=20)
        files = [tmp_path / f"{name}.pcap" for name in ("tls", "plain", "other")]
        command = [sys.executable, "-c", ASK, "10.77.0.1"]
        datagram = "import socket; socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('10.77.0.1', 53))"
        for file, words in zip(
            files,
            (
                [*command, str(PORT), secret, "2", "0", pem],
                [*command, str(PORT + 1), secret, "1", "0"],
                [sys.executable, "-c", datagram],
            ),
            strict=True,
        ):
            capture = bed.capture(file)
            client.check(words)
            bed.end_capture(capture)

    tls, plain, other = files
    figures = check_wire(tls, ("10.77.0.1", PORT), [b"patient-4711", b"HTTP/1.1"])
    assert figures.clients == {"10.77.0.2"}
    assert min(figures.bytes_up, figures.bytes_down) > 2 * len(secret)
    with pytest.raises(WireError, match="no TLS record"):
        check_wire(plain, ("10.77.0.1", PORT + 1))
    with pytest.raises(WireError, match="is readable"):
        check_wire(plain, ("10.77.0.1", PORT + 1), [b"patient-4711"])
    with pytest.raises(WireError, match="the server is"):
        check_wire(plain, ("10.77.0.1", PORT))
    with pytest.raises(WireError, match="neither TCP nor"):
        check_wire(other, ("10.77.0.1", PORT))


def record(kind: int, body: bytes, version: int = 0x0303) -> bytes:
    return struct.pack(">BHH", kind, version, len(body)) + body


def test_what_is_no_tls_record_is_found_wherever_it_stands() -> None:
    check_tls(record(22, b"hello", 0x0301) + record(20, b"\1") + record(23, b"data") + record(23, b"cut off")[:-3], "a")
    for wrong in (
        b"GET / HTTP/1.1\r\n",
        record(23, b"no handshake before"),
        record(22, b"hello") + record(24, b"heartbeat"),
        record(22, b"hello") + record(23, b"data", 0x0305),
        record(22, b"hello") + b"and then in the clear",
        b"GET",
    ):
        with pytest.raises(WireError):
            check_tls(wrong, "a")


def test_what_a_client_said_is_read_with_its_keys(tmp_path: Path) -> None:
    pem, keys = certificate(tmp_path / "server.pem"), tmp_path / "keys.txt"
    server_side, client_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context(cafile=str(pem))
    server_side.load_cert_chain(pem)
    client_side.keylog_filename = str(keys)
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = client_side.wrap_bio(down, up, server_hostname="10.77.0.1")
    server, sent = server_side.wrap_bio(up_again := ssl.MemoryBIO(), down, server_side=True), bytearray()

    def exchange(step: Callable[[], object]) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            step()
        piece = up.read()
        sent.extend(piece)
        up_again.write(piece)

    for step in (client.do_handshake, server.do_handshake, client.do_handshake, server.do_handshake):
        exchange(step)
    for text in (b"patient-4711" * 3000, b"the end"):
        exchange(lambda text=text: client.write(text))  # type: ignore[misc]

    assert b"patient" not in sent
    assert decrypted(bytes(sent), read_keys(keys)) == b"patient-4711" * 3000 + b"the end"
    assert decrypted(bytes(sent[:-3]), read_keys(keys)) == b"patient-4711" * 3000
    with pytest.raises(WireError, match="were not written down"):
        decrypted(bytes(sent), {})


def test_what_a_killed_test_left_behind_is_removed_by_the_next(tmp_path: Path) -> None:
    needs("ip", "tc", "mount")
    killed = """
import os, pathlib, signal, sys
from tests.support.network.network_lab import machines
with machines(pathlib.Path(sys.argv[1]), ["server"]) as bed:
    bed["server"].small_disk(bed["server"].home, megabytes=1)
    bed["server"].popen(["sleep", "600"])
    print(os.getpid(), flush=True)
    signal.pause()
"""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", killed, str(tmp_path)], env=env, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    pid = process.stdout.readline().strip()
    assert [name for name in left_behind() if f"-{pid}-" in name] == []  # it still runs
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert len([name for name in left_behind() if f"-{pid}-" in name]) == 3

    remove_left_behind()

    assert [name for name in left_behind() if f"-{pid}-" in name] == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
