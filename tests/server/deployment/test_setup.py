"""The server's folder: made, read, checked and renewed; and the keys in it.

Drives `server.deployment.server_folder`, `server.deployment.start`, `server.deployment.start_checks`.
"""

import os
import socket
import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import bract
from common.errors import ConfigError
from common.system.app_bundle import bundle_digest, installed_bundle
from server.deployment import setup as making
from server.deployment import start as starting
from server.deployment.certificates import Certificate, fingerprint, new_authority, new_server_certificate
from server.deployment.server_folder import ServerHome, load_home
from server.deployment.setup import make_home, renew
from server.deployment.start_checks import check_start
from tests.support.server.server_folders import contents

RUNNER = CliRunner()


def mode(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def test_new_server_is_private_and_reads_back(home: ServerHome) -> None:
    assert load_home(home.folder) == home
    assert home.names == ("fl.example.org",)
    assert mode(home.folder) == 0o700
    assert {mode(home.authority_key_file), mode(home.key_file)} == {0o600}
    assert all(folder.is_dir() for folder in (home.clients, home.revoked, home.flower, home.runs))
    assert check_start(home) == []


def test_new_server_may_lie_in_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "server").mkdir(mode=0o755)

    home = make_home(tmp_path / "server", names=[], port=9443, days=1)

    assert mode(home.folder) == 0o700
    assert home.names


def test_flowers_own_commands_find_the_server(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.cli.flower_config import read_superlink_connection

    monkeypatch.setenv("FLWR_HOME", str(home.flower))

    found = read_superlink_connection("bract")

    assert (found.address, found.root_certificates) == (f"127.0.0.1:{home.port}", str(home.authority_file))


def test_server_is_not_made_twice(home: ServerHome) -> None:
    before = contents(home.folder)

    with pytest.raises(ConfigError, match="holds a server already"):
        make_home(home.folder, names=[], port=9443, days=825)

    assert contents(home.folder) == before


def test_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")

    with pytest.raises(ConfigError, match="not empty"):
        make_home(tmp_path, names=[], port=9443, days=825)

    assert contents(tmp_path) == {"notes.txt": b"mine"}


@pytest.mark.parametrize("bad", [{"names": ["a b"]}, {"port": 0}, {"port": 65536}, {"days": 0}])
def test_bad_value_leaves_nothing_behind(tmp_path: Path, bad: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        make_home(tmp_path / "server", **{"names": [], "port": 9443, "days": 825} | bad)

    assert not (tmp_path / "server").exists()


@pytest.mark.parametrize("written", range(6))
def test_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int) -> None:
    left = [written]
    write = making.write_atomic

    def fail_later(file: Path, content: bytes, **how: Any) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        write(file, content, **how)

    monkeypatch.setattr(making, "write_atomic", fail_later)

    with pytest.raises(ConfigError, match="No space left"):
        make_home(tmp_path / "server", names=[], port=9443, days=825)

    assert not (tmp_path / "server").exists()


def test_renewal_keeps_the_authority_and_takes_new_names(home: ServerHome) -> None:
    before = contents(home.folder)

    renewed = renew(home.folder, names=["new.example.org"], days=10)

    after = contents(home.folder)
    changed = {name for name in after if after[name] != before[name]}
    assert changed == {"server.pem", "server.key", "server.toml"}
    assert load_home(home.folder) == renewed
    assert (renewed.names, renewed.days) == (("new.example.org",), 10)
    assert mode(home.key_file) == 0o600
    assert [warning for warning in check_start(renewed) if "not valid for" in warning] == []


def test_a_new_authority_replaces_all_keys_and_certificates(home: ServerHome) -> None:
    before = contents(home.folder)

    assert renew(home.folder, names=[], days=None, replace_authority=True) == home

    after = contents(home.folder)
    assert {name for name in after if after[name] != before[name]} == {"ca.key", "ca.pem", "server.key", "server.pem"}
    assert [mode(file) for file in (home.authority_key_file, home.key_file)] == [0o600] * 2
    assert [warning for warning in check_start(home) if "not valid for" in warning] == []
    home.certificate_file.write_bytes(before["server.pem"])
    home.key_file.write_bytes(before["server.key"])
    with pytest.raises(ConfigError, match="was not signed by"):
        check_start(home)


def test_a_new_authority_half_written_is_put_right_by_giving_the_command_again(
    home: ServerHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, write = list[Path](), making.write_atomic

    def fail_at_third(file: Path, content: bytes, **options: Any) -> None:
        done.append(file)
        if len(done) == 3:
            raise OSError(28, "No space left")
        write(file, content, **options)

    with monkeypatch.context() as patched:
        patched.setattr(making, "write_atomic", fail_at_third)
        with pytest.raises(ConfigError, match="No space left"):
            renew(home.folder, names=[], days=None, replace_authority=True)
    with pytest.raises(ConfigError, match="was not signed by"):
        check_start(home)

    assert check_start(renew(home.folder, names=[], days=None)) == []


def test_renewal_keeps_a_setting_that_the_operator_added(home: ServerHome) -> None:
    home.settings_file.write_text(home.settings_file.read_text() + "reply-megabytes = 32\n")

    renew(home.folder, names=["new.example.org"], days=None)

    assert load_home(home.folder).reply_megabytes == 32


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "wrong, missing or unknown: days, host, names, port"),
        ("host = 1", "host"),
        ("[", "cannot be read"),
        ('host = "::"\nport = 0\nnames = []\ndays = 1', "1 to 65535"),
        ('host = ""\nport = 1\nnames = []\ndays = 1', "host must not be empty"),
        ('host = "::"\nport = 1\nnames = [7]\ndays = 1', "names must be text"),
        ('host = "::"\nport = 1\nnames = []\ndays = 1\nprot = 2', "prot"),
        ('host = "::"\nport = 1\nnames = []\ndays = 1\nreply-megabytes = 0', "reply-megabytes must be at least 1"),
        ('host = "::"\nport = 1\nnames = []\ndays = 1\nreply-megabytes = true', "reply-megabytes"),
    ],
)
def test_wrong_settings_are_named(home: ServerHome, text: str, says: str) -> None:
    home.settings_file.write_text(text)

    with pytest.raises(ConfigError, match=says):
        load_home(home.folder)


