"""Which images a ledger knows: by the bytes of the file or by the pixels, whatever the file is called now.

An image is known if either of its two names is. A name is a keyed hash, so that the ledger
alone says nothing about what was in an image.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.config.schema import Unit
from common.data.image_digests import ImageDigests
from common.errors import LedgerError
from common.ledger.database import Ledger
from common.ledger.holder_keys import HolderKeys

PARTS = ("training", "evaluation")
_LOOK_UP = 500


@dataclass(frozen=True)
class Members:
    """The images of one part of a data set, as a ledger numbers them.

    Attributes:
        images: (n,) int64 numbers of images; one may occur twice, through copies.
        units: (n,) int64, equal for images of one privacy unit.
    """

    images: np.ndarray
    units: np.ndarray


@lru_cache(maxsize=256)
def content_of(keys: HolderKeys, unit: Unit, parts: tuple[ImageDigests, ...]) -> str:
    """Names a data set by what is in it, in no order: 64 hex digits, keyed.

    Args:
        keys: The holder's.
        unit: What is protected.
        parts: In the order of `PARTS`; not changed after the first call.
    """
    whole = hashlib.sha256(unit.encode())
    for part in parts:
        first = np.zeros(len(part.units), dtype=np.int64)
        if len(part.units):
            _, inverse = np.unique(part.units, return_inverse=True)
            least = np.full(inverse.max() + 1, len(inverse))
            order = np.lexsort(part.pixels.T)
            np.minimum.at(least, inverse, np.argsort(order))  # a unit is named by its least image
            first = least[inverse]
        rows = np.concatenate([part.files, part.pixels, first[:, None].view(np.uint8)], axis=1)
        rows = rows[np.lexsort(rows.T)]
        whole.update(len(rows).to_bytes(8, "big") + rows.tobytes())
    return keys.name_of(whole.digest(), "content").hex()


def image_ids(ledger: Ledger, keys: HolderKeys, part: ImageDigests, *, seq: int) -> Members:
    """The ledger's numbers of some images; those it has never seen get new ones. Inside a transaction.

    Two names that the ledger took for two images turn out to be one image's: then both are, and a link
    says so.

    Args:
        ledger: Open, in a transaction.
        keys: The holder's.
        part: The images.
        seq: Number of the entry that will vouch for what is added.
    """
    names = [
        (keys.name_of(file.tobytes(), "file"), keys.name_of(pixels.tobytes(), "pixels"))
        for file, pixels in zip(part.files, part.pixels, strict=True)
    ]
    known = _known(ledger, {name for pair in names for name in pair})
    following = int(ledger.query("SELECT coalesce(max(image), 0) + 1 FROM fingerprint")[0][0])
    added: list[tuple[bytes, int, int]] = []
    links: set[tuple[int, int]] = set()
    images = np.empty(len(names), dtype=np.int64)
    for row, pair in enumerate(names):
        found = sorted({known[name] for name in pair if name in known})
        if not found:
            found, following = [following], following + 1
        images[row] = found[0]
        links |= {(other, found[0]) for other in found[1:]}
        for name in pair:
            if name not in known:
                known[name] = found[0]
                added.append((name, found[0], seq))
    ledger.insert("fingerprint", added, "name, image, seq")
    ledger.insert("link", [(*pair, seq) for pair in sorted(links)], "image, same, seq")
    return Members(images, np.asarray(part.units, dtype=np.int64))


def _known(ledger: Ledger, names: Iterable[bytes]) -> dict[bytes, int]:
    wanted = sorted(names)
    found: dict[bytes, int] = {}
    for at in range(0, len(wanted), _LOOK_UP):
        block = wanted[at : at + _LOOK_UP]
        marks = ", ".join("?" * len(block))
        rows = ledger.query(f"SELECT name, image FROM fingerprint WHERE name IN ({marks})", block)  # noqa: S608
        found |= {bytes(name): image for name, image in rows}
    return found


def aliases(ledger: Ledger) -> dict[int, int]:
    """Image -> the least number of the same image, for those that links connect."""
    least: dict[int, int] = {}

    def root(image: int) -> int:
        while least.get(image, image) != image:
            image = least[image]
        return image

    for image, same in ledger.query("SELECT image, same FROM link ORDER BY row"):
        low, high = sorted((root(image), root(same)))
        least[high] = low
    return {image: root(image) for image in least}


def follow_links(images: np.ndarray, known_as: dict[int, int]) -> np.ndarray:
    """Numbers of images with links followed."""
    if not known_as:
        return images
    return np.array([known_as.get(image, image) for image in images.tolist()], dtype=np.int64)


def digest_of_added(ledger: Ledger, seq: int) -> str:
    """Hash of the names and links that one entry brought along: what the chain vouches for."""
    digest = hashlib.sha256()
    for name, image in ledger.query("SELECT name, image FROM fingerprint WHERE seq = ? ORDER BY row", (seq,)):
        digest.update(bytes(name) + int(image).to_bytes(8, "big"))
    for image, same in ledger.query("SELECT image, same FROM link WHERE seq = ? ORDER BY row", (seq,)):
        digest.update(int(image).to_bytes(8, "big") + int(same).to_bytes(8, "big"))
    return digest.hexdigest()


def keep_part(ledger: Ledger, dataset: str, name: str, unit: Unit, members: Members) -> None:
    """Write which images a part of a data set holds, once; inside a transaction."""
    if not ledger.query("SELECT 1 FROM part WHERE dataset = ? AND name = ?", (dataset, name)):
        blobs = [np.ascontiguousarray(array, dtype="<i8").tobytes() for array in (members.images, members.units)]
        ledger.insert("part", [(dataset, name, unit, *blobs)], "dataset, name, unit, images, units")


def read_part(ledger: Ledger, dataset: str, name: str) -> tuple[Unit, Members]:
    """What `keep_part` wrote.

    Raises:
        LedgerError: It is not there.
    """
    rows = ledger.query("SELECT unit, images, units FROM part WHERE dataset = ? AND name = ?", (dataset, name))
    if not rows:
        raise LedgerError(f"the ledger {ledger.path} lacks the images of a data set it has entries about")
    unit, *blobs = rows[0]
    images, units = (np.frombuffer(blob, dtype="<i8").astype(np.int64) for blob in blobs)
    return unit, Members(images, units)


def digest_of_part(ledger: Ledger, dataset: str, name: str) -> str:
    """Hash of which images a part holds."""
    unit, members = read_part(ledger, dataset, name)
    digest = hashlib.sha256(unit.encode())
    digest.update(members.images.astype("<i8").tobytes() + members.units.astype("<i8").tobytes())
    return digest.hexdigest()
