"""Files and folders that are closed to a user: one line that names them, exit code 2, and nothing is computed.

Drives `common.system.paths`.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from datasets import Dataset, Image

from tests.support.data.sources import write_png
from tests.support.ordinary_user import Done, OrdinaryUser, ordinary_user

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="file modes are those of Unix")
READ, CLOSED, LIST_ONLY, ENTER_ONLY = 0o500, 0o000, 0o400, 0o100
TEXT = ("cat/ann/0.png", "cat/ben/1.png", "dog/cem/2.png", "dog/dan/3.png")
SMALL = ("--set", "model.backbone=cnn", "--set", "num-rounds=1", "--set", "num-clients=2")


@pytest.fixture(scope="module")
def user() -> Iterator[OrdinaryUser]:
    """An ordinary user of this machine."""
    with ordinary_user() as process:
        yield process


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, user: OrdinaryUser) -> Path:
    """A machine with images, a table of them, a client, a server and a finished run."""
    root = tmp_path_factory.mktemp("machine")
    for folder in ("pets", "table"):
        for shade, name in enumerate(TEXT):
            write_png(root / folder / name, 40 * shade)
    (root / "table" / "t.csv").write_text("path,label\n" + "".join(f"{name},{name[:3]}\n" for name in TEXT))
    rows = Dataset.from_dict(
        {"img": [str(root / "pets" / name) for name in TEXT], "label": ["cat", "cat", "dog", "dog"]}
    )
    rows.cast_column("img", Image()).save_to_disk(str(root / "saved"))
    (root / "shards").mkdir()
    rows.cast_column("img", Image()).to_parquet(str(root / "shards" / "train.parquet"))
    for folder in ("home", "work", "out", "bare", "fresh/cache/scans"):
        (root / folder).mkdir(parents=True)
    (root / "fresh" / "cache" / "scans" / "s.npz").touch()
    commands: Sequence[tuple[str | Path, ...]] = (
        ("client", "init", root / "ward", "--data", root / "pets"),
        ("server", "init", root / "server", "--name", "localhost", "--port", "19321"),
        ("simulate", "-q", *SMALL, "--set", f"data.source={root / 'pets'}", "--out", root / "run"),
    )
    for command in commands:
        done = user.run(*command, home=root / "home", folder=root / "work")
        assert done.exit_code == 0, done.output + done.exception
    return root


@contextmanager
def _closed(file: Path, mode: int) -> Iterator[None]:
    before = file.stat().st_mode
    file.chmod(mode)
    try:
        yield
    finally:
        file.chmod(before)


def _run(user: OrdinaryUser, place: Path, command: str, *, home: str = "home") -> Done:
    """Run a command in which {} stands for the machine's folder."""
    words = [word.replace("{}", str(place)) for word in command.split()]
    return user.run(*words, home=place / home, folder=place / "work")


def _assert_one_line(done: Done, named: Path) -> None:
    assert (done.exit_code, done.exception) == (2, ""), done.output + done.exception
    # An option that is no readable path is refused in a box, which may break the line.
    flat = "".join(line.strip(" │╭╮╰╯─\n") for line in done.output.splitlines())
    assert str(named) in flat
    assert "Traceback" not in done.output
    assert len([line for line in done.output.splitlines() if line.strip()]) == 1 or "│" in done.output


SMALL_WORDS = " ".join(SMALL)
OWN = f"{SMALL_WORDS} --set data.source={{}}/pets"
READERS = {
    "inspect": "data inspect {}/SOURCE",
    "dry run": f"simulate --dry-run {SMALL_WORDS} --set data.source={{}}/SOURCE",
    "simulate": f"simulate {SMALL_WORDS} --set data.source={{}}/SOURCE --out {{}}/out/run",
    "plan": "plan --set data.source={}/SOURCE",
    "partition": "data partition {}/SOURCE --clients 2 --out {}/out/parts",
    "init": "client init {}/out/ward --data {}/SOURCE",
    "layers": "audit layers --set data.source={}/SOURCE",
}


@pytest.mark.parametrize("command", [READERS["inspect"], READERS["dry run"], "predict {}/run {}/SOURCE"])
@pytest.mark.parametrize("closed", ["saved/data-00000-of-00001.arrow", "shards/train.parquet", "saved", "shards"])
def test_closed_files_of_a_data_set_are_named(user: OrdinaryUser, place: Path, command: str, closed: str) -> None:
    with _closed(place / closed, CLOSED):
        done = _run(user, place, command.replace("SOURCE", closed.partition("/")[0]))

    _assert_one_line(done, place / closed)


