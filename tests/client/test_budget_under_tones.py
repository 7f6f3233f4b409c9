"""Images of more than 8 bits keep their budget and their side of the split under every setting and version.

Drives `common.data.image_digests`, `common.ledger.image_index`.
"""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config.loading import Scalar
from common.data import scan as scanning
from common.ledger import database
from common.ledger.data_holder import own_holder
from common.ledger.image_index import PARTS, aliases, read_part
from tests.support.clients.own_clients import CLASSES, POLICY, SMALL, MakeConfig, OwnClient, code
from tests.support.data.deep_files import WHITE_IS_ZERO, png, scan_values, tiff

pytestmark = pytest.mark.usefixtures("own_home")
WINDOWS: list[dict[str, Scalar]] = [
    {"data.bit-depth": 12},
    {"data.gray-window": "200,3000"},
    {"data.bit-depth": 8, "data.background": "white"},
]
PRIVATE = SMALL | {"privacy.target-epsilon": 1.0}
LOOSE = POLICY.replace("5.0", "90.0")


def write(folder: Path, count: int, *, bits: int = 12) -> Path:
    """Scans of two classes, as PNG, TIFF and TIFF whose white is 0."""
    for number in range(count):
        values = scan_values(bits, seed=number, shape=(8, 8))
        place = folder / CLASSES[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        kinds = {".png": png(values), ".tif": tiff(values), ".tiff": tiff(values, white=WHITE_IS_ZERO)}
        suffix = list(kinds)[number % 3]
        (place / f"{number:03d}{suffix}").write_bytes(kinds[suffix])
    return folder


def sides() -> list[dict[str, set[int]]]:
    """Each registered run's images of training and evaluation, by their smallest number."""
    with own_holder().open_session() as session:
        known, runs = aliases(session.ledger), session.ledger.entries("kind = 'register'")
        return [
            {
                part: {
                    known.get(image, image) for image in read_part(session.ledger, run.dataset, part)[1].images.tolist()
                }
                for part in PARTS
            }
            for run in runs
        ]


class EarlierCode:
    """The names by which versions before `data.bit-depth` knew images."""

    def __init__(self, home: Path) -> None:
        self._patch, self._home = pytest.MonkeyPatch(), home

    def __enter__(self) -> None:
        versions = {name: text for name, text in database._versions().items() if name != database.FINGERPRINTS}
        self._patch.setattr(database, "_versions", lambda: versions)
        self._patch.setattr(scanning, "deep_digest", lambda *_: None)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        shutil.rmtree(self._home / "cache")


def ask_all(client: OwnClient, make_config: MakeConfig, settings: list[dict[str, Scalar]]) -> list[str]:
    return [
        code(client.ask(make_config(PRIVATE | more), "train", run=f"run {number} {more}"))
        for number, more in enumerate(settings)
    ]


def test_a_ledger_of_earlier_code_knows_all_images_under_three_windows(
    tmp_path: Path, own_home: Path, make_config: MakeConfig
) -> None:
    images = write(tmp_path / "scans", 60)
    with EarlierCode(own_home):
        client = OwnClient(tmp_path, images, LOOSE)
        assert ask_all(client, make_config, [{}]) == ["ok"]

    assert ask_all(client, make_config, [{}, *WINDOWS]) == ["ok"] * 4

    before, *after = sides()
    assert before["training"]
    assert before["evaluation"]
    assert after == [before] * len(after)
    assert len(before["training"] | before["evaluation"]) == 60


def test_images_that_earlier_code_took_for_one_stay_charged_and_on_their_side(
    tmp_path: Path, own_home: Path, make_config: MakeConfig
) -> None:
    write(tmp_path / "scans", 57)
    images = write(tmp_path / "scans", 3, bits=8)
    with EarlierCode(own_home):
        client = OwnClient(tmp_path, images, LOOSE)
        assert ask_all(client, make_config, [{}]) == ["ok"]
    # A file that the ledger has never seen, with the pixels of one that it has.
    png_file, tiff_file = (
        next((images / name).rglob(f"{number:03d}.*")) for name, number in (("dark", 0), ("bright", 1))
    )
    for file, content in ((png_file, tiff), (tiff_file, png)):
        file.unlink()
        number = int(file.stem)
        file.with_suffix(".tif" if content is tiff else ".png").write_bytes(
            content(scan_values(8, seed=number, shape=(8, 8)))
        )

    assert set(ask_all(client, make_config, WINDOWS)) == {"ok"}

    before, *after = sides()
    assert len(before["training"] | before["evaluation"]) == 55, "all images of 8 bits in 16 were one"
    assert after == [before] * len(after)


def test_files_of_eight_bits_in_sixteen_are_as_many_units_as_images(
    tmp_path: Path, own_home: Path, make_config: MakeConfig
) -> None:
    client = OwnClient(tmp_path, write(tmp_path / "scans", 60, bits=8), POLICY)

    assert ask_all(client, make_config, [{"data.bit-depth": 8}]) == ["ok"]

    (found,) = sides()
    assert len(found["training"]) + len(found["evaluation"]) == 60
    assert 3 <= len(found["evaluation"]) <= 25


@pytest.mark.parametrize("more", [{}, *WINDOWS, {"data.gray-window": "60000,60001"}])
def test_the_answer_follows_from_the_settings_alone(
    tmp_path: Path, images: Path, make_config: MakeConfig, more: dict[str, Any]
) -> None:
    answers = []
    for folder in (images, write(tmp_path / "scans", 40), write(tmp_path / "dark", 40, bits=8)):
        reply = OwnClient(tmp_path, folder).ask(make_config(SMALL | more), "query", run=folder.name)
        answers.append((code(reply), dict(reply.content.config_records["client"])["input-shape"]))

    assert answers == [("ok", [8, 8, 3])] * 3


def test_names_that_today_stores_for_earlier_code_join_no_images(own_home: Path) -> None:
    from common.data.image_digests import ImageDigests
    from common.ledger.image_index import image_ids
    from tests.support.ledger.builders import holding

    part = holding(0, 4)
    shared = np.repeat(holding(9, 10).pixels, 4, axis=0)
    with own_holder().open_session() as session, session.ledger.transaction():
        keys = own_holder().keys
        first = image_ids(session.ledger, keys, ImageDigests(part.files, part.pixels, part.units, shared), seq=2)
        again = image_ids(session.ledger, keys, ImageDigests(part.files, part.pixels, part.units, shared), seq=3)
        # Earlier code looks for the shared name alone, and finds the first image.
        earlier = image_ids(session.ledger, keys, ImageDigests(holding(5, 6).files, shared[:1], part.units[:1]), seq=4)

    assert first.images.tolist() == again.images.tolist() == [1, 2, 3, 4]
    assert earlier.images.tolist() == [1]
