"""Maker of the files in this folder: what a run, a data holder, a client and a server leave on a disk.

The files that are kept were made at commit 0511c24 and must never be made anew: tests open them with the code of today.
This program stays to show how they came about. Run it from the root of the repository:

    PYTHONPATH=tests python tests/frozen/make_files.py SOME-EMPTY-FOLDER

The keys in `holder` follow from the text below and protect nothing.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
from PIL import Image

from client.setup.init_client import init_client
from common.ledger.data_holder import close_below
from common.privacy.policy import load_policy
from common.system.progress import no_progress
from server.deployment.server_folder import ServerHome, settings_text
from tests.support.ledger.frozen_files import FROZEN, RUNS, start, stopped_in_round
from tests.support.ledger.frozen_ledger import fill_ledger

POLICY = """\
max-epsilon = 8.0
delta = 1e-5
accountant = "rdp"
least-noise-multiplier = 0.5
mechanisms = ["dp-sgd", "none"]
tunings = ["head", "full"]
metrics = ["none", "private"]
units = ["image", "group"]
least-cohort = 2
accept-group-bound = true
expires = 2999-12-31
classes = ["dark", "bright"]
bundle = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
"""


def make_images(file: Path) -> None:
    """Write 64 images of two classes into one Parquet file."""
    import pyarrow as pa
    from pyarrow import parquet

    cells, labels = [], []
    for number in range(64):
        pixels = np.random.default_rng(number).integers(0, 100, (8, 8, 3)) + 120 * (number % 2)
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
        cells.append({"bytes": stream.getvalue(), "path": None})
        labels.append(("dark", "bright")[number % 2])
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    parquet.write_table(pa.table({"image": pa.array(cells, type=kind), "label": labels}), file)


def make_run(name: str, folder: Path) -> None:
    """Write the folder of a run that was stopped in its third round; pictures and paths of this machine go."""
    with stopped_in_round():
        start(name, folder)
    for picture in folder.glob("*.png"):
        picture.unlink()
    for file in ("config.toml", "summary.json"):
        text = (folder / file).read_text()
        (folder / file).write_text(text.replace(str(folder), "run"))
    # A run keeps no other path: its images are named from the folder that it was started in.
    assert not any(str(folder.parent).encode() in file.read_bytes() for file in folder.rglob("*") if file.is_file())


def make_holder(folder: Path, policy_file: Path) -> None:
    """Write the ledger of a holder, its keys, and the heads that a server has kept of it."""
    os.environ["BRACT_HOME"] = str(folder.parent)
    folder.mkdir(mode=0o700)
    for name in ("fingerprint.key", "signing.key"):
        (folder / name).write_bytes(hashlib.sha256(f"frozen {name}".encode()).digest())
        (folder / name).chmod(0o600)
    heads = fill_ledger(load_policy(policy_file))
    close_below(folder)
    lines = [json.dumps({"client": "ward-7"} | asdict(head)) + "\n" for head in heads]
    (folder / "heads-at-a-server.jsonl").write_text("".join(lines))


def make_client(folder: Path) -> None:
    """Write a client's folder with the policy that `bract client init` proposes."""
    init_client(folder, "images.parquet", path="", name="ward-7", progress=no_progress, server="fl.example.org:9443")
    file = folder / "client.toml"
    file.write_text(file.read_text().replace(str(Path("images.parquet").resolve()), "/data/images.parquet"))
    for key in folder.glob("node.*"):
        key.unlink()


def make_all(target: Path) -> None:
    """Write everything into a folder that is empty or not there yet."""
    target.mkdir(parents=True, exist_ok=True)
    os.chdir(target)
    if (FROZEN / "images.parquet").is_file():  # their bytes name the images in every ledger
        shutil.copy(FROZEN / "images.parquet", target)
    else:
        make_images(target / "images.parquet")
    (target / "policy.toml").write_text(POLICY)
    with tempfile.TemporaryDirectory() as home:
        os.environ["BRACT_HOME"] = home
        for name in RUNS:
            make_run(name, target / name)
        make_client(target / "client")
        (target / "server").mkdir()
        server = ServerHome(target / "server", "0.0.0.0", 9443, ("fl.example.org", "192.0.2.7"), 825)  # noqa: S104
        (target / "server" / "server.toml").write_text(settings_text(server))
        place = Path(home) / "own"
        place.mkdir()
        make_holder(place / "holder", target / "policy.toml")
        shutil.copytree(place / "holder", target / "holder")
        shutil.copytree(place / "heads", target / "heads")


if __name__ == "__main__":
    make_all(Path(sys.argv[1]).resolve())
