"""`bract client review`: what differs, what deserves a look, and nothing that a bundle says reaches the terminal."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from own_clients import OwnClient
from own_home_cases import (
    images_fixture,  # noqa: F401
    own_home_fixture,  # noqa: F401
)
from typer.testing import CliRunner

import bract
from client.bundle_review.compare import review
from common.privacy.policy import load_policy
from common.system.app_bundle import bundle_digest, bundle_files, installed_bundle
from common.system.console import printable

POLICY = "max-epsilon = 8.0\ndelta = 1e-5\n"
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def files() -> Files:
    return bundle_files(installed_bundle())


@pytest.fixture
def packed(tmp_path: Path) -> Callable[[str, Files], Path]:
    def write(name: str, content: Files) -> Path:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            for path, data in content.items():
                archive.writestr(path, data)
        file = tmp_path / name
        file.write_bytes(stream.getvalue())
        return file

    return write


def run(*words: object) -> Result:
    return CliRunner().invoke(bract.app, ["client", "review", *map(str, words)])


def flags(before: Path, after: Path) -> dict[str, str]:
    return {change.name: "; ".join(change.flags) for change in review(before, after).changes}


def test_the_same_code_packed_otherwise_is_the_same(files: Files, packed: Callable[[str, Files], Path]) -> None:
    one, other = packed("a.fab", files), packed("b.fab", dict(reversed(files.items())))

    done = run(one, other)

    assert done.exit_code == 0
    assert "The same code" in done.stdout


def test_each_file_that_differs_is_shown_with_its_lines(files: Files, packed: Callable[[str, Files], Path]) -> None:
    old = packed("a.fab", files)
    new = files | {"common/metrics.py": files["common/metrics.py"] + b"ANSWER = 42\n", "common/fresh.py": b"X = 1\n"}
    del new["common/commands/listing.py"]
    bundle = packed("b.fab", new)

    done = run(old, bundle)

    assert done.exit_code == 1
    for line in (
        "  ~ common/metrics.py",
        "  + common/fresh.py",
        "  - common/commands/listing.py",
        "+ANSWER = 42",
        "+X = 1",
    ):
        assert line in done.stdout.splitlines()
    assert "1 added, 1 removed, 1 changed" in done.stdout
    assert done.stdout.splitlines()[-1] == f'bundle = "{bundle_digest(bundle.read_bytes())}"'


def test_names_alone_show_no_lines(files: Files, packed: Callable[[str, Files], Path]) -> None:
    done = run(packed("a.fab", files), packed("b.fab", files | {"common/fresh.py": b"X = 1\n"}), "--names")

    assert done.exit_code == 1
    assert "  + common/fresh.py" in done.stdout
    assert "X = 1" not in done.stdout


def test_what_guards_the_images_and_what_reaches_outward_comes_first_with_a_flag(
    files: Files, packed: Callable[[str, Files], Path]
) -> None:
    new = files | {
        name: files[name] + b"# changed\n"
        for name in (
            "client/guard.py",
            "common/privacy/noise.py",
            "common/ledger/transactions.py",
            "common/messages/codec.py",
        )
    }
    new["common/metrics.py"] = b"import socket, numpy\nfrom subprocess import run\n" + files["common/metrics.py"]
    new["common/commands/listing.py"] = files["common/commands/listing.py"] + b"\neval('1')\n"
    new["common/randomness.py"] = b"def (:\n"
    new["common/system/aligned_arrays.py"] = files["common/system/aligned_arrays.py"] + b"# harmless\n"
    new["common/fast.so"] = b"\x7fELF\0"
    new["pyproject.toml"] = files["pyproject.toml"] + b"\n"

    found = flags(packed("a.fab", files), packed("b.fab", new))

    assert [*found][-1] == "common/system/aligned_arrays.py"  # all others have a flag
    assert found["common/system/aligned_arrays.py"] == ""
    assert "beside the images" in found["client/guard.py"]
    assert "budget" in found["common/privacy/noise.py"]
    assert "budget" in found["common/ledger/transactions.py"]
    assert "what may leave" in found["common/messages/codec.py"]
    assert (
        "reach a network: now imports socket; can run other code: now imports subprocess" in found["common/metrics.py"]
    )
    assert "now calls eval" in found["common/commands/listing.py"]
    assert "cannot be parsed" in found["common/randomness.py"]
    assert "no source code" in found["common/fast.so"]
    assert "names the apps" in found["pyproject.toml"]


def test_an_import_that_was_there_before_is_no_news(files: Files, packed: Callable[[str, Files], Path]) -> None:
    old = files | {"common/x.py": b"import socket\n"}

    found = flags(packed("a.fab", old), packed("b.fab", old | {"common/x.py": b"import socket\nX = 1\n"}))

    assert found == {"common/x.py": ""}


def test_what_a_terminal_would_obey_is_escaped(files: Files, packed: Callable[[str, Files], Path]) -> None:
    evil = "x = 1  # \x1b[2J\x1b]0;owned\x07 \u202e \u200b \r hidden\u2028more \x9b31m".encode()

    done = run(packed("a.fab", files), packed("b.fab", files | {"common/x.py": evil, "common/y.bin": b"\xff\x1b[2J\0"}))

    # In a pipe there are no colours: any control character would be the bundle's.
    assert all(letter == "\n" or letter.isprintable() for letter in done.stdout)
    assert r"\x1b[2J\x1b]0;owned\x07 \u202e \u200b \r hidden\u2028more \x9b31m" in done.stdout
    assert "no text: nothing before, 6 bytes" in done.stdout


def test_escaping_leaves_plain_text_alone() -> None:
    assert printable("def größe(x):\treturn 'ä'") == "def größe(x):\treturn 'ä'"


def test_a_client_s_bract_is_compared_with_a_bundle(
    tmp_path: Path, own_home: Path, images: Path, files: Files, packed: Callable[[str, Files], Path]
) -> None:
    client = OwnClient(tmp_path, images, POLICY)
    bundle = packed("bundle.fab", files | {"common/fresh.py": b"X = 1\n"})

    unpinned = run(client.folder, bundle)
    line = unpinned.stdout.splitlines()[-1]
    (client.folder / "policy.toml").write_text(f"{POLICY}{line}\n")
    pinned = run(client.folder, bundle)

    assert (unpinned.exit_code, pinned.exit_code) == (1, 1)
    assert "pins nothing" in unpinned.stdout
    assert load_policy(client.folder / "policy.toml").bundle == bundle_digest(bundle.read_bytes())
    assert "pins what is in the bundle already" in pinned.stdout


def test_a_client_alone_compares_what_is_pinned_with_what_is_installed(
    tmp_path: Path, own_home: Path, images: Path
) -> None:
    client = OwnClient(tmp_path, images, POLICY)
    installed = bundle_digest(installed_bundle())

    codes = []
    for pin in ("", "0" * 64, installed):
        (client.folder / "policy.toml").write_text(f'{POLICY}bundle = "{pin}"\n')
        done = run(client.folder)
        codes.append(done.exit_code)
        assert installed in done.stdout

    assert codes == [1, 1, 0]


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04"])
def test_what_is_no_bundle_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.fab"
    file.write_bytes(content)

    assert run(file).exit_code == 2
    assert run(tmp_path / "missing.fab").exit_code == 2
    assert run(tmp_path).exit_code == 2  # a folder without a client
