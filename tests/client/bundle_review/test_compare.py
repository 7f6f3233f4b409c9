"""`bract client review`: what differs, what deserves a look, and nothing that a bundle says reaches the terminal.

Drives `client.bundle_review.flags`, `client.bundle_review.git_diff`, `client.bundle_review.view`.
"""

import io
import subprocess
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

import bract
from client.bundle_review.compare import review
from client.bundle_review.flags import _GUARDS
from common.privacy.policy import load_policy
from common.system.app_bundle import bundle_digest, bundle_files, installed_bundle, write_files
from common.system.console import printable
from tests.support.clients.own_clients import OwnClient

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
    assert "not source code" in found["common/fast.so"]
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
    assert "Binary files /dev/null and b/common/y.bin differ" in done.stdout


def test_escaping_leaves_plain_text_alone() -> None:
    assert printable("def größe(x):\treturn 'ä'") == "def größe(x):\treturn 'ä'"


def test_the_lines_are_those_of_git(tmp_path: Path, files: Files, packed: Callable[[str, Files], Path]) -> None:
    new = files | {"common/metrics.py": files["common/metrics.py"].replace(b"import", b"import ", 1)}
    for side, content in (("a", files), ("b", new)):
        write_files(content, tmp_path / side)
    command = ["git", "diff", "--no-index", "--no-prefix", "--no-color", "a", "b"]

    done = run(packed("a.fab", files), packed("b.fab", new))

    shown = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert "\n@@ -" in shown
    assert shown in done.stdout


# Each rule, and each place for it.
@pytest.mark.parametrize(
    ("rule", "name"),
    [
        ("* -diff", ".gitattributes"),
        ("* binary", "common/.gitattributes"),
        ("* text eol=crlf", "common/.GitAttributes"),
        ("*.py diff=evil", ".git/info/attributes"),
        ("* -text working-tree-encoding=UTF-16", ".gitattributes"),
    ],
)
def test_a_bundle_cannot_tell_git_what_to_hide(
    files: Files, packed: Callable[[str, Files], Path], rule: str, name: str
) -> None:
    new = files | {"common/x.py": b"X = 1\r\nY = 2\n", name: rule.encode() + b"\n", "common/y.py": files["bract.py"]}
    del new["bract.py"]

    lines = run(packed("a.fab", files), packed("b.fab", new)).stdout.splitlines()

    assert r"+X = 1\r" in lines
    assert "+Y = 2" in lines
    assert f"+{rule}" in lines
    # A file that only moved is shown whole, in both places.
    for line in filter(None, files["bract.py"].decode().splitlines()):
        assert {f"-{line}", f"+{line}"} <= set(lines)


def test_settings_and_variables_of_git_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Files, packed: Callable[[str, Files], Path]
) -> None:
    bundles = packed("a.fab", files), packed("b.fab", files | {"common/x.py": b"X = 1\n"})
    plain = run(*bundles).stdout
    (tmp_path / ".gitconfig").write_text("[diff]\nexternal = false\nnoprefix = false\n[core]\nattributesFile = ~/all\n")
    (tmp_path / "all").write_text("* -diff\n")
    subprocess.run(["git", "init", "--quiet", tmp_path / "repository"], check=True)
    (tmp_path / "repository" / ".git" / "info" / "attributes").write_text("* -diff\n")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "repository"))
    for name, value in (("HOME", str(tmp_path)), ("GIT_EXTERNAL_DIFF", "false"), ("GIT_DIFF_OPTS", "-u0")):
        monkeypatch.setenv(name, value)

    assert run(*bundles).stdout == plain
    assert "+X = 1" in plain.splitlines()


def test_without_git_names_and_flags_are_shown_and_one_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: Files, packed: Callable[[str, Files], Path]
) -> None:
    bundles = packed("a.fab", files), packed("b.fab", files | {"client/guard.py": b"X = 1\n"})
    monkeypatch.setenv("PATH", str(tmp_path / "nothing"))

    done, names = run(*bundles), run(*bundles, "--names")

    assert (done.exit_code, names.exit_code) == (2, 1)
    assert "  ~ client/guard.py   LOOK: runs beside the images" in done.stdout
    assert "bundle = " not in done.stdout  # nothing to pin before it was read
    assert done.stderr.count("Error") == 1
    assert "install git" in done.stderr
    assert "--names" in done.stderr


def test_what_is_watched_is_there(files: Files) -> None:
    assert [beginning for beginning in _GUARDS if not any(name.startswith(beginning) for name in files)] == []


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
    assert "pins the code of this bundle already" in pinned.stdout


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
