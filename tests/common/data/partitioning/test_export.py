"""One folder a client: what is written is a source again, with the same images.

Drives `common.commands.partition`.
"""

import errno
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from bract import app
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data.partitioning.assignment import make_partition
from common.data.partitioning.export import export_partition, folder_names
from common.data.scan import Scan, scan_source
from common.data.sources.registry import open_source
from common.errors import DataError
from common.system.progress import no_progress

MakeConfig = Callable[..., RunConfig]
Found = Counter[tuple[str, str, bytes]]
CLASSES = ("Bag", "T-shirt_top", "cat, grey")


@pytest.fixture(autouse=True)
def _own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))


def _picture(file: Path, number: int, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(number).integers(256, size=(6, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, **options)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    """A folder of 3 classes in several formats, two copies of one image, and one file that is no image."""
    root = tmp_path / "pets"
    suffixes = ("jpg", "png", "webp", "bmp", "tif", "gif", "JPEG")
    for number in range(63):
        _picture(root / CLASSES[number % 3] / "deeper" / f"Bild {number // 3}.{suffixes[number % 7]}", number)
    (root / "Bag" / "copy.bmp").write_bytes((root / "Bag" / "deeper" / "Bild 1.bmp").read_bytes())
    (root / "Bag" / "broken.png").write_bytes(b"no image")
    return root


def _config(make_config: MakeConfig, source: Path, **given: Scalar) -> RunConfig:
    plain: dict[str, Scalar] = {"data.source": str(source), "num-clients": 3, "data.max-bad-fraction": 0.1}
    return make_config(plain | given)


def _images(scan: Scan, rows: np.ndarray, held_out: np.ndarray, names: tuple[str, ...]) -> Found:
    return Counter(
        ("test" if held_out[row] else "train", names[scan.labels[row]], scan.digests[row].tobytes()) for row in rows
    )


def _read_back(make_config: MakeConfig, folder: Path, classes: tuple[str, ...]) -> Found:
    data = _config(make_config, folder, **{"data.classes": ",".join(folder_names(classes))}).data
    scan = scan_source(open_source(data), progress=no_progress)
    assert scan.faults == ()
    count = len(scan.labels)
    return _images(scan, np.arange(count), np.arange(count) >= scan.num_train, classes)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"data.partitioner": "iid", "seed": 3},
        {"data.partitioner": "pathological", "data.classes-per-client": 1},
        {"data.partitioner": "shards"},
    ],
    ids=["dirichlet", "iid", "a-class-each", "shards"],
)
def test_each_client_folder_reads_back_to_the_same_images(
    make_config: MakeConfig, pets: Path, tmp_path: Path, given: dict[str, Scalar]
) -> None:
    config, out = _config(make_config, pets, **given), tmp_path / "out"
    source = open_source(config.data)

    facts = export_partition(config, source, out, no_progress)

    scan = scan_source(source, progress=no_progress)
    partition = make_partition(scan, config.data, num_clients=config.num_clients, seed=config.seed)
    for client in range(3):
        rows = np.flatnonzero((partition.owner == client) & scan.usable)
        wanted = _images(scan, rows, partition.held_out, scan.classes)
        assert _read_back(make_config, out / f"client-{client:05d}", scan.classes) == wanted
        assert sum(wanted.values()) == facts["clients"][client]["train"] + facts["clients"][client]["test"]
    assert (facts["images_unused"], facts["images_unusable"]) == (partition.images_unused, 1)