def test_folder_without_a_server_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bract server init"):
        load_home(tmp_path)


@pytest.mark.parametrize(
    ("host", "address"),
    [("0.0.0.0", "127.0.0.1:7"), ("::", "[::1]:7"), ("192.0.2.1", "192.0.2.1:7"), ("fd00::1", "[fd00::1]:7")],  # noqa: S104
)
def test_this_machine_reaches_the_server_where_it_listens(home: ServerHome, host: str, address: str) -> None:
    assert ServerHome(home.folder, host, 7, (), 1).control_address == address


def replace_certificate(home: ServerHome, **more: Any) -> None:
    authority = Certificate(home.authority_file.read_bytes(), home.authority_key_file.read_bytes())
    made = new_server_certificate(authority, more.pop("names", home.names), **more)
    home.certificate_file.write_bytes(made.certificate)
    home.key_file.write_bytes(made.key)


def test_start_warns_a_month_before_the_end(home: ServerHome) -> None:
    replace_certificate(home, days=40)

    assert check_start(home) == []
    assert "certificate ends on" in check_start(home, now=datetime.now(UTC) + timedelta(days=11))[0]


def test_start_warns_of_names_that_the_certificate_lacks(home: ServerHome) -> None:
    replace_certificate(home, names=["other.example.org"], days=800)

    assert "not valid for fl.example.org" in check_start(home)[0]


def test_address_to_listen_at_is_in_the_certificate(home: ServerHome) -> None:
    home.settings_file.write_text(home.settings_file.read_text().replace("0.0.0.0", "127.9.9.9"))  # noqa: S104

    with pytest.raises(ConfigError, match=r"not valid for 127\.9\.9\.9"):
        check_start(load_home(home.folder))
    assert check_start(renew(home.folder, names=[], days=None)) == []


def test_names_may_be_written_in_several_ways(home: ServerHome) -> None:
    renewed = renew(home.folder, names=["FL.example.org", "FD00:0::1"], days=None)

    assert check_start(renewed) == []


def spoil_end(home: ServerHome) -> None:
    replace_certificate(home, days=1, now=datetime.now(UTC) - timedelta(days=3))


def spoil_beginning(home: ServerHome) -> None:
    replace_certificate(home, days=30, now=datetime.now(UTC) + timedelta(days=3))


