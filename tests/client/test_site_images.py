"""A client's folder: plain on its holder's terminal, silent once it has joined."""

import io
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

import bract
from client.checks.inputs import check_data
from client.client_config import load_site
from client.session import RunClients
from common.config.schema import RunConfig
from common.data.decoding import BadImage, StoredImage
from common.data.sources.datasets_library import is_sharded
from common.errors import ConfigError, DataError
from common.privacy.policy import load_policy
from common.system.progress import no_progress
from tests.support.clients.own_clients import SMALL, MakeConfig, OwnClient, code, picture, write_images
from tests.support.data.deep_files import png, saved, scan_values, tiff
from tests.support.data.folders import write_folder

pytestmark = pytest.mark.usefixtures("own_home")
Change = Callable[[Path], None]
BRIGHT = saved(Image.new("L", (8, 8), 250), "PNG")


def init(folder: Path, images: Path, *more: str) -> tuple[int, str]:
    done = CliRunner().invoke(bract.app, ["client", "init", str(folder), "--data", str(images), *more])
    return done.exit_code, done.output


def empty_class(images: Path) -> None:
    for file in (images / "bright").iterdir():
        file.unlink()


def no_image_at_all(images: Path) -> None:
    shutil.rmtree(images)
    images.mkdir()


def unusable(images: Path) -> None:
    for file in images.rglob("*.png"):
        file.write_bytes(b"damaged")


def parts_that_disagree(images: Path) -> None:
    for name in ("dark", "bright"):
        (images / name).rename(images / f"{name}-kept")
    (images / "train").mkdir()
    (images / "dark-kept").rename(images / "train" / "dark")
    (images / "test").mkdir()
    (images / "bright-kept").rename(images / "test" / "bright")


def wrapped(images: Path) -> None:
    (images / "archive").mkdir()
    for name in ("dark", "bright"):
        (images / name).rename(images / "archive" / name)


def sites(images: Path) -> None:
    wrapped(images)
    shutil.copytree(images / "archive", images / "other")


def only_loose_images(images: Path) -> None:
    for file in sorted(images.rglob("*.png")):
        file.rename(images / file.name)


def other_names(images: Path) -> None:
    for name in ("dark", "bright"):
        (images / name).rename(images / name.upper())


CHANGES = [
    empty_class,
    no_image_at_all,
    unusable,
    parts_that_disagree,
    wrapped,
    sites,
    only_loose_images,
    other_names,
]


