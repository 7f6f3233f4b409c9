"""Removal of a client's keys and of what was derived from its images."""

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from client.client_config import Site
from client.runtime.client_lock import hold_lock
from client.secure.secrets_file import FOLDER, SecretsFile, file_name
from common.errors import ConfigError
from common.ledger.data_holder import LEDGER_FILE, own_holder
from common.system.paths import bract_home

# Hashes and shapes of public backbones. All else in the cache was derived from images.
_PUBLIC_CACHE = "backbones"


@dataclass(frozen=True)
class Removed:
    """Things that `leave_federations` removed.

    Attributes:
        keys: Files of the node's key pair.
        runs: Runs whose personal tensors were stored.
        replies: Replies that were kept for sending again.
        cached_bytes: Size of the cached features, pixels, scans and partitions.
    """

    keys: tuple[Path, ...]
    runs: int
    replies: int
    cached_bytes: int


def leave_federations(site: Site) -> Removed:
    """Remove a client's keys, personal tensors, kept replies and this user's caches of images.

    Guarantee: the ledger's entries, its keys and its last head stay, so that nothing that was spent is forgotten. The
    bytes of removed replies are overwritten in the ledger's file. Images, `client.toml` and `policy.toml` stay too.

    Raises:
        ConfigError: The client is running, or a file cannot be removed.
        LedgerError: The ledger is damaged, older than its last head, or cannot be written.
    """
    with hold_lock(site):
        try:
            # The key goes first. If the rest fails, the client cannot answer with half of its state.
            keys = tuple(file for file in (site.key_file, site.public_key_file) if file.exists())
            for file in keys:
                file.unlink()
            runs = _remove_personal_tensors(site.name)
            _remove_mask_secrets(site.name)
            cached = _remove_caches()
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be removed ({error.strerror})") from None
        return Removed(keys, runs, _remove_replies(site.name), cached)


def _remove_personal_tensors(client: str) -> int:
    folders = list((bract_home() / "holder" / "personal").glob("*"))
    own = [folder / client for folder in folders if (folder / client).is_dir()]
    for folder in own:
        shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()
    return len(own)


def _remove_mask_secrets(client: str) -> None:
    for folder in (bract_home() / "holder" / FOLDER).glob("*/"):
        # Also where there is no such file: a killed process may have left one that it had begun to write.
        SecretsFile(folder / file_name(client), durable=True).erase()


def _remove_caches() -> int:
    # Cached rows are found by content, so it cannot be told which of this user's clients they belong to.
    root = bract_home() / "cache"
    parts = [part for part in _contents(root) if part.name != _PUBLIC_CACHE]
    size = sum(file.stat().st_size for part in parts for file in (part, *part.rglob("*")) if file.is_file())
    for part in parts:
        if part.is_dir() and not part.is_symlink():
            shutil.rmtree(part)
        elif not part.is_dir():
            part.unlink()
    if links := [part for part in parts if part.is_dir()]:
        # What a link leads to is not removed from here: it may hold what somebody else keeps.
        places = ", ".join(f"{link} leads to {link.resolve()}" for link in links)
        raise ConfigError(f"{places}: remove the images there, then the link, and run this again")
    return size


def _contents(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _remove_replies(client: str) -> int:
    # Opening a ledger would make one where there is none.
    if not (bract_home() / "holder" / LEDGER_FILE).is_file():
        return 0
    with own_holder().open_session() as session:
        return session.ledger.erase_replies(client)
