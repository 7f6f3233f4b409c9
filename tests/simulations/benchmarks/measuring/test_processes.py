"""A variant's own process: what it costs, and that nothing of it outlives a kill or an interruption.

Drives `simulations.benchmarks.measuring.measured_process`, `simulations.benchmarks.measuring.variant_process`.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from common.errors import BractError
from simulations.benchmarks.contract import Variant
from simulations.benchmarks.measuring import measured_process
from simulations.benchmarks.measuring.runner import Runner
from tests.support.paths import ROOT


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans over")
def test_cost_counts_processes_that_a_command_leaves_behind(tmp_path: Path) -> None:
    mark = tmp_path / "worked"
    work = f"""
import os, pathlib, time
while sum(os.times()[:2]) < 0.3: pass
pathlib.Path({str(mark)!r}).touch()
time.sleep(60)
"""
    leaver = f"""
import pathlib, subprocess, sys, time
subprocess.Popen([sys.executable, '-c', {work!r}], start_new_session=True)
while not pathlib.Path({str(mark)!r}).exists(): time.sleep(0.01)
"""
    command = [
        sys.executable,
        "-P",
        measured_process.__file__,
        str(tmp_path / "cost.json"),
        sys.executable,
        "-c",
        leaver,
    ]

    subprocess.run(command, check=True, timeout=30)

    assert json.loads((tmp_path / "cost.json").read_text())["cpu_seconds"] >= 0.25


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
def test_nothing_goes_on_when_the_measuring_program_is_killed(tmp_path: Path) -> None:
    work = f"""
import os, pathlib, time
pathlib.Path({str(tmp_path / "pid")!r}).write_text(str(os.getpid()))
time.sleep(60)
"""
    command = [sys.executable, "-P", measured_process.__file__, str(tmp_path / "cost.json"), sys.executable, "-c", work]
    start = f"import subprocess; subprocess.run({command!r})"
    measuring = subprocess.Popen([sys.executable, "-c", start])
    while not ((tmp_path / "pid").is_file() and (tmp_path / "pid").read_text()):
        assert measuring.poll() is None
        time.sleep(0.01)

    measuring.kill()
    measuring.wait()

    deadline = time.monotonic() + 30
    while Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{(tmp_path / 'pid').read_text()}").exists()


def test_a_variant_whose_watcher_is_killed_has_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killer.py").write_text("import os\ndef run(**_):\n    os.kill(os.getppid(), 9)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    with pytest.raises(BractError, match="kills failed"):
        Runner(tmp_path, {}).measure(Variant("kills", "killer:run"), 0)


def start_sleeper(folder: Path, command: list[str]) -> subprocess.Popen[bytes]:
    """Start a command that ends up in the module `sleeper`, and return when that and its daemon sleep."""
    part, pids, sleep = str(folder / "part"), str(folder / "pids"), "import time; time.sleep(60)"
    (folder / "sleeper.py").write_text(f"""
import os, pathlib, subprocess, sys, tempfile, time
def run(**_):
    tempfile.mkdtemp(prefix='left-')
    daemon = subprocess.Popen([sys.executable, '-c', {sleep!r}], start_new_session=True)
    # Renamed so that whoever reads finds both.
    pathlib.Path({part!r}).write_text(f'{{os.getpid()}} {{daemon.pid}}')
    os.rename({part!r}, {pids!r})
    time.sleep(60)
""")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(folder))), "TMPDIR": str(folder)}
    process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    while not (folder / "pids").is_file():
        assert process.poll() is None
        time.sleep(0.01)
    return process


def still_asleep(folder: Path) -> list[str]:
    return [pid for pid in (folder / "pids").read_text().split() if Path("/proc", pid).exists()]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans over")
def test_an_interruption_ends_variants_and_their_daemons(tmp_path: Path) -> None:
    code = f"""
import pathlib, signal, tempfile
from simulations.benchmarks.contract import Variant
from simulations.benchmarks.measuring.runner import Runner
# Tests may run where interrupts are ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
with tempfile.TemporaryDirectory(prefix="bract-bench-", dir={str(tmp_path)!r}) as folder:
    Runner(pathlib.Path(folder), {{}}).measure(Variant("sleeps", "sleeper:run"), 0)
"""
    measuring = start_sleeper(tmp_path, [sys.executable, "-c", code])

    measuring.send_signal(signal.SIGINT)
    measuring.wait(30)

    # Without a wait: the measuring program ends after all that it started.
    assert still_asleep(tmp_path) == []
    # Nor do the temporary files of what was stopped stay, as Ray's would.
    assert not [*tmp_path.glob("bract-bench-*"), *tmp_path.glob("left-*")]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux hands orphans over")
def test_more_signals_do_not_keep_a_daemon_alive(tmp_path: Path) -> None:
    call = [sys.executable, "-c", "import sleeper; sleeper.run()"]
    command = [sys.executable, "-P", measured_process.__file__, str(tmp_path / "cost.json"), *call]
    watcher = start_sleeper(tmp_path, command)

    while watcher.poll() is None:
        watcher.send_signal(signal.SIGTERM)

    assert still_asleep(tmp_path) == []
