"""Budgets belong to images: whatever a client, a folder or a file is called, what was spent is found again.

Drives `client.home`.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from common.config.schema import RunConfig
from common.ledger.data_holder import own_holder
from tests.support.clients.healthy_client import COUNT
from tests.support.clients.own_clients import POLICY, SMALL, MakeConfig, OwnClient, code, picture, write_images

pytestmark = pytest.mark.usefixtures("own_home")


@pytest.fixture
def config(make_config: MakeConfig) -> RunConfig:
    return make_config(SMALL)


def spend(client: OwnClient, config: RunConfig, run: str = "first") -> list[str]:
    """A whole run: agree, two rounds, close."""
    kinds = [("query", 1), ("train", 1), ("train", 2), ("evaluate", 2)]
    return [code(client.ask(config, kind, run=run, server_round=number)) for kind, number in kinds]


def copied(images: Path, target: Path) -> Path:
    return Path(shutil.copytree(images, target))


def renamed(images: Path, target: Path) -> Path:
    shutil.copytree(images, target)
    for file in sorted(target.rglob("*.png")):
        file.rename(file.with_name(f"scan-{file.stem[::-1]}.png"))
    return target


def relabelled(images: Path, target: Path) -> Path:
    shutil.copytree(images, target)
    (target / "dark").rename(target / "x")
    (target / "bright").rename(target / "dark")
    (target / "x").rename(target / "bright")
    return target


def split(images: Path, target: Path) -> Path:
    shutil.copytree(images, target)
    for file in sorted(target.rglob("*.png"))[::2]:
        file.unlink()
    return target


def one_larger(images: Path, target: Path) -> Path:
    return write_images(Path(shutil.copytree(images, target)), range(COUNT, COUNT + 1))


def saved_again(images: Path, target: Path) -> Path:
    """The same pixels in files of another format, none of whose bytes are the same."""
    return write_images(target, range(COUNT), ".bmp")


def moved_to_a_test_set(images: Path, target: Path) -> Path:
    """What trained is now held out, and the other way round."""
    for file in sorted(images.rglob("*.png")):
        part = "test" if int(file.stem) % 4 < 2 else "train"
        place = target / part / file.parent.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, place)
    return target


@pytest.mark.parametrize(
    "disguise",
    [copied, renamed, relabelled, split, one_larger, saved_again, moved_to_a_test_set],
    ids=lambda disguise: disguise.__name__,
)
def test_spent_images_are_found_again_in_any_disguise(
    tmp_path: Path, images: Path, config: RunConfig, disguise: Callable[[Path, Path], Path]
) -> None:
    assert spend(OwnClient(tmp_path, images), config) == ["ok"] * 4

    again = OwnClient(tmp_path, disguise(images, tmp_path / "disguise"))

    assert code(again.ask(config, "query", run="second")) == "POLICY"
    assert code(again.ask(config, "train", run="second")) == "POLICY"


def test_a_second_client_init_over_the_same_folder_finds_the_same_budget(
    tmp_path: Path, images: Path, config: RunConfig
) -> None:
    spend(OwnClient(tmp_path, images), config)

    second = OwnClient(tmp_path, images, name="somebody else")

    assert spend(second, config, "second") == ["POLICY"] * 4


def test_different_images_have_a_budget_of_their_own(tmp_path: Path, images: Path, config: RunConfig) -> None:
    spend(OwnClient(tmp_path, images), config)
    others = write_images(tmp_path / "others", range(1000, 1000 + COUNT))

    assert spend(OwnClient(tmp_path, others), config, "second") == ["ok"] * 4


def test_one_changed_pixel_is_a_new_image_as_the_statement_says(
    tmp_path: Path, images: Path, config: RunConfig
) -> None:
    spend(OwnClient(tmp_path, images), config)
    edited = tmp_path / "edited"
    for number in range(COUNT):
        image = picture(number, number % 2)
        image.putpixel((0, 0), (1, 2, 3))
        place = edited / ("dark", "bright")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        image.save(place / f"{number}.png")

    assert spend(OwnClient(tmp_path, edited), config, "second") == ["ok"] * 4


def test_a_larger_cap_lets_a_second_run_compose_and_a_third_end(
    tmp_path: Path, images: Path, config: RunConfig
) -> None:
    client = OwnClient(tmp_path, images, POLICY.replace("5.0", "6.5"))

    results = [spend(client, config, run)[0] for run in ("first", "second", "third")]

    assert results == ["ok", "ok", "POLICY"]  # 4 and 4 compose to less than 8
    with own_holder().open_session() as session:
        kinds = [entry.kind for entry in session.ledger.entries()]
    assert kinds.count("register") == 2
    assert kinds.count("reserve") == kinds.count("commit") == 6


def test_images_that_change_during_a_run_end_it(tmp_path: Path, images: Path, config: RunConfig) -> None:
    client = OwnClient(tmp_path, images)
    assert code(client.ask(config, "train", run="first")) == "ok"
    write_images(images, range(COUNT, COUNT + 1))

    assert code(client.ask(config, "train", run="first", server_round=2)) == "POLICY"


def test_a_run_without_class_names_is_refused(tmp_path: Path, images: Path, make_config: MakeConfig) -> None:
    config = make_config(SMALL | {"data.classes": ""})

    assert code(OwnClient(tmp_path, images).ask(config, "query", run="first")) == "CONFIG"


def test_the_declared_size_stays_when_images_come(tmp_path: Path, images: Path, config: RunConfig) -> None:
    client = OwnClient(tmp_path, images)
    write_images(images, range(COUNT, COUNT + 7))

    reply = client.ask(config, "query", run="first")

    assert reply.content.config_records["client"]["num-units"] == COUNT
