"""Real trackers: what is read back with each library is what the run's files say, and nothing of this machine.

Drives `server.reporting.tracking.tensorboard_connection`, `server.reporting.tracking.mlflow_connection`,
`server.reporting.tracking.wandb_connection`, `server.commands.track_option`.
"""

import getpass
import json
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from server.reporting.tracking.tracked_run import TRACKED

# MLflow's own use of SQLAlchemy warns.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::DeprecationWarning")]
SETTINGS = ["num-rounds=3", "num-clients=2", "data.partitioner=iid"]
CNN = ["model.backbone=cnn", "data.image-size=8"]
# Clients of cached features use no torch, which TensorBoard's package imports.
FEATURES = ["model.backbone=efficientnet_lite0", "data.image-size=32"]
Read = tuple[dict[int, float], str]


def read_tensorboard(run: Path) -> Read:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    (settings,) = events.Tensors("settings/text_summary")
    assert events.Images("curves")
    assert [file.suffix for file in (run / "tensorboard").iterdir()] == [".bract"], "a new file's name holds the host's"
    return {one.step: one.value for one in events.Scalars("accuracy")}, settings.tensor_proto.string_val[0].decode()


def read_mlflow(run: Path) -> Read:
    from mlflow import MlflowClient

    client, name = MlflowClient(), json.loads((run / TRACKED).read_text())["mlflow"]["id"]
    found = client.get_run(name)
    assert found.info.status == "FINISHED"
    assert {file.path for file in client.list_artifacts(name)} == {"curves.png", "confusion.png"}
    values = {one.step: one.value for one in client.get_metric_history(name, "accuracy")}
    return values, json.dumps(found.data.params | found.data.tags) + str(found.info.user_id)


def records(content: bytes) -> Iterator[bytes]:
    """Yield the records of a LevelDB log after wandb's header of 7 bytes."""
    block, header, at, part = 32768, 7, 7, b""
    while at + header <= len(content):
        if block - at % block < header:
            at += block - at % block
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        part += content[at + header : at + header + length]
        at += header + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield part
            part = b""


def read_wandb(run: Path) -> Read:
    from wandb.proto.wandb_internal_pb2 import Record

    (file,) = (run / "wandb").glob("offline-run-*/*.wandb")
    read, values = [Record.FromString(content) for content in records(file.read_bytes())], {}
    for record in read:
        items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
        if "accuracy" in items:
            values[items["_step"]] = items["accuracy"]
    return values, "\n".join(str(record) for record in read)


@pytest.mark.parametrize(
    ("name", "model", "read"),
    [("tensorboard", FEATURES, read_tensorboard), ("mlflow", CNN, read_mlflow), ("wandb", CNN, read_wandb)],
)
def test_a_tracker_has_the_figures_of_the_run_and_nothing_of_this_machine(
    name: str,
    model: list[str],
    read: Callable[[Path], Read],
    tmp_path: Path,
    own_home: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = tmp_path / "run"
    options = [word for pair in (*SETTINGS, *model, "privacy.mechanism=none") for word in ("--set", pair)]

    command = [sys.executable, "-m", "bract", "simulate", *options, "--out", str(run), "--track", name]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert result.returncode == 0, result.stderr
    assert f"Tracked  {name}: " in result.stdout, result.stdout
    assert json.loads((run / "summary.json").read_text())["failures"] == 0
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    values, said = read(run)
    assert values == pytest.approx({line["round"]: line["accuracy"] for line in lines}, abs=1e-6)
    assert "model.backbone" in said
    for secret in (str(tmp_path), str(own_home), socket.gethostname(), (run / "run-id.txt").read_text().strip()):
        assert secret not in said, f"{name} got {secret}"
    assert not {word for word in said.split() if word == getpass.getuser()}
