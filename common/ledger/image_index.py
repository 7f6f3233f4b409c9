"""The images that a ledger knows, by file bytes and by pixels.

An image is known if either of its two names is known, so a new file name changes nothing. A name is a keyed hash.
Without the key, the ledger says nothing about what an image shows.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from common.config.sections import Unit
from common.data.image_digests import ImageDigests
from common.errors import LedgerError
from common.ledger.database import FINGERPRINTS, Ledger
from common.ledger.holder_keys import HolderKeys

PARTS = ("training", "evaluation")
_BY_EARLIER_CODE = f"json_extract(entry.versions, '$.{FINGERPRINTS}') IS NULL"
# SQLite limits how many values one query can have.
_NAMES_PER_QUERY = 500


@dataclass(frozen=True)
class Members:
    """The images of one part of a data set, as a ledger numbers them.

    `images` holds the (n,) int64 numbers of images, where a number occurs twice if the part holds a copy of the image.
    `units` is (n,) int64, equal for images of one privacy unit.
    """

    images: np.ndarray
    units: np.ndarray


@lru_cache(maxsize=256)
def content_of(keys: HolderKeys, unit: Unit, parts: tuple[ImageDigests, ...]) -> str:
    """Return the keyed name of a data set, 64 hex digits.

    The name follows from the images and how they form units. The order of the images does not matter. `parts` are in
    the order of `PARTS` and must not change after the first call.
    """
    whole = hashlib.sha256(unit.encode())
    for part in parts:
        first = np.zeros(len(part.units), dtype=np.int64)
        if len(part.units):
            # Numbers of units are arbitrary, so each unit is named by its first image in the order of pixel digests.
            _, inverse = np.unique(part.units, return_inverse=True)
            least = np.full(inverse.max() + 1, len(inverse))
            order = np.lexsort(part.pixels.T)
            np.minimum.at(least, inverse, np.argsort(order))
            first = least[inverse]
        rows = np.concatenate([part.files, part.pixels, first[:, None].view(np.uint8)], axis=1)
        rows = rows[np.lexsort(rows.T)]
        whole.update(len(rows).to_bytes(8, "big") + rows.tobytes())
    return keys.name_of(whole.digest(), "content").hex()


def image_ids(ledger: Ledger, keys: HolderKeys, part: ImageDigests, *, seq: int) -> Members:
    """Return the ledger's numbers of images, giving new images new numbers.

    Call it inside a transaction. If an image matches one id by its file hash and another by its pixel hash, record a
    link, because both ids are the same image. A pixel hash of earlier versions matches what those have charged, and is
    stored beside today's for them. `seq` is the number of the entry that will vouch for the names and links that are
    added.
    """
    names = [
        (keys.name_of(file.tobytes(), "file"), keys.name_of(pixels.tobytes(), "pixels"))
        for file, pixels in zip(part.files, part.pixels, strict=True)
    ]
    earlier = _earlier_names(keys, part)
    known = _known(ledger, {*(name for pair in names for name in pair), *earlier.values()})
    # Images that are apart today may share an earlier name, so it counts only where earlier code has charged it.
    charged_before = _known(ledger, earlier.values(), _BY_EARLIER_CODE)
    next_id = int(ledger.query("SELECT coalesce(max(image), 0) + 1 FROM fingerprint")[0][0])
    added: list[tuple[bytes, int, int]] = []
    links: set[tuple[int, int]] = set()
    images = np.empty(len(names), dtype=np.int64)
    for row, pair in enumerate(names):
        before = [earlier[row]] if row in earlier else []
        ids = sorted(
            {known[name] for name in pair if name in known}
            | {charged_before[name] for name in before if name in charged_before}
        )
        if not ids:
            ids, next_id = [next_id], next_id + 1
        images[row] = ids[0]
        links |= {(other, ids[0]) for other in ids[1:]}
        for name in (*pair, *before):
            if name not in known:
                known[name] = ids[0]
                added.append((name, ids[0], seq))
    ledger.insert("fingerprint", added, "name, image, seq")
    ledger.insert("link", [(*pair, seq) for pair in sorted(links)], "image, same, seq")
    return Members(images, np.asarray(part.units, dtype=np.int64))


def charged_by_earlier_code(ledger: Ledger, keys: HolderKeys, part: ImageDigests) -> np.ndarray:
    """Return whether earlier versions have charged images under other names, (n,) bool.

    Images that they knew by the names of today are not among them.
    """
    earlier = _earlier_names(keys, part)
    charged = _known(ledger, earlier.values(), _BY_EARLIER_CODE)
    return np.array([earlier.get(row) in charged for row in range(len(part.files))], dtype=bool)


def _earlier_names(keys: HolderKeys, part: ImageDigests) -> dict[int, bytes]:
    """Return the names of rows that earlier versions named otherwise."""
    digests = part.earlier_pixels
    if digests is None:
        return {}
    rows = np.flatnonzero(digests.any(axis=1)).tolist()
    return {row: keys.name_of(digests[row].tobytes(), "pixels") for row in rows}


def _known(ledger: Ledger, names: Iterable[bytes], condition: str = "1") -> dict[bytes, int]:
    """Return the images of known names.

    The condition is about the entries that vouch for the names.
    """
    wanted = sorted(set(names))
    table = "fingerprint" if condition == "1" else "fingerprint JOIN entry USING (seq)"
    known: dict[bytes, int] = {}
    for start in range(0, len(wanted), _NAMES_PER_QUERY):
        block = wanted[start : start + _NAMES_PER_QUERY]
        marks = ", ".join("?" * len(block))
        rows = ledger.query(f"SELECT name, image FROM {table} WHERE {condition} AND name IN ({marks})", block)  # noqa: S608
        known |= {bytes(name): image for name, image in rows}
    return known


def aliases(ledger: Ledger) -> dict[int, int]:
    """Return a map from each linked image to the smallest number it has."""
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
    """Replace each number of a linked image by its smallest number."""
    if not known_as:
        return images
    return np.array([known_as.get(image, image) for image in images.tolist()], dtype=np.int64)


def digest_of_added(ledger: Ledger, seq: int) -> str:
    """Return the hash of the names and links that came with one entry.

    The entry holds this hash, so the chain also protects the tables of names and links.
    """
    digest = hashlib.sha256()
    for name, image in ledger.query("SELECT name, image FROM fingerprint WHERE seq = ? ORDER BY row", (seq,)):
        digest.update(bytes(name) + int(image).to_bytes(8, "big"))
    for image, same in ledger.query("SELECT image, same FROM link WHERE seq = ? ORDER BY row", (seq,)):
        digest.update(int(image).to_bytes(8, "big") + int(same).to_bytes(8, "big"))
    return digest.hexdigest()


def keep_part(ledger: Ledger, dataset: str, name: str, unit: Unit, members: Members) -> None:
    """Store the images of a data set's part once, inside a transaction."""
    if not ledger.query("SELECT 1 FROM part WHERE dataset = ? AND name = ?", (dataset, name)):
        blobs = [np.ascontiguousarray(array, dtype="<i8").tobytes() for array in (members.images, members.units)]
        ledger.insert("part", [(dataset, name, unit, *blobs)], "dataset, name, unit, images, units")


def read_part(ledger: Ledger, dataset: str, name: str) -> tuple[Unit, Members]:
    """Return the images of a data set's part that `keep_part` stored.

    Raises:
        LedgerError: The ledger lacks the part.
    """
    rows = ledger.query("SELECT unit, images, units FROM part WHERE dataset = ? AND name = ?", (dataset, name))
    if not rows:
        raise LedgerError(f"the ledger {ledger.path} lacks the images of a data set that its entries are about")
    unit, *blobs = rows[0]
    images, units = (np.frombuffer(blob, dtype="<i8").astype(np.int64) for blob in blobs)
    return unit, Members(images, units)


def digest_of_part(ledger: Ledger, dataset: str, name: str) -> str:
    """Return the hash of the images in a data set's part."""
    unit, members = read_part(ledger, dataset, name)
    digest = hashlib.sha256(unit.encode())
    digest.update(members.images.astype("<i8").tobytes() + members.units.astype("<i8").tobytes())
    return digest.hexdigest()
