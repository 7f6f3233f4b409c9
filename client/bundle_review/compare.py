"""Comparison of two bundles of code, all of it untrusted text."""

from dataclasses import dataclass
from pathlib import Path

from client.bundle_review.flags import flags_of
from client.client_config import SITE_FILE, load_site
from common.errors import ConfigError
from common.privacy.policy import load_policy
from common.system.app_bundle import bundle_files, files_digest, installed_bundle

Files = dict[str, bytes]


@dataclass(frozen=True)
class Side:
    """A bundle on one side of a comparison.

    Attributes:
        label: Names the bundle for people.
        digest: Digest of its files, as a policy pins it, 64 hex digits.
        files: File name -> content; None where only the digest is known.
    """

    label: str
    digest: str
    files: Files | None


@dataclass(frozen=True)
class Change:
    """A file that differs between the two sides.

    Attributes:
        name: Its path in the bundle.
        kind: `added`, `removed` or `changed`.
        flags: Reasons to read this file before others.
    """

    name: str
    kind: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Review:
    """The result of a comparison.

    Attributes:
        before: The code that runs or is pinned here now.
        after: The code to judge.
        changes: Files that differ, those with flags first.
        pinned: Digest that the client's policy pins; None where no client was named, empty where it pins nothing.
        policy_file: The policy that the new pin goes into; None where no client was named.
    """

    before: Side
    after: Side
    changes: tuple[Change, ...]
    pinned: str | None = None
    policy_file: Path | None = None

    @property
    def same(self) -> bool:
        """True where both sides are the same code."""
        return self.before.digest == self.after.digest


def review(first: Path, second: Path | None = None) -> Review:
    """Compare two bundles or a client's code with its pin.

    Args:
        first: A client's folder, or a bundle.
        second: A bundle. Without it, a client's pin is compared with the installed Bract, and a bundle `first` with
            the installed Bract.

    Raises:
        ConfigError: The folder holds no client, its policy cannot be used, or a file cannot be read.
        BundleError: A file is not a bundle.
    """
    if not first.is_dir():
        return (
            _compare(_installed(), _of_file(first)) if second is None else _compare(_of_file(first), _of_file(second))
        )
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
    return Change(name, kind, flags_of(name, old, new))