def test_a_source_in_memory_with_its_numbers_as_classes_reads_back(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config({"num-clients": 2, "data.partitioner": "pathological", "data.classes-per-client": 2})
    source = open_source(config.data)

    export_partition(config, source, tmp_path / "out", no_progress)

    scan = scan_source(source, progress=no_progress)
    partition = make_partition(scan, config.data, num_clients=config.num_clients, seed=config.seed)
    for client in range(2):
        wanted = _images(scan, np.flatnonzero(partition.owner == client), partition.held_out, scan.classes)
        assert _read_back(make_config, tmp_path / "out" / f"client-{client:05d}", scan.classes) == wanted


def test_a_sources_own_test_set_becomes_the_test_folders(make_config: MakeConfig, tmp_path: Path) -> None:
    for number in range(40):
        _picture(
            tmp_path / "own" / ("test" if number % 4 == 0 else "train") / f"class {number % 3}" / f"{number}.png",
            number,
        )
    config = _config(make_config, tmp_path / "own", **{"data.partitioner": "iid"})

    facts = export_partition(config, open_source(config.data), tmp_path / "out", no_progress)

    assert [client["train"] for client in facts["clients"]] == [10] * 3
    written = Counter(file.relative_to(tmp_path / "out").parts[1] for file in (tmp_path / "out").glob("*/*/*/*.png"))
    assert (written["train"], written["test"]) == (30, 10)


def test_units_come_back_by_the_manifest_of_each_client(make_config: MakeConfig, pets: Path, tmp_path: Path) -> None:
    files = sorted(file for file in pets.rglob("Bild*.*"))
    rows = [f'"{file.relative_to(pets)}","{file.parts[-3]}","patient, {n % 20}"' for n, file in enumerate(files)]
    (pets / "all.csv").write_text("\n".join(["path,label,unit", *rows]), encoding="utf-8")
    config = _config(make_config, pets / "all.csv")
    source = open_source(config.data)

    facts = export_partition(config, source, tmp_path / "out", no_progress)

    def units_of(scan: Scan, rows: np.ndarray) -> Counter[tuple[bytes, bytes]]:
        assert scan.unit_digests is not None
        return Counter((scan.digests[row].tobytes(), scan.unit_digests[row].tobytes()) for row in rows)

    assert facts["units"]
    scan = scan_source(source, progress=no_progress)
    partition = make_partition(scan, config.data, num_clients=config.num_clients, seed=config.seed)
    for client in range(3):
        classes = ",".join(facts["class_folders"])
        manifest = tmp_path / "out" / f"client-{client:05d}" / "manifest.csv"
        back = scan_source(
            open_source(_config(make_config, manifest, **{"data.classes": classes}).data), progress=no_progress
        )
        assert units_of(back, np.arange(len(back.labels))) == units_of(scan, np.flatnonzero(partition.owner == client))
        assert back.num_train == facts["clients"][client]["train"]


def test_files_keep_their_bytes_and_a_readable_name(make_config: MakeConfig, pets: Path, tmp_path: Path) -> None:
    config = _config(make_config, pets)

    export_partition(config, open_source(config.data), tmp_path / "out", no_progress)

    written = [file for file in (tmp_path / "out").glob("client-*/*/*/*") if file.is_file()]
    before = Counter(file.read_bytes() for file in pets.rglob("*.*") if file.name != "broken.png")
    assert Counter(file.read_bytes() for file in written) == before
    assert all("Bild" in file.stem or file.stem.endswith("-copy") for file in written)


def test_partition_json_says_who_got_what_and_how(make_config: MakeConfig, pets: Path, tmp_path: Path) -> None:
    config = _config(make_config, pets, seed=5)

    facts = export_partition(config, open_source(config.data), tmp_path / "out", no_progress)

    assert json.loads((tmp_path / "out" / "partition.json").read_text(encoding="utf-8")) == facts
    assert facts["classes"] == list(CLASSES)
    assert facts["class_folders"] == ["Bag", "T-shirt_top", "cat_ grey"]
    assert (facts["settings"]["seed"], facts["settings"]["data.alpha"]) == (5, 1.0)
    assert (tmp_path / "out" / "classes.txt").read_text().splitlines()[2] == "cat_ grey\tcat, grey"
    with Image.open(tmp_path / "out" / "partition.png") as picture:
        assert picture.width > 300


def test_each_client_folder_has_both_parts_also_where_nothing_is_held_out(
    make_config: MakeConfig, pets: Path, tmp_path: Path
) -> None:
    config = _config(make_config, pets, **{"data.test-fraction": 1e-9})

    export_partition(config, open_source(config.data), tmp_path / "out", no_progress)

    assert all((tmp_path / "out" / f"client-{client:05d}" / "test").is_dir() for client in range(3))
    assert sum(_read_back(make_config, tmp_path / "out" / "client-00000", CLASSES).values()) > 0


def test_export_leaves_a_folder_alone_that_holds_anything(make_config: MakeConfig, pets: Path, tmp_path: Path) -> None:
    config, out = _config(make_config, pets), tmp_path / "out"
    out.mkdir()
    source = open_source(config.data)
    export_partition(config, source, out, no_progress)  # empty: fine
    before = sorted(out.rglob("*"))

    with pytest.raises(DataError, match="exists and is not an empty folder"):
        export_partition(config, source, out, no_progress)

    assert sorted(out.rglob("*")) == before


def test_export_refuses_to_write_into_the_source(make_config: MakeConfig, pets: Path) -> None:
    config = _config(make_config, pets)

    with pytest.raises(DataError, match="inside the source"):
        export_partition(config, open_source(config.data), pets / "out", no_progress)

    assert not (pets / "out").exists()


def test_export_leaves_nothing_behind_when_it_is_stopped(make_config: MakeConfig, pets: Path, tmp_path: Path) -> None:
    config, area = _config(make_config, pets), tmp_path / "area"

    def stopping(total: int, what: str) -> Callable[[int], None]:
        def advance(_: int) -> None:
            if what == "Writing images":
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        export_partition(config, open_source(config.data), area / "out", stopping)

    assert list(area.iterdir()) == []


def test_export_says_why_it_cannot_write(
    make_config: MakeConfig, pets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, area = _config(make_config, pets), tmp_path / "area"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("common.data.partitioning.export.shutil.copyfile", full)
    with pytest.raises(DataError, match=r"cannot write to .*out: No space left on device; nothing was left there"):
        export_partition(config, open_source(config.data), area / "out", no_progress)

    assert list(area.iterdir()) == []


def test_export_refuses_a_client_without_training_images(make_config: MakeConfig, pets: Path, tmp_path: Path) -> None:
    config = _config(make_config, pets, **{"data.test-fraction": 0.999})

    with pytest.raises(DataError, match=r"client \d of 3 would have no usable image to train on"):
        export_partition(config, open_source(config.data), tmp_path / "out", no_progress)

    assert not (tmp_path / "out").exists()


@given(st.lists(st.text(max_size=120), min_size=1, max_size=8, unique=True))
@settings(max_examples=80, deadline=None)
def test_folder_names_are_valid_and_different_on_every_system(classes: list[str]) -> None:
    names = folder_names(classes)

    assert len({name.casefold() for name in names}) == len(classes)
    for name in names:
        assert name == name.strip(" .")
        assert name
        assert not set(name) & set("/\\:*?\"<>|,\0\n\t$'`#")
        assert len(name.encode()) <= 100


def test_folder_names_differ_also_where_case_does_not_count() -> None:
    assert folder_names(("cat", "Cat", "cat-2", "a/b", "a:b")) == ("cat", "Cat-2", "cat-2-2", "a_b", "a_b-2")


def test_folder_names_keep_what_is_valid_and_avoid_what_windows_reserves() -> None:
    assert folder_names(("Ankle boot", "Größe 4", "..", "NUL", "aux.x")) == (
        "Ankle boot",
        "Größe 4",
        "class",
        "NUL_",
        "aux.x_",
    )


def _run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(app, ["data", "partition", *map(str, arguments)])


def test_command_writes_folders_and_says_what_every_operator_sets(pets: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"

    result = _run(pets, "--clients", "3", "--out", out, "--seed", "4", "--set", "data.max-bad-fraction=0.1")

    assert result.exit_code == 0, result.output
    assert "--set 'data.classes=Bag,T-shirt_top,cat_ grey'" in result.output
    assert "Left out: 1 files that cannot be used" in result.output
    assert "Some class names are not folder names" in result.output
    assert len(list(out.glob("client-*"))) == 3
    assert json.loads((out / "partition.json").read_text(encoding="utf-8"))["settings"]["seed"] == 4


def test_command_takes_the_number_of_natural_clients_from_the_source(pets: Path, tmp_path: Path) -> None:
    files = sorted(pets.rglob("Bild*.*"))
    rows = [f'"{file.relative_to(pets)}","{file.parts[-3]}",ward {n % 4}' for n, file in enumerate(files)]
    (pets / "all.csv").write_text("\n".join(["path,label,client", *rows]), encoding="utf-8")

    result = _run(pets / "all.csv", "--out", tmp_path / "out", "--set", "data.partitioner=natural")

    assert result.exit_code == 0, result.output
    clients = json.loads((tmp_path / "out" / "partition.json").read_text(encoding="utf-8"))["clients"]
    assert [client["name"] for client in clients] == ["ward 0", "ward 1", "ward 2", "ward 3"]


def test_command_says_a_users_mistake_on_one_screen(pets: Path, tmp_path: Path) -> None:
    result = _run(pets, "--out", tmp_path / "out", "--set", "data.partitioner=natural")

    assert result.exit_code == 2
    assert "needs a source that names the client of each image" in " ".join(result.output.split())
    assert "Traceback" not in result.output
