"""A run that was stopped goes on in its own folder, as if nobody had stopped it."""

import json
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from safetensors.numpy import load_file
from typer.testing import CliRunner

from bract import app
from common.config.loading import Scalar
from common.config.schema import RunConfig
from common.data.preprocessing import Prepared
from common.errors import LedgerError
from common.ledger.audit.read_only import open_read_only
from common.ledger.hash_chain import Entry
from server import federation
from server.audit.audit import audit_run
from server.state.checkpoint import CHECKPOINT
from server.state.run_directory import RUN_ID
from simulations.simulate import run_job
from tests.support.network.kills import KILLED_AFTER_ENROLLMENT
from tests.support.network.kills import start as start_program

MakeConfig = Callable[..., RunConfig]
QUIET = Console(quiet=True)
OPEN: dict[str, Scalar] = {"privacy.mechanism": "none", "num-rounds": 5}
STOP_AFTER = 2


def entries_of(file: Path) -> list[Entry]:
    with open_read_only(file) as ledger:
        return ledger.entries()


def kinds_of(entries: Sequence[Entry]) -> list[str]:
    return [entry.kind for entry in entries]


@pytest.fixture
def start(tmp_path: Path, make_config: MakeConfig, digits: Prepared) -> Callable[..., tuple[dict[str, Any], Path]]:
    def run(name: str, settings: dict[str, Scalar], **more: Scalar) -> tuple[dict[str, Any], Path]:
        config = make_config(settings | {"output-dir": str(tmp_path / name)} | more)
        return run_job(config, engine="in-process", baselines=False, console=QUIET)

    return run


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """Ctrl-C inside of the round after so many, for the run that is started in its block."""

    def patched() -> Any:
        genuine = federation.run_rounds

        def interrupted(*args: Any, **more: Any) -> Any:
            for result in genuine(*args, **more):
                if result.record.server_round > STOP_AFTER:
                    raise KeyboardInterrupt
                yield result

        context = monkeypatch.context()
        context.__enter__().setattr(federation, "run_rounds", interrupted)
        return context

    return patched


def lines(folder: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (folder / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "seconds" not in key} for line in found]


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy.name": "FedAdam"},
        {"strategy.name": "FedAvgM", "strategy.server-momentum": 0.5, "stopping.keep": "best"},
        {"client-fraction": 0.6, "stopping.patience": 2, "training.update-bits": 8},
    ],
    ids=["FedAdam", "FedAvgM-best", "cohorts-patience-8-bits"],
)
def test_a_stopped_run_ends_with_the_same_bytes(
    start: Callable[..., tuple[dict[str, Any], Path]], stop: Callable[[], Any], settings: dict[str, Scalar]
) -> None:
    _, whole = start("whole", OPEN | settings)
    context = stop()
    summary, folder = start("stopped", OPEN | settings)
    context.__exit__(None, None, None)
    assert (summary["status"], summary["rounds"]) == ("interrupted", STOP_AFTER)

    resumed, _ = start("stopped", OPEN | settings, resume=True)

    assert resumed["status"] == "complete"
    assert lines(folder) == lines(whole)
    one, other = (load_file(place / "model" / "model.safetensors") for place in (whole, folder))
    assert {name: array.tobytes() for name, array in one.items()} == {n: a.tobytes() for n, a in other.items()}


@pytest.mark.parametrize(("weights", "counted"), [("", 0), ("balanced", 1)])
def test_a_stopped_private_run_goes_on_with_fresh_noise_and_one_budget(
    start: Callable[..., tuple[dict[str, Any], Path]], stop: Callable[[], Any], weights: str, counted: int
) -> None:
    settings: dict[str, Scalar] = {"num-rounds": 4, "training.class-weights": weights}
    context = stop()
    start("stopped", settings)
    context.__exit__(None, None, None)

    summary, folder = start("stopped", settings, resume=True)

    assert (summary["status"], summary["rounds"]) == ("complete", 4)
    assert 7.5 < summary["epsilon_max"] <= 8.0
    report = audit_run(folder)
    assert (report.verdict, report.remarks.doubts) == ("verified", [])
    assert {client.reserved for client in report.clients.values()} == {4}
    # The rounds after the stop weigh by the counts from before it.
    for file in (folder / "ledgers").glob("*.sqlite"):
        assert sum(entry.event.get("release") == "labels" for entry in entries_of(file)) == 2 * counted