@pytest.mark.parametrize("change", CHANGES)
def test_a_client_that_has_joined_answers_alike_whatever_its_folder_holds(
    tmp_path: Path, make_config: MakeConfig, change: Change
) -> None:
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(12)))
    config = make_config(SMALL)
    before = client.ask(config, "query", run="before")

    change(tmp_path / "images")
    answers = [
        client.ask(config, kind, run="run", server_round=number)
        for kind, number in (("query", 1), ("train", 1), ("train", 2), ("evaluate", 2))
    ]

    assert [code(answer) for answer in answers] == ["ok"] * 4
    for name in ("classes", "input-shape", "num-units"):
        assert answers[0].content["client"][name] == before.content["client"][name]


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({".png": png(scan_values(12))}, "white is 65,535; 12 bits are used (data.bit-depth=12)"),
        ({".tif": tiff(scan_values(10))}, "white is 65,535; 10 bits are used (data.bit-depth=10)"),
        ({".png": png(scan_values(12)), ".tif": tiff(scan_values(14))}, "14 bits are used (data.bit-depth=14)"),
        ({".tif": tiff(scan_values(12) // 3)}, "12 bits are used"),
        ({".png": png(scan_values(16))}, ""),
        ({".png": png(scan_values(8))}, "8 bits are used (data.bit-depth=8)"),
        ({".png": BRIGHT}, ""),
        ({".png": png(scan_values(12)), ".jpg": BRIGHT}, ""),
        ({".png": saved(Image.new("L", (8, 8), 100), "PNG")}, "the largest value is 100, and white is 255."),
    ],
)
def test_init_says_on_the_holders_terminal_that_images_leave_their_range_empty(
    tmp_path: Path, files: dict[str, bytes], said: str
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for suffix, content in files.items():
            (tmp_path / "images" / name / f"0{suffix}").write_bytes(content)

    code, output = init(tmp_path / "ward", tmp_path / "images")

    assert code == 0, output
    assert ("Values    The upper quarter" in output) == bool(said)
    assert said in output
    # It is said of the images, and stays out of what a server may ask for.
    assert "bit-depth" not in "".join(file.read_text() for file in (tmp_path / "ward").glob("*.toml"))


@pytest.mark.parametrize("table", ["path\n", "path,label,split\nimages/dark/0000.png,dark,test\n", "path,label\n"])
def test_a_client_with_a_table_answers_alike_whatever_it_holds(
    tmp_path: Path, make_config: MakeConfig, table: str
) -> None:
    images = sorted(write_images(tmp_path / "images", range(12)).rglob("*.png"))
    rows = [f"{file.relative_to(tmp_path)},{file.parent.name}" for file in images]
    (tmp_path / "all.csv").write_text("\n".join(["path,label", *rows]) + "\n")
    client = OwnClient(tmp_path, tmp_path / "all.csv")
    config = make_config(SMALL)

    (tmp_path / "all.csv").write_text(table)
    answers = [client.ask(config, kind, run="run") for kind in ("query", "train")]

    assert [code(answer) for answer in answers] == ["ok"] * 2


def test_one_odd_file_stops_no_client(tmp_path: Path, make_config: MakeConfig) -> None:
    """Pillow opens this file, and fails on its transparency."""
    images = write_images(tmp_path / "images", range(12))
    client = OwnClient(tmp_path, images)
    odd = Image.new("P", (8, 8))
    odd.putpalette(list(range(30)))
    stream = io.BytesIO()
    odd.save(stream, "PNG", transparency=bytes(range(10)))
    content = stream.getvalue()
    at = content.index(b"tRNS") - 4
    size = int.from_bytes(content[at : at + 4], "big")
    chunk = b"tRNS" + bytes(300)
    longer = (300).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    (images / "dark" / "odd.png").write_bytes(content[:at] + longer + content[at + size + 12 :])

    answers = [client.ask(make_config(SMALL), kind, run="run") for kind in ("query", "train")]

    assert [code(answer) for answer in answers] == ["ok"] * 2


def test_a_file_that_is_closed_after_its_scan_changes_no_answer(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read every file, so the closed one is imitated where it is read again."""
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(12)))
    config = make_config(SMALL)
    assert code(client.ask(config, "query", run="first")) == "ok"

    def closed(cell: dict[str, object]) -> StoredImage:
        raise BadImage("permission denied")

    monkeypatch.setattr("common.data.preprocessing.read_image", closed)
    monkeypatch.setattr("common.data.inputs.input_format.FORMAT", 99)  # nothing is cached
    answers = [code(client.ask(config, kind, run="second")) for kind in ("query", "train")]

    assert answers == ["ok"] * 2


def test_folders_that_cannot_be_listed_are_no_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "train").mkdir()
    real = Path.iterdir

    def closed(folder: Path) -> Iterator[Path]:
        if folder.name == "train":
            raise PermissionError(13, "Permission denied", str(folder))
        return real(folder)

    monkeypatch.setattr(Path, "iterdir", closed)

    assert is_sharded(tmp_path) is False


def test_a_run_that_is_asked_again_with_other_classes_tells_nothing(tmp_path: Path, make_config: MakeConfig) -> None:
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(12)))
    asked = [make_config(SMALL | {"data.classes": classes}) for classes in ("zz,yy", "zz,none here", "zz,dark")]

    answers = [code(client.ask(config, "query", run="one run")) for config in asked]

    assert answers[0] == "ok"
    assert answers[1] == answers[2] != "ok"


def test_a_plan_above_the_cap_is_refused_whatever_images_there_are(tmp_path: Path, make_config: MakeConfig) -> None:
    policy = 'max-epsilon = 0.01\ndelta = 1e-5\ntunings = ["full"]\nmetrics = ["none", "private"]\n'
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(12)), policy)

    answers = [
        code(client.ask(make_config(SMALL | {"data.classes": classes}), "query", run=classes))
        for classes in ("zz,yy", "zz,dark", "dark,bright")
    ]

    assert len(set(answers)) == 1
    assert answers[0] != "ok"


@pytest.mark.parametrize("asked", ["drop", "train", "test"])
def test_no_server_moves_the_images_of_a_part(tmp_path: Path, make_config: MakeConfig, asked: str) -> None:
    images = tmp_path / "images"
    for number, part in enumerate(["train"] * 6 + ["test"] * 2 + ["val"] * 4):
        (images / part / ("dark", "bright")[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(number, number % 2).save(images / part / ("dark", "bright")[number % 2] / f"{number}.png")
    client = OwnClient(tmp_path, images)

    rows = RunClients(make_config(SMALL | {"data.validation": asked})).open(str(client.folder)).rows

    assert (len(rows.train_labels), len(rows.test_labels), rows.num_units) == (6, 2, 6)


@pytest.mark.parametrize(
    ("validation", "train", "test"), [("drop", 6, 2), ("train", 10, 2), ("test", 6, 6), ("all", 0, 0), (3, 0, 0)]
)
def test_the_holder_says_how_val_is_used(
    tmp_path: Path, make_config: MakeConfig, validation: str | int, train: int, test: int
) -> None:
    images = tmp_path / "images"
    for number, part in enumerate(["train"] * 6 + ["test"] * 2 + ["val"] * 4):
        (images / part / ("dark", "bright")[number % 2]).mkdir(parents=True, exist_ok=True)
        picture(number, number % 2).save(images / part / ("dark", "bright")[number % 2] / f"{number}.png")
    if not train:
        init(tmp_path / "ward", images)
        with (tmp_path / "ward" / "client.toml").open("a") as file:
            file.write(f"validation = {validation!r}\n")
        with pytest.raises(ConfigError):
            load_site(tmp_path / "ward")
        return

    assert init(tmp_path / "ward", images, "--validation", str(validation))[0] == 0
    rows = RunClients(make_config(SMALL)).open(str(tmp_path / "ward")).rows

    assert (len(rows.train_labels), len(rows.test_labels), rows.num_units) == (train, test, train)
    assert load_site(tmp_path / "ward").validation == validation


@pytest.mark.parametrize(
    ("change", "more", "said"),
    [
        (wrapped, (), "name {images}/archive"),
        (sites, (), "hold the same sub-folders, bright, dark"),
        (parts_that_disagree, (), "dark in train/ alone; bright in test/ alone"),
        (no_image_at_all, (), "no images found"),
        (only_loose_images, (), "not read: 12 loose images"),
        (unusable, (), "12 of 12 images cannot be used"),
        (other_names, ("--class", "dark", "--class", "bright"), "none of 12 training images can be used"),
        (other_names, ("--class", "dark", "--class", "bright"), "dark (nearest: DARK), bright (nearest: BRIGHT)"),
    ],
)
def test_init_refuses_in_one_plain_message(tmp_path: Path, change: Change, more: tuple[str, ...], said: str) -> None:
    images = write_images(tmp_path / "images", range(12))
    change(images)

    code, output = init(tmp_path / "ward", images, *more)

    assert code == 2
    assert said.format(images=images) in output
    assert not (tmp_path / "ward").exists()


def test_init_tells_what_is_not_read_and_writes_the_class_list(tmp_path: Path) -> None:
    images = write_images(tmp_path / "images", range(12))
    write_folder(images, "loose.png Dim/a.txt")

    code, output = init(tmp_path / "ward", images, "--class", "dark", "--class", "bright, very", "--class", "bright")

    assert code == 0
    lines = output.splitlines()
    assert (
        "Not read: 1 loose image outside the class folders (loose.png); files .txt 1; empty class folders: Dim" in lines
    )
    assert "Classes: no image of bright, very" in lines
    assert load_policy(tmp_path / "ward" / "policy.toml").classes == ("dark", "bright, very", "bright")


def test_a_policy_without_a_list_is_written_as_before(tmp_path: Path) -> None:
    init(tmp_path / "ward", write_images(tmp_path / "images", range(12)))

    assert '\n# classes = ["normal", "tumour"]\n' in (tmp_path / "ward" / "policy.toml").read_text()
    assert "validation" not in (tmp_path / "ward" / "client.toml").read_text()


@pytest.mark.parametrize(
    ("change", "classes", "state", "said"),
    [
        (lambda _: None, ("dark", "bright"), "ok", "12 training images can be used"),
        (lambda _: None, ("dark", "bright", "dim"), "warn", "Classes: no image of dim"),
        (empty_class, ("dark", "bright"), "warn", "Not read: empty class folders: bright"),
        (other_names, ("dark", "bright"), "FAIL", "Classes: no image of dark (nearest: DARK)"),
        (wrapped, (), "FAIL", "archive"),
        (no_image_at_all, (), "FAIL", "no images found"),
    ],
)
def test_doctor_names_classes_and_what_is_not_read(
    tmp_path: Path, change: Change, classes: tuple[str, ...], state: str, said: str
) -> None:
    images = write_images(tmp_path / "images", range(12))
    init(tmp_path / "ward", images)
    change(images)

    finding = check_data(load_site(tmp_path / "ward"), no_progress, classes)

    assert finding.state == state
    assert said in finding.found


def test_an_unlisted_folder_is_refused_at_init_and_silent_when_joined(
    tmp_path: Path, make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(12)))
    scandir = os.scandir

    def fail(path: Path) -> object:
        if Path(path).name == "bright":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr("common.data.folders.folder_tree.os.scandir", fail)
    config: RunConfig = make_config(SMALL)

    assert code(client.ask(config, "query", run="run")) == code(client.ask(config, "train", run="run")) == "ok"
    with pytest.raises(DataError, match="cannot be listed"):
        OwnClient(tmp_path, tmp_path / "images")