def spoil_key(home: ServerHome) -> None:
    home.key_file.write_bytes(home.authority_key_file.read_bytes())


def spoil_authority(home: ServerHome) -> None:
    home.authority_file.write_bytes(new_authority("other").certificate)


def spoil_certificate(home: ServerHome) -> None:
    home.certificate_file.write_bytes(b"nothing")


def spoil_mode(home: ServerHome) -> None:
    home.key_file.chmod(0o640)


def spoil_authority_mode(home: ServerHome) -> None:
    home.authority_key_file.chmod(0o604)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (spoil_end, "ended on .* --renew"),
        (spoil_beginning, "clock"),
        (spoil_key, "does not belong to"),
        (spoil_authority, "was not signed by"),
        (spoil_certificate, "cannot be read"),
        (spoil_mode, "server.key can be read by others: chmod 600"),
        (spoil_authority_mode, "ca.key can be read by others"),
    ],
)
def test_start_is_refused(home: ServerHome, spoil: Callable[[ServerHome], None], says: str) -> None:
    spoil(home)

    with pytest.raises(ConfigError, match=says):
        check_start(home)


def test_start_is_refused_where_the_port_is_taken(home: ServerHome) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", home.port))
        other.listen()

        with pytest.raises(ConfigError, match="is taken"):
            check_start(home)


@pytest.mark.parametrize("host", ["192.0.2.200", "no such host"])
def test_start_is_refused_at_an_address_of_another_machine(home: ServerHome, host: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot listen|not an address of this machine"):
        check_start(ServerHome(home.folder, host, home.port, (), 1))


def test_server_runs_with_tls_keys_and_the_gate(home: ServerHome, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr(os, "execve", lambda *given: told.extend(given))
    monkeypatch.setattr(os, "umask", told.append)
    monkeypatch.chdir(home.folder.parent)
    for name, value in (
        ("FLWR_INTERNAL_GRPC_FLEET_API", "1"),
        ("PATH", "/bin"),
        ("NO_PROXY", "x"),
        ("BRACT_HOME", "/b"),
    ):
        monkeypatch.setenv(name, value)

    starting.run_server(home)

    umask, _, command, environment = told
    assert umask == 0o077
    assert command[1:4] == ["-P", "-m", "server.deployment.superlink_main"]
    assert {"--enable-supernode-auth", "--ssl-certfile", "--disable-runtime-dependency-installation"} <= set(command)
    assert "--insecure" not in command
    assert "FLWR_INTERNAL_GRPC_FLEET_API" not in environment
    assert environment["PATH"].endswith(":/bin")
    assert environment["NO_PROXY"] == "x,127.0.0.1"
    assert environment["BRACT_HOME"] == "/b"
    assert environment["FLWR_HOME"] == str(home.flower)
    assert Path.cwd() == home.folder


def test_init_prints_what_operators_compare(tmp_path: Path) -> None:
    folder = tmp_path / "federation"

    done = RUNNER.invoke(bract.app, ["server", "init", str(folder), "--name", "fl.example.org", "--port", "9444"])

    assert done.exit_code == 0, done.output
    assert fingerprint((folder / "ca.pem").read_bytes()) in done.output
    assert "fl.example.org:9444" in done.output
    for command in ("bract server start", "bract client init", "bract server admit"):
        assert command in done.output


def test_the_bundle_that_is_written_is_the_one_that_clients_pin(tmp_path: Path) -> None:
    done = RUNNER.invoke(bract.app, ["server", "bundle", str(tmp_path / "bundle.fab")])
    nowhere = RUNNER.invoke(bract.app, ["server", "bundle", str(tmp_path / "no" / "bundle.fab")])

    assert bundle_digest((tmp_path / "bundle.fab").read_bytes()) == bundle_digest(installed_bundle())
    assert bundle_digest(installed_bundle()) in done.output
    assert nowhere.exit_code == 2


def test_mistakes_of_the_command_line_are_plain(tmp_path: Path) -> None:
    for command in (["start"], ["init", "--renew"]):
        done = RUNNER.invoke(bract.app, ["server", command[0], str(tmp_path), *command[1:]])

        assert done.exit_code == 2
        assert "bract server init" in done.output
