"""`bract client check`: every planted fault is found, and the line about it says what to do.

Drives `client.checks.budget`, `client.checks.check_result`, `client.checks.connection`, `client.checks.inputs`,
`client.checks.policy`, `client.checks.server_probe`, `client.checks.tls`.
"""

import shutil
import socket
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from client.client_config import load_site
from client.secure.roster_file import ROSTER_FILE, roster_line
from client.setup.node_key import public_line
from common.ledger.identity_key import own_identity
from common.models import loading as weights
from tests.support.clients.healthy_client import COUNT, Bed
from tests.support.clients.own_clients import write_images
from tests.support.clients.server_stand_ins import UNKNOWN, Authority
from tests.support.data.deep_files import png, scan_values
from tests.support.ledger.builders import PLAN

Usage = namedtuple("Usage", "total used free")


def data_gone(bed: Bed) -> None:
    bed.images.rename(bed.root / "elsewhere")


def files_cut_off(bed: Bed) -> None:
    for file in sorted(bed.images.rglob("*.png"))[: COUNT * 3 // 10]:
        file.write_bytes(file.read_bytes()[:60])


def images_came(bed: Bed) -> None:
    write_images(bed.images, range(COUNT, COUNT + 7))


def scans_of_twelve_bits(bed: Bed) -> None:
    for number, file in enumerate(sorted(bed.images.rglob("*.png"))):
        file.write_bytes(png(scan_values(12, seed=number)))


def doubtful_scans_of_twelve_bits(bed: Bed) -> None:
    """Lay the images as of two sites, which the policy's classes say they are not."""
    scans_of_twelve_bits(bed)
    for number, file in enumerate(sorted(bed.images.rglob("*.png"))):
        part = file.parent / "xy"[number % 2]
        part.mkdir(exist_ok=True)
        file.rename(part / file.name)
    bed.edit("policy.toml", '# classes = ["normal", "tumour"]', 'classes = ["bright", "dark"]')


def column_gone(bed: Bed) -> None:
    bed.edit("policy.toml", '# subgroup-columns = ["sex", "scanner"]', 'subgroup-columns = ["sex", "*"]')


def disk_fails(bed: Bed) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    bed.patch.setattr("client.checks.inputs.scan_source", fail)


def patients_came(bed: Bed) -> None:
    files = sorted(bed.images.rglob("*.png"))
    rows = [f"{file.relative_to(bed.images)},{file.parent.name},{n // 2}\n" for n, file in enumerate(files)]
    (bed.images / "all.csv").write_text("path,label,patient_id\n" + "".join(rows))
    bed.edit("client.toml", f'source = "{bed.images}"', f'source = "{bed.images / "all.csv"}"')


def _changed_weights(bed: Bed, name: str) -> Path:
    content = bytearray(weights._packaged_file().read_bytes())
    content[len(content) // 4] ^= 1  # in the body; the classifier, which no run reads, lies in the middle
    file = bed.folder / name
    file.write_bytes(content)
    return file


def weights_changed(bed: Bed) -> None:
    file = _changed_weights(bed, "mine.pth")
    bed.edit("client.toml", 'weights = ""', f'weights = "{file.name}"')


def weights_not_as_their_name_says(bed: Bed) -> None:
    file = _changed_weights(bed, "efficientnet-lite0-57934424.pth")
    bed.edit("client.toml", 'weights = ""', f'weights = "{file.name}"')


def weights_gone(bed: Bed) -> None:
    bed.edit("client.toml", 'weights = ""', 'weights = "mine.pth"')


def package_changed(bed: Bed) -> None:
    file = _changed_weights(bed, "changed.pth")
    bed.patch.setattr(weights, "_packaged_file", lambda: file)


def key_open(bed: Bed) -> None:
    (bed.folder / "node.key").chmod(0o644)


def key_gone(bed: Bed) -> None:
    (bed.folder / "node.key").unlink()


def key_of_another_kind(bed: Bed) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    other = ec.generate_private_key(ec.SECP256R1())
    (bed.folder / "node.key").write_bytes(other.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))


def public_half_of_another(bed: Bed) -> None:
    (bed.folder / "node.pub").write_bytes(public_line(ec.generate_private_key(ec.SECP384R1()), "x"))


def policy_with_a_typo(bed: Bed) -> None:
    bed.edit("policy.toml", "max-epsilon =", "max-epsilom =")


def policy_expired(bed: Bed) -> None:
    bed.edit("policy.toml", "# expires = 2030-12-31", "expires = 2020-12-31")


def policy_that_allows_nothing(bed: Bed) -> None:
    bed.edit("policy.toml", 'mechanisms = ["dp-sgd"]', "mechanisms = []")


def gradients_in_batches(bed: Bed) -> None:
    bed.edit("policy.toml", 'gradients = ["auto"]', 'gradients = ["auto", "opacus"]')


def _pin(bed: Bed) -> str:
    text = (bed.folder / "policy.toml").read_text()
    return text.rpartition('bundle = "')[2].partition('"')[0]


def _allow_sums(bed: Bed) -> None:
    bed.edit("policy.toml", 'aggregations = ["plain"]', 'aggregations = ["plain", "secure"]')


def sums_without_a_roster(bed: Bed) -> None:
    _allow_sums(bed)


def sums_with_another_roster(bed: Bed) -> None:
    _allow_sums(bed)
    name = load_site(bed.folder).name
    (bed.folder / ROSTER_FILE).write_text(roster_line(name, own_identity().public_key) + "\n")


def no_pin(bed: Bed) -> None:
    bed.edit("policy.toml", f'bundle = "{_pin(bed)}"', "")


def pin_cut_short(bed: Bed) -> None:
    bed.edit("policy.toml", _pin(bed), _pin(bed)[:40])


def pin_of_another(bed: Bed) -> None:
    bed.edit("policy.toml", _pin(bed), "0" * 64)


def ledger_changed(bed: Bed) -> None:
    file = bed.let_go()
    content = file.read_bytes()
    assert b'"simulated":false' in content
    file.write_bytes(content.replace(b'"simulated":false', b'"simulated":true '))


def ledger_beyond_reading(bed: Bed) -> None:
    file = bed.let_go()
    content = bytearray(file.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    file.write_bytes(content)


def ledger_gone(bed: Bed) -> None:
    bed.let_go().unlink()


def older_ledger(bed: Bed) -> None:
    file = bed.let_go()
    shutil.copy(file, bed.root / "backup")
    bed.spend()
    bed.let_go()
    shutil.copy(bed.root / "backup", file)


def ledger_key_open(bed: Bed) -> None:
    (bed.home / "holder" / "fingerprint.key").chmod(0o640)


def budget_used_up(bed: Bed) -> None:
    bed.spend()
    bed.edit("policy.toml", "max-epsilon = 8.0", f"max-epsilon = {PLAN.spent().pld}")


def disk_nearly_full(bed: Bed) -> None:
    bed.patch.setattr("shutil.disk_usage", lambda place: Usage(10**12, 10**12 - 10**7, 10**7))


def disk_filling(bed: Bed) -> None:
    bed.patch.setattr("shutil.disk_usage", lambda place: Usage(10**12, 10**12 - 5 * 10**8, 5 * 10**8))


def server_an_hour_behind(bed: Bed) -> None:
    bed.server.clock = -3600


def server_an_hour_ahead(bed: Bed) -> None:
    bed.server.clock = 3600


def server_a_minute_ahead(bed: Bed) -> None:
    bed.server.clock = 60


def server_unknown(bed: Bed) -> None:
    def nobody(*args: Any, **more: Any) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    bed.patch.setattr(socket, "getaddrinfo", nobody)


def server_not_running(bed: Bed) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    bed.edit("client.toml", bed.server.address, f"127.0.0.1:{port}")


def server_not_named(bed: Bed) -> None:
    bed.edit("client.toml", bed.server.address, "")


def server_of_another_authority(bed: Bed) -> None:
    bed.serve(Authority(name="somebody else").server(bed.root))


def server_of_an_authority_with_the_same_name(bed: Bed) -> None:
    bed.serve(Authority().server(bed.root))


def certificate_expired(bed: Bed) -> None:
    bed.serve(bed.authority.server(bed.root, valid=(-30, -1)))


def certificate_not_yet_valid(bed: Bed) -> None:
    bed.serve(bed.authority.server(bed.root, valid=(1, 30)))


def certificate_for_another(bed: Bed) -> None:
    bed.serve(bed.authority.server(bed.root, host="fl.example.org"))


def certificate_ending_soon(bed: Bed) -> None:
    bed.serve(bed.authority.server(bed.root, valid=(-30, 5)))


def authority_expired(bed: Bed) -> None:
    (bed.folder / "authority.pem").write_bytes(bed.authority.certificate(until=-1))


def authority_gone(bed: Bed) -> None:
    (bed.folder / "authority.pem").unlink()


def plain_http(bed: Bed) -> None:
    bed.serve(None)


def key_not_admitted(bed: Bed) -> None:
    bed.server.answer = UNKNOWN


def signature_refused(bed: Bed) -> None:
    bed.server.answer = (401, 0)


def another_program(bed: Bed) -> None:
    bed.server.answer = (404, 0)


def settings_damaged(bed: Bed) -> None:
    bed.edit("client.toml", "num-images = 40", "num-images = many")


FAULTS: list[tuple[Callable[[Bed], None], str, str, str, str]] = [
    (data_gone, "data", "FAIL", "cannot be opened", "bring the images back"),
    (files_cut_off, "data", "FAIL", "12 of 40 images cannot be used: bright/", "bract data inspect"),
    (images_came, "data", "warn", "the source has 47 now", "stays"),
    (scans_of_twelve_bits, "values", "warn", "white is 65,535; 12 bits are used (data.bit-depth=12)", "operator"),
    (doubtful_scans_of_twelve_bits, "values", "warn", "12 bits are used (data.bit-depth=12)", "operator"),
    (column_gone, "subgroups", "warn", "has all images here as other", "take it out of subgroup-columns"),
    (disk_fails, "data", "FAIL", "Input/output error", "bring the images back"),
    (patients_came, "data", "warn", "they are of 20 units (such as patients) now, 40 are declared", "another folder"),
    (weights_changed, "weights", "FAIL", "on record is a18cae7a1ace34fe", "copy mine.pth again"),
    (weights_not_as_their_name_says, "weights", "FAIL", "its name says 57934424", "again"),
    (weights_gone, "weights", "FAIL", "No such file", "again"),
    (package_changed, "backbone", "FAIL", "on record is a18cae7a1ace34fe", "pip install --force-reinstall"),
    (key_open, "node key", "FAIL", "mode 0644", "chmod 600"),
    (key_gone, "node key", "FAIL", "cannot be read", "ssh-keygen -t ecdsa -b 384"),
    (key_of_another_kind, "node key", "FAIL", "P-384", "ssh-keygen -t ecdsa -b 384"),
    (public_half_of_another, "node key", "FAIL", "is not the public half", "ssh-keygen -y -f"),
    (policy_with_a_typo, "policy", "FAIL", "max-epsilom", "fix the line"),
    (policy_expired, "policy", "FAIL", "ended on 2020-12-31", "later day"),
    (policy_that_allows_nothing, "policy", "FAIL", "mechanisms is empty", "list what may be done"),
    (no_pin, "pin", "FAIL", "no code is pinned", "put bundle = "),
    (pin_cut_short, "policy", "FAIL", "bundle", "fix the line"),
    (gradients_in_batches, "policy", "warn", "no epsilon covers their rounding", "take it out of"),
    (pin_of_another, "pin", "warn", "0000000000000000 is pinned", "bract client review"),
    (ledger_changed, "ledger", "FAIL", "entry 1 is not written", "newest backup"),
    (ledger_beyond_reading, "ledger", "FAIL", "malformed", "newest backup"),
    (ledger_gone, "ledger", "FAIL", "there is no ledger", "BRACT_HOME"),
    (sums_without_a_roster, "roster", "FAIL", "cannot be read", "bract client roster"),
    (sums_with_another_roster, "roster", "FAIL", "names no roster", "compare its digest"),
    (older_ledger, "ledger", "FAIL", "older copy", "newest backup"),
    (ledger_key_open, "ledger", "FAIL", "mode 0640", "chmod 600"),
    (budget_used_up, "budget", "FAIL", "used up", "Raise max-epsilon only if"),
    (disk_nearly_full, "disk", "FAIL", "10 MB free", "make room"),
    (disk_filling, "disk", "warn", "500 MB free", "make room"),
    (server_an_hour_behind, "clock", "FAIL", "60 minutes ahead", "timedatectl set-ntp true"),
    (server_an_hour_ahead, "clock", "FAIL", "60 minutes behind", "timedatectl set-ntp true"),
    (server_a_minute_ahead, "clock", "warn", " seconds behind the server's", "timedatectl set-ntp true"),
    (server_unknown, "server", "FAIL", "no address is known for the name", "DNS"),
    (server_not_running, "server", "FAIL", "nothing listens", "server is running"),
    (server_not_named, "server", "FAIL", "does not say where", "superlink"),
    (server_of_another_authority, "TLS", "FAIL", "not signed by the authority", "Compare the fingerprints"),
    (server_of_an_authority_with_the_same_name, "TLS", "FAIL", "not signed by", "Compare the fingerprints"),
    (certificate_expired, "TLS", "FAIL", "has expired on 20", "renew"),
    (certificate_not_yet_valid, "TLS", "FAIL", "not valid yet before 20", "clock"),
    (certificate_ending_soon, "TLS", "warn", "ends on 20", "renew"),
    (certificate_for_another, "TLS", "FAIL", "it is for fl.example.org", "as superlink"),
    (authority_expired, "TLS", "FAIL", "the authority's certificate", "the new one"),
    (authority_gone, "TLS", "FAIL", "cannot be read", "certificate again"),
    (plain_http, "TLS", "FAIL", "plain HTTP", "start it with TLS"),
    (key_not_admitted, "admission", "FAIL", "does not know this client's key", "bract server admit"),
    (signature_refused, "admission", "FAIL", "signature", "clock"),
    (another_program, "admission", "FAIL", "not from a Flower SuperLink", "version"),
    (settings_damaged, "folder", "FAIL", "not a TOML file", "fix it"),
]


@pytest.mark.parametrize(
    ("plant", "check", "state", "found", "remedy"), FAULTS, ids=[plant.__name__ for plant, *_ in FAULTS]
)
def test_a_planted_fault_is_found_and_its_remedy_named(
    bed: Bed, plant: Callable[[Bed], None], check: str, state: str, found: str, remedy: str
) -> None:
    plant(bed)

    findings = bed.check()

    wrong = {name: finding for name, finding in findings.items() if finding.state != "ok"}
    assert [*wrong] == [check]  # this, and nothing else
    assert wrong[check].state == state
    assert found in wrong[check].found
    assert remedy in wrong[check].remedy
