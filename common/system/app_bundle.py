"""The bundle of code that Flower sends to clients."""

import hashlib
import io
import os
import re
import shutil
import stat
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

from common.errors import BundleError
from common.system.files import make_folder

ROOMS = ("common", "client", "server", "simulations")
_MAX_BYTES = 64 * 1024**2
_MAX_FILES = 10_000
_MAX_NAME = 200
# Flower's own table of contents, which is not code.
_FLOWER_FOLDER = ".info/"
_PART = re.compile(r"[A-Za-z0-9_.+-]*[A-Za-z0-9_+-]")
_ENCRYPTED = 0x1


def stage_app(home: Path) -> Path:
    """Copy the rooms and pyproject.toml into a folder that `flwr run` can bundle."""
    here = Path(__file__).resolve().parents[2]
    app = home / "bract"
    app.mkdir()
    for room in ROOMS:
        shutil.copytree(here / room, app / room, ignore=shutil.ignore_patterns("__pycache__", "pyproject.toml"))
    shutil.copy(here / "bract.py", app / "bract.py")
    project = here / "pyproject.toml"
    shutil.copy(project if project.is_file() else here / "common" / "pyproject.toml", app / "pyproject.toml")
    # Flower refuses an exclude pattern that matches nothing: give `tests/**` a file.
    (app / "tests").mkdir()
    (app / "tests" / "__init__.py").touch()
    return app


def installed_bundle() -> bytes:
    """Return the bundle that `flwr run` makes of the installed Bract."""
    with tempfile.TemporaryDirectory(prefix="bract-bundle-") as scratch:
        return bundle_of(stage_app(Path(scratch)))


def bundle_of(app: Path) -> bytes:
    """Return the bundle that `flwr run` makes of an app's folder."""
    from flwr.cli.build import build_fab_from_disk

    with warnings.catch_warnings():
        # Flower calls a deprecated function of one of its own dependencies.
        warnings.simplefilter("ignore", DeprecationWarning)
        return build_fab_from_disk(app)


def bundle_files(content: bytes) -> dict[str, bytes]:
    """Return the files of a bundle by name, without writing anything.

    Flower's own folder `.info/` is left out: it is neither digested nor unpacked. Names are sorted and have `/` between
    their parts.

    Raises:
        BundleError: The content is not a zip file, holds a link, more than 10,000 files or more than 64 MiB, or has a
            name that is absolute, contains `..`, is not plain ASCII, or equals another one in all but the case of
            letters.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.orig_filename.endswith("/")]
            _check_entries(entries)
            kept = [entry for entry in entries if not entry.orig_filename.startswith(_FLOWER_FOLDER)]
            return _read(archive, sorted(kept, key=lambda entry: entry.orig_filename))
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, RuntimeError) as error:
        raise BundleError(f"the bundle of code is not a readable zip file ({error})") from None


def _check_entries(entries: list[zipfile.ZipInfo]) -> None:
    if len(entries) > _MAX_FILES:
        raise BundleError(f"the bundle of code holds {len(entries)} files, at most {_MAX_FILES} are allowed")
    for entry in entries:
        _check_entry(entry)
    names = [entry.orig_filename.casefold() for entry in entries]
    folders = {
        "/".join(parts[:depth]) for parts in (name.split("/") for name in names) for depth in range(1, len(parts))
    }
    if len(set(names)) < len(names) or folders & set(names):
        raise BundleError("the bundle of code holds two files of one name")


def _check_entry(entry: zipfile.ZipInfo) -> None:
    name, mode = entry.orig_filename, entry.external_attr >> 16
    if len(name) > _MAX_NAME or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise BundleError(f"the bundle of code holds a file of the name {name[:_MAX_NAME]!r}, which is not allowed")
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG) or entry.flag_bits & _ENCRYPTED:
        raise BundleError(f"the bundle of code holds {name!r}, which is not a plain file")


def _read(archive: zipfile.ZipFile, entries: list[zipfile.ZipInfo]) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    left = _MAX_BYTES
    for entry in entries:
        with archive.open(entry) as stream:
            # The size that an entry claims can be false: read no more than is allowed.
            files[entry.orig_filename] = stream.read(left + 1)
        left -= len(files[entry.orig_filename])
        if left < 0:
            raise BundleError(f"the bundle of code comes to more than {_MAX_BYTES // 1024**2} MiB")
    return files


def files_digest(files: Mapping[str, bytes]) -> str:
    """Return 64 hex digits that name a set of files by names and contents.

    >>> files_digest({"a.py": b"1", "b.py": b""}) == files_digest({"b.py": b"", "a.py": b"1"})
    True
    """
    lines = (f"{name}\0{hashlib.sha256(files[name]).hexdigest()}\n" for name in sorted(files))
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def bundle_digest(content: bytes) -> str:
    """Return 64 hex digits that name the code in a bundle.

    A policy pins this digest. Equal files give an equal digest, however they were packed. Flower shows another hash, of
    the zip file: machines with other versions of zlib make other zip files of the same code.

    Raises:
        BundleError: The bundle is refused by `bundle_files`.
    """
    return files_digest(bundle_files(content))


def write_files(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write the files of a bundle to a new folder for this user only.

    Guarantee: the folder appears with all files or not at all.

    Raises:
        BundleError: The folder exists.
    """
    if folder.exists() or folder.is_symlink():
        raise BundleError(f"{folder} exists already")
    make_folder(folder.parent, mode=0o700)
    fresh = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=folder.parent))
    try:
        for name, content in files.items():
            file = fresh / name
            make_folder(file.parent)
            file.write_bytes(content)
        os.rename(fresh, folder)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise
    return folder


def holds_exactly(folder: Path, files: Mapping[str, bytes]) -> bool:
    """Return True if a folder holds exactly these files.

    A link or a compiled module in it counts as something else, because Python could run it.
    """
    paths = [] if folder.is_symlink() or not folder.is_dir() else [*folder.rglob("*")]
    if any(path.is_symlink() or not (path.is_file() or path.is_dir()) for path in paths):
        return False
    kept = {path.relative_to(folder).as_posix(): path for path in paths if path.is_file()}
    return set(kept) == set(files) and all(path.read_bytes() == files[name] for name, path in kept.items())