@pytest.mark.parametrize("command", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("source", "closed", "mode", "named"),
    [
        ("pets", "pets", CLOSED, "pets"),
        ("pets", "pets", LIST_ONLY, "pets"),
        ("pets", "pets/cat", CLOSED, "pets/cat"),
        ("pets", "pets/cat", LIST_ONLY, "pets/cat"),
        ("pets", "pets/cat", ENTER_ONLY, "pets/cat"),
        ("pets", "pets/cat/ann", CLOSED, "pets/cat/ann"),
        ("pets", "pets/cat/ann/0.png", CLOSED, "pets/cat/ann/0.png"),
        ("pets/cat/ann", "pets/cat", CLOSED, "pets/cat"),
        ("table/t.csv", "table/t.csv", CLOSED, "table/t.csv"),
        ("table/t.csv", "table", CLOSED, "table"),
        ("table/t.csv", "table/dog", CLOSED, "table/dog"),
        ("table/t.csv", "table/dog/cem", CLOSED, "table/dog/cem"),
        ("table/t.csv", "table/dog/cem/2.png", CLOSED, "table/dog/cem/2.png"),
    ],
)
def test_closed_images_are_named_before_anything_is_computed(
    user: OrdinaryUser, place: Path, command: str, source: str, closed: str, mode: int, named: str
) -> None:
    with _closed(place / closed, mode):
        done = _run(user, place, command.replace("SOURCE", source))

    _assert_one_line(done, place / named)
    assert not any((place / "out").iterdir())


@pytest.mark.parametrize("command", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    ("home", "closed", "mode"),
    [
        ("bare/.bract", "bare", READ),
        ("bare", "bare", READ),
        ("fresh", "fresh", CLOSED),
        ("fresh", "fresh/cache", READ),
        ("fresh", "fresh/cache/scans", CLOSED),
        ("fresh", "fresh/cache/scans/s.npz", CLOSED),
    ],
)
def test_closed_cache_is_named_before_anything_is_computed(
    user: OrdinaryUser, place: Path, command: str, home: str, closed: str, mode: int
) -> None:
    with _closed(place / closed, mode):
        done = _run(user, place, command.replace("SOURCE", "pets"), home=home)

    _assert_one_line(done, place / closed)
    assert not any((place / "out").iterdir())


def test_home_that_is_a_file_is_refused(user: OrdinaryUser, place: Path) -> None:
    for command in READERS.values():
        _assert_one_line(
            _run(user, place, command.replace("SOURCE", "pets"), home="table/t.csv"), place / "table/t.csv"
        )


