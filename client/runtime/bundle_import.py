"""Import of a bundle's app from the very bytes that were digested."""

import importlib
import logging
import shutil
import sys
import tomllib
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from flwr.clientapp import ClientApp

from common.errors import BundleError
from common.system.app_bundle import ROOMS, holds_exactly, write_files

PROJECT_FILE = "pyproject.toml"
_FRONT_DOOR = "bract"
_log = logging.getLogger("bract.client")


class _BytesLoader(SourceFileLoader):
    """A loader of source in memory.

    It reads no compiled code from a disk: a file there could hold other code than the digest covers.
    """

    def __init__(self, name: str, path: str, source: bytes) -> None:
        super().__init__(name, path)
        self._source = source

    def get_data(self, path: str) -> bytes:
        if path != self.path:
            raise OSError(f"only {self.path} is read")
        return self._source

    def path_stats(self, path: str) -> Mapping[str, int]:
        raise OSError(f"{path} is not looked up")


class BundleFinder(MetaPathFinder):
    """A finder of the modules in a bundle.

    A module of the installed Bract never takes the place of one that the bundle lacks.

    Args:
        files: File name -> content.
        folder: Folder of the unpacked files; modules see their paths in it as `__file__`.
    """

    def __init__(self, files: Mapping[str, bytes], folder: Path) -> None:
        self._files, self._folder = files, folder
        tops = {name.split("/")[0] for name in files if name.endswith(".py")}
        self.names = {top.removesuffix(".py") for top in tops} | {*ROOMS, _FRONT_DOOR}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec of a module in the bundle.

        None stands for a module of another package, such as numpy.

        Raises:
            ModuleNotFoundError: The bundle lacks a module of Bract's packages.
        """
        del path, target
        if fullname.partition(".")[0] not in self.names:
            return None
        stem = fullname.replace(".", "/")
        for name, inside in ((f"{stem}/__init__.py", [str(self._folder / stem)]), (f"{stem}.py", None)):
            if name in self._files:
                place = str(self._folder / name)
                loader = _BytesLoader(fullname, place, self._files[name])
                return spec_from_file_location(fullname, place, loader=loader, submodule_search_locations=inside)
        if any(name.startswith(f"{stem}/") for name in self._files):
            spec = ModuleSpec(fullname, None, is_package=True)
            spec.submodule_search_locations = [str(self._folder / stem)]
            return spec
        raise ModuleNotFoundError(f"the bundle has no module {fullname!r}", name=fullname)


def keep_bundle(files: Mapping[str, bytes], folder: Path) -> Path:
    """Write a bundle's files to a folder and return the folder.

    The bundle's code reads its own pyproject.toml there. An existing folder is used only if it holds exactly these
    files, byte for byte.
    """
    if holds_exactly(folder, files):
        return folder
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        _log.warning("%s was changed since it was unpacked: it is written again", folder)
        shutil.rmtree(folder)
    return write_files(files, folder)


def load_app(files: Mapping[str, bytes], folder: Path) -> ClientApp:
    """Import a bundle's ClientApp.

    From here on, this process uses the bundle's modules in place of the installed ones.

    Args:
        files: File name -> content; only these bytes are run.
        folder: Folder of the unpacked files.

    Raises:
        BundleError: The bundle names no ClientApp.
    """
    module, attribute = _app_named_in(files)
    finder = BundleFinder(files, folder)
    # Without this, modules of the installed Bract that are loaded already would be found before the bundle's.
    for name in [name for name in sys.modules if name.partition(".")[0] in finder.names]:
        del sys.modules[name]
    sys.meta_path.insert(0, finder)
    importlib.invalidate_caches()
    app = getattr(importlib.import_module(module), attribute, None)
    if not isinstance(app, ClientApp):
        raise BundleError(f"the bundle of code has no ClientApp {module}:{attribute}")
    return app


def _app_named_in(files: Mapping[str, bytes]) -> tuple[str, str]:
    try:
        project = tomllib.loads(files[PROJECT_FILE].decode("utf-8"))
        module, _, attribute = project["tool"]["flwr"]["app"]["components"]["clientapp"].partition(":")
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, tomllib.TOMLDecodeError):
        raise BundleError(f"the bundle of code names no ClientApp in its {PROJECT_FILE}") from None
    return module, attribute