def fail_before_checkpoint(start: Callable[..., Any], settings: dict[str, Scalar], _: Path) -> None:
    def fail(*_: object) -> None:
        raise LedgerError("the disk is full")

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(federation._Run, "_save_registration", fail)
        with pytest.raises(LedgerError, match="full"):
            start("killed", settings)


def kill_before_checkpoint(_: Callable[..., Any], settings: dict[str, Scalar], folder: Path) -> None:
    options = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    process = start_program(KILLED_AFTER_ENROLLMENT, ["--out", str(folder), *options])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, errors


@pytest.mark.parametrize("die", [fail_before_checkpoint, pytest.param(kill_before_checkpoint, marks=pytest.mark.slow)])
def test_a_run_that_dies_between_enrollment_and_its_first_checkpoint_is_agreed_to_once(
    start: Callable[..., tuple[dict[str, Any], Path]], tmp_path: Path, die: Callable[..., None]
) -> None:
    folder = tmp_path / "killed"
    settings: dict[str, Scalar] = {"num-rounds": 2, "training.local-epochs": 1, "system.ledger": "durable"}
    die(start, settings, folder)
    assert not (folder / CHECKPOINT).exists()
    before = {file: entries_of(file) for file in sorted((folder / "ledgers").glob("*.sqlite"))}
    assert list(map(kinds_of, before.values())) == [["genesis", "register"]] * 5

    summary, _ = start("killed", settings, resume=True)

    assert (summary["status"], summary["rounds"]) == ("complete", 2)
    run = (folder / RUN_ID).read_text().strip()
    for file, entries in before.items():
        now = entries_of(file)
        # The same registration under the same request id: nothing was registered or charged a second time.
        assert now[:2] == entries
        assert kinds_of(now).count("register") == 1
        assert {entry.event["run"] for entry in now[1:]} == {run}
    assert audit_run(folder).remarks.doubts == []


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["--resume", "{empty}"], "config.toml"),
        (["--resume", "{done}"], "complete"),
        (["--resume", "{done}", "--set", "num-rounds=9"], "leave --set"),
        (["--resume", "{done}", "--class", "cat"], "--class, --config, --out and --seed out; only data that moved"),
        (["--resume", "{done}", "--seed", "3"], "leave --set"),
    ],
)
def test_resume_explains_what_it_cannot_do_and_changes_nothing(
    start: Callable[..., tuple[dict[str, Any], Path]], tmp_path: Path, arguments: list[str], fragment: str
) -> None:
    _, done = start("done", {"privacy.mechanism": "none", "num-rounds": 1})
    (tmp_path / "empty").mkdir()
    before = {file: file.read_bytes() for file in done.rglob("*") if file.is_file()}

    places = {"empty": tmp_path / "empty", "done": done}
    result = CliRunner().invoke(app, ["simulate", *(argument.format(**places) for argument in arguments)])

    assert result.exit_code == 2
    assert "".join(fragment.split()) in "".join(result.output.split())  # however the terminal breaks its lines
    assert "Traceback" not in result.output
    assert {file: file.read_bytes() for file in done.rglob("*") if file.is_file()} == before


def test_resume_with_an_edited_configuration_is_refused_before_any_client_is_asked(
    start: Callable[..., tuple[dict[str, Any], Path]], stop: Callable[[], Any]
) -> None:
    context = stop()
    _, folder = start("stopped", {"num-rounds": 3, "training.local-epochs": 1})
    context.__exit__(None, None, None)
    text = (folder / "config.toml").read_text()
    (folder / "config.toml").write_text(text.replace("num-rounds = 3", "num-rounds = 4"))
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}

    result = CliRunner().invoke(app, ["simulate", "--resume", str(folder)])

    assert result.exit_code == 2
    assert "settings are not those" in result.output
    # Heads are kept of every reply, and a client that meets a run charges its plan: nobody was asked.
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
