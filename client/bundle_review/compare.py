"""`bract client review`: what one bundle of code does differently from another. All of it is untrusted text."""

import difflib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from client.bundle_review.flags import flags_of
from client.client_config import SITE_FILE, load_site
from common.errors import ConfigError
from common.privacy.policy import load_policy
from common.system.app_bundle import bundle_files, files_digest, installed_bundle
from common.system.console import printable

Files = dict[str, bytes]


@dataclass(frozen=True)
class Side:
    """One of the two that are compared.

    Attributes:
        what: What it is, for people.
        digest: What a policy pins, 64 hex digits.
        files: Name -> content; None where only the digest is known.
    """

    what: str
    digest: str
    files: Files | None


@dataclass(frozen=True)
class Change:
    """A file that is not the same on both sides.

    Attributes:
        name: Its path in the bundle.
        kind: `added`, `removed` or `changed`.
        flags: Why it deserves a look before others.
        diff: Lines of a unified diff, with everything escaped that a terminal would obey.
    """

    name: str
    kind: str
    flags: tuple[str, ...]
    diff: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """What was compared, and what is different.

    Attributes:
        before: What is run or pinned here now.
        after: What is to be judged.
        changes: Files that differ, those with flags first.
        pinned: What the client's policy pins; None where no client was named, empty where it pins nothing.
        policy_file: Where to put the line; None where no client was named.
    """

    before: Side
    after: Side
    changes: tuple[Change, ...]
    pinned: str | None = None
    policy_file: Path | None = None

    @property
    def same(self) -> bool:
        """Whether both are the same code."""
        return self.before.digest == self.after.digest


def review(first: Path, second: Path | None = None) -> Review:
    """Compare what a client runs with a bundle, two bundles, or what is installed with what is pinned.

    Args:
        first: A client's folder, or a bundle.
        second: A bundle. Left out after a folder: the installed Bract against the pin; left out after a
            bundle: that bundle against the installed Bract.

    Raises:
        ConfigError: The folder holds no client, its policy cannot be used, or a file cannot be read.
        BundleError: A file is no bundle.
    """
    if not first.is_dir():
        before, after = (first, second) if second is not None else (None, first)
        return _compare(_installed() if before is None else _of_file(before), _of_file(after))
    if not (first / SITE_FILE).exists():
        raise ConfigError(f"there is no client in {first}: name the folder that `bract client init` made, or a bundle")
    policy_file = load_site(first).policy_file
    pinned = load_policy(policy_file).bundle
    if second is not None:
        return _compare(_installed(), _of_file(second), pinned, policy_file)
    return Review(Side("pinned", pinned, None), _installed(), (), pinned, policy_file)


def _installed() -> Side:
    files = bundle_files(installed_bundle())
    return Side("the Bract installed here", files_digest(files), files)


def _of_file(file: Path) -> Side:
    try:
        files = bundle_files(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"the bundle {file} cannot be read ({error.strerror})") from None
    return Side(str(file), files_digest(files), files)


def _compare(before: Side, after: Side, pinned: str | None = None, policy_file: Path | None = None) -> Review:
    old, new = before.files or {}, after.files or {}
    changes = [
        _change(name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new)
        if old.get(name) != new.get(name)
    ]
    changes.sort(key=lambda change: (not change.flags, change.name))
    return Review(before, after, tuple(changes), pinned, policy_file)


def _change(name: str, old: bytes | None, new: bytes | None) -> Change:
    kind = "added" if old is None else "removed" if new is None else "changed"
    return Change(name, kind, flags_of(name, old, new), tuple(_diff(name, old, new)))


def _diff(name: str, old: bytes | None, new: bytes | None) -> list[str]:
    before, after = _lines(old), _lines(new)
    if before is None or after is None:
        return [f"no text: {_size(old)} before, {_size(new)} now"]
    places = ["/dev/null" if content is None else f"{side}/{name}" for side, content in (("a", old), ("b", new))]
    lines = difflib.unified_diff(before, after, fromfile=places[0], tofile=places[1], lineterm="")
    return [printable(line, keep="\t") for line in lines]


def _lines(content: bytes | None) -> list[str] | None:
    """Lines as an editor counts them; other marks that split lines stay in them, to be seen. None if it is no text."""
    try:
        text = (content or b"").decode("utf-8")
    except UnicodeDecodeError:
        return None
    if "\0" in text:
        return None
    lines = text.split("\n")
    return lines[:-1] if lines[-1] == "" else [*lines[:-1], lines[-1] + " (no line end)"]


def _size(content: bytes | None) -> str:
    return "nothing" if content is None else f"{len(content)} bytes, SHA-256 {hashlib.sha256(content).hexdigest()[:16]}"