@pytest.mark.parametrize(
    ("command", "closed", "mode", "named"),
    [
        (f"simulate {OWN} --out {{}}/out/x", "out", READ, "out"),
        (f"simulate {OWN} --out {{}}/out/x", "out", CLOSED, "out"),
        (f"simulate {OWN} --out {{}}/out", "out", CLOSED, "out"),
        (f"simulate {OWN}", "work", READ, "work"),
        (f"simulate --dry-run {OWN} --out {{}}/out/x", "out", READ, "out"),
        (f"simulate --dry-run {OWN}", "work", READ, "work"),
        ("data partition {}/pets --clients 2 --out {}/out/x", "out", READ, "out"),
        ("data partition {}/pets --clients 2 --out {}/out/x/y", "out", CLOSED, "out"),
        ("data inspect {}/pets --out {}/out/x.png", "out", READ, "out/x.png"),
        ("data inspect {}/pets --out {}/out/x.png", "out", CLOSED, "out/x.png"),
        ("plan --sizes 10,20 --plot {}/out/x.png", "out", READ, "out/x.png"),
        ("predict {}/run {}/none --csv {}/out/x.csv", "out", READ, "out/x.csv"),
        ("predict {}/run {}/none --parquet {}/out/x.parquet", "out", READ, "out/x.parquet"),
        ("export {}/run --out {}/out/x.onnx", "out", READ, "out/x.onnx"),
        ("evaluate {}/run {}/none --out {}/out/x.png", "out", READ, "out/x.png"),
        ("client init {}/out/ward --data {}/pets", "out", READ, "out/ward"),
        ("client init {}/out/ward --data {}/pets", "out", CLOSED, "out/ward"),
        ("client init {}/out/ward --data {}/pets", "home/holder", CLOSED, "home/holder"),
        (
            "client init {}/out/ward --data {}/pets --authority {}/server/ca.pem",
            "server/ca.pem",
            CLOSED,
            "server/ca.pem",
        ),
        ("client start {}/ward", "ward", CLOSED, "ward"),
        ("client start {}/ward", "ward/client.toml", CLOSED, "ward/client.toml"),
        ("client start {}/ward", "ward/policy.toml", CLOSED, "ward/policy.toml"),
        ("client check {}/ward", "ward", CLOSED, "ward"),
        ("client status {}/ward", "ward/client.toml", CLOSED, "ward/client.toml"),
        ("client status {}/ward", "ward/policy.toml", CLOSED, "ward/policy.toml"),
        ("client status {}/ward", "home/holder", CLOSED, "home/holder"),
        ("client review {}/ward", "ward/policy.toml", CLOSED, "ward/policy.toml"),
        ("server init {}/out/s", "out", READ, "out/s"),
        ("server init {}/out/s", "out", CLOSED, "out/s"),
        ("server init {}/server --renew", "server/ca.key", CLOSED, "server/ca.key"),
        ("server init {}/server --renew", "server/server.toml", CLOSED, "server/server.toml"),
        ("server start {}/server", "server/server.toml", CLOSED, "server/server.toml"),
        ("server list --server {}/server", "server/clients", CLOSED, "server/clients"),
        ("server admit {}/ward/node.pub --server {}/server", "ward/node.pub", CLOSED, "ward/node.pub"),
        ("server bundle {}/out/b.fab", "out", READ, "out/b.fab"),
        ("run {}/server --set data.classes=a,b", "server/ca.pem", CLOSED, "server/ca.pem"),
        ("simulate --resume {}/run", "run", CLOSED, "run"),
        ("simulate --resume {}/run", "run/config.toml", CLOSED, "run/config.toml"),
        ("simulate --resume {}/run", "run/checkpoint.safetensors", CLOSED, "run/checkpoint.safetensors"),
        ("simulate --dry-run --config {}/run/config.toml", "run/config.toml", CLOSED, "run/config.toml"),
        ("audit run {}/run", "run/privacy.json", CLOSED, "run/privacy.json"),
        ("audit run {}/run", "run/config.toml", CLOSED, "run/config.toml"),
        ("audit ledger {}/run/ledgers/00000.sqlite", "run/ledgers", CLOSED, "run/ledgers/00000.sqlite"),
        ("audit inversion --set num-clients=2 --set data.source={}/pets --out {}/out/x.png", "out", READ, "out/x.png"),
        ("audit membership --set num-clients=2 --set data.source={}/pets --out {}/out/x", "out", READ, "out"),
        ("audit empirical --set num-clients=2 --set data.source={}/pets --out {}/out/x", "out", READ, "out"),
        ("cache list", "home", CLOSED, "home"),
        ("cache list", "home/cache", CLOSED, "home/cache"),
        ("cache list", "home/cache/scans", CLOSED, "home/cache/scans"),
        ("cache clear -y", "home/cache", READ, "home/cache"),
    ],
)
def test_closed_file_of_a_command_is_named(
    user: OrdinaryUser, place: Path, command: str, closed: str, mode: int, named: str
) -> None:
    with _closed(place / closed, mode):
        done = _run(user, place, command)

    _assert_one_line(done, place / named)


def test_doctor_names_a_closed_folder_as_a_finding(user: OrdinaryUser, place: Path) -> None:
    for closed in ("pets/cat/ann", "home/cache/scans", "ward/policy.toml", "ward/node.key"):
        with _closed(place / closed, CLOSED):
            done = _run(user, place, "client check --json {}/ward")

        assert (done.exit_code, done.exception) == (1, ""), done.output
        assert str(place / closed) in done.output
        assert '"FAIL"' in done.output


def test_rights_of_this_user_are_those_of_the_modes(user: OrdinaryUser, place: Path) -> None:
    assert os.access(place / "pets", os.R_OK)
    assert _run(user, place, "data inspect {}/pets").exit_code == 0
    assert _run(user, place, "cache list").exit_code == 0
