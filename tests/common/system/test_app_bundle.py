"""A bundle's digest names its code and nothing else, and hostile bundles are refused before anything is written."""

import shutil
import stat
import subprocess
import sys
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import BundleError
from common.system import app_bundle as bundles
from common.system.app_bundle import (
    bundle_digest,
    bundle_files,
    bundle_of,
    files_digest,
    holds_exactly,
    installed_bundle,
    stage_app,
    write_files,
)

FILES = {"pyproject.toml": b"[project]", "client/app.py": b"app = 1\n", "client/__init__.py": b""}


def zipped(files: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_digest_is_of_the_files_and_not_of_how_they_were_packed() -> None:
    packed = zipped(FILES)
    otherwise = zipped(dict(reversed(FILES.items())) | {".info/CONTENT": b"whatever"}, zipfile.ZIP_STORED)

    assert packed != otherwise
    assert bundle_digest(packed) == bundle_digest(otherwise) == files_digest(FILES)


def test_digest_is_known() -> None:  # policies hold it: it must never change
    assert files_digest(FILES) == "6b834fdef5aa385bd1bdfc3245e394313a30aa6b57ab00912f5cfba07ef1f6fd"


@pytest.mark.parametrize(
    "changed",
    [
        FILES | {"client/app.py": b"app = 2\n"},
        FILES | {"client/app.py": b"app = 1"},
        FILES | {"client/more.py": b""},
        {name: content for name, content in FILES.items() if name != "client/__init__.py"},
        {name.replace("app.py", "apq.py"): content for name, content in FILES.items()},
        FILES | {"client/app.py": b"", "client/__init__.py": b"app = 1\n"},
    ],
)
def test_digest_changes_with_any_byte_file_or_name(changed: dict[str, bytes]) -> None:
    assert bundle_digest(zipped(changed)) != bundle_digest(zipped(FILES))


@given(st.binary(max_size=60), st.integers(0, 7), st.integers(0, 10**9))
def test_digest_changes_with_any_bit(content: bytes, bit: int, place: int) -> None:
    other = bytearray(content or b"x")
    other[place % len(other)] ^= 1 << bit

    assert files_digest({"a.py": bytes(other)}) != files_digest({"a.py": content or b"x"})


@pytest.mark.parametrize(
    "name",
    [
        "/etc/passwd",
        "../up.py",
        "client/../../up.py",
        "client/./app2.py",
        "client//app2.py",
        "client\\app2.py",
        "C:evil.py",
        "client/app.py.",
        "client/ä.py",
        "client/a\x00.py",
        "client/a\n.py",
        "client/" + "a" * 300,
        "CLIENT/APP.PY",
        "client",
        ".info/../up.py",
    ],
)
def test_bundle_with_a_name_no_honest_server_makes_is_refused(name: str, tmp_path: Path) -> None:
    content = zipped(FILES | {"x" * len(name.encode()): b"evil"}).replace(b"x" * len(name.encode()), name.encode())

    with pytest.raises(BundleError):
        write_files(bundle_files(content), tmp_path / "in" / "it")

    assert [*tmp_path.rglob("*")] == []


def test_bundle_with_two_files_of_one_name_is_refused() -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("client/app.py", b"1")
        with pytest.warns(UserWarning, match="Duplicate"):
            archive.writestr("client/app.py", b"2")

    with pytest.raises(BundleError, match="two files of one name"):
        bundle_files(buffer.getvalue())


def test_bundle_with_a_link_is_refused() -> None:
    buffer, link = BytesIO(), zipfile.ZipInfo("client/link.py")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(link, b"/etc/passwd")

    with pytest.raises(BundleError, match="not a plain file"):
        bundle_files(buffer.getvalue())


@pytest.mark.parametrize("count", [1, 40])
def test_bundle_that_swells_is_refused_before_it_has(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bundles, "_MAX_BYTES", 1_000_000)
    bomb = zipped({f"{number}.py": b"0" * (40_000_000 // count) for number in range(count)})

    with pytest.raises(BundleError, match="comes to more than"):
        bundle_files(bomb)


def test_bundle_that_lies_about_its_sizes_is_refused() -> None:
    honest = zipped({"a.py": b"0" * 5000}, zipfile.ZIP_STORED)
    size = (5000).to_bytes(4, "little")

    with pytest.raises(BundleError):
        bundle_files(honest.replace(size, (10).to_bytes(4, "little")))


def test_bundle_of_too_many_files_is_refused() -> None:
    with pytest.raises(BundleError, match="10001 files"):
        bundle_files(zipped({f"{number}.py": b"" for number in range(10_001)}))


@given(st.binary(max_size=200) | st.binary(max_size=80).map(lambda end: zipped(FILES)[:-1] + end))
def test_bundle_of_any_other_bytes_is_refused_in_plain_words(content: bytes) -> None:
    try:
        bundle_files(content)
    except BundleError:
        return


@given(st.integers(0, 10**9), st.integers(1, 255))
def test_damaged_bundle_is_refused_or_is_what_its_digest_says(place: int, flip: int) -> None:
    content = bytearray(zipped(FILES))
    content[place % len(content)] ^= flip
    try:
        files = bundle_files(bytes(content))
    except BundleError:
        return

    assert (files == FILES) == (bundle_digest(bytes(content)) == files_digest(FILES))


def test_unpacked_folder_holds_exactly_what_was_digested(tmp_path: Path) -> None:
    folder = write_files(bundle_files(zipped(FILES | {".info/CONTENT": b"left out"})), tmp_path / "bundles" / "it")

    assert holds_exactly(folder, FILES)
    assert folder.stat().st_mode & 0o077 == 0
    assert [path.name for path in folder.parent.iterdir()] == ["it"]
    with pytest.raises(BundleError, match="exists already"):
        write_files(bundle_files(zipped(FILES)), folder)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda folder: (folder / "client" / "app.py").write_bytes(b"app = 2\n"),
        lambda folder: (folder / "client" / "more.py").write_bytes(b""),
        lambda folder: (folder / "client" / "app.py").unlink(),
        lambda folder: (folder / "client" / "link.py").symlink_to(folder / "client" / "app.py"),
        lambda folder: (folder / "elsewhere").symlink_to("/"),
        shutil.rmtree,
    ],
)
def test_a_folder_that_was_changed_is_noticed(tmp_path: Path, tamper: Callable[[Path], object]) -> None:
    folder = write_files(bundle_files(zipped(FILES)), tmp_path / "it")
    tamper(folder)

    assert not holds_exactly(folder, FILES)


def test_installed_bundle_is_what_its_folder_and_a_copy_elsewhere_give(tmp_path: Path) -> None:
    app = stage_app(tmp_path)
    digest = bundle_digest(bundle_of(app))
    wheel = tmp_path / "wheel"  # as a wheel lays it out: pyproject.toml inside of common
    shutil.copytree(app, wheel, ignore=shutil.ignore_patterns("tests"))
    (wheel / "pyproject.toml").rename(wheel / "common" / "pyproject.toml")
    code = (
        "from common.system.app_bundle import bundle_digest, installed_bundle; print(bundle_digest(installed_bundle()))"
    )

    there = subprocess.run(
        [sys.executable, "-c", code],
        cwd=wheel,
        env={"PYTHONPATH": str(wheel)},
        capture_output=True,
        text=True,
        check=True,
    )

    assert there.stdout.strip() == digest
    assert bundle_digest(bundle_of(app)) == digest
    assert {"client/app.py", "common/system/app_bundle.py", "bract.py", "pyproject.toml"} <= set(
        bundle_files(bundle_of(app))
    )


def test_installed_bundle_has_one_digest(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(bundles, "stage_app", lambda _: app)
    app = stage_app(tmp_path)  # once, in case somebody edits the code meanwhile

    assert bundle_digest(installed_bundle()) == bundle_digest(installed_bundle())
