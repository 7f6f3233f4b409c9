"""Only the pinned bundle runs, exactly as it was digested, and nothing of the installed Bract in its place.

Drives `client.runtime.bundle_import`, `client.runtime.supernode_api`, `client.runtime.task`,
`client.runtime.task_protocol`.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from client.status.activity import read_activity
from common.errors import ClientFailure
from common.ledger.data_holder import own_holder
from common.system.app_bundle import bundle_digest, write_files
from tests.support.clients.own_clients import POLICY, OwnClient, write_images
from tests.support.clients.supernode_lab import Runtime, launched, runtime, saying, zipped

Launch = Callable[[Path], object]


@pytest.fixture
def bed() -> Iterator[Runtime]:
    with runtime() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A client's folder, of a holder of its own."""
    monkeypatch.setenv("BRACT_HOME", str(tmp_path / "home"))
    return OwnClient(tmp_path, write_images(tmp_path / "images", range(10)), name="ward-7").folder


def pin(folder: Path, bundle: bytes | None, policy: str = POLICY) -> None:
    digest = bundle_digest(bundle) if bundle else ""
    (folder / "policy.toml").write_text(f'{policy}bundle = "{digest}"\n')


def code_of(bed: Runtime) -> str:
    reply = bed.reply()
    return str(reply.error.reason) if reply.has_error() else str(reply.content["said"]["what"])


def refusals() -> list[str]:
    with own_holder().open_session() as session:
        return [entry.event["why"] for entry in session.ledger.entries("kind = ?", ("refuse",))]


def test_a_bundle_that_is_not_pinned_is_refused_and_nothing_of_it_is_run(
    bed: Runtime, folder: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "mark"
    pinned, sent = zipped(saying("'pinned'")), zipped(saying("'sent'", f"open({str(mark)!r}, 'w').close()"))
    pin(folder, pinned)

    with launched(folder, bed, os.environ):
        bed.offer(sent, group="3")
        reply = bed.reply()
        # The launcher's page for the holder follows the reply.
        deadline = time.monotonic() + 60
        while not ((activity := read_activity(folder)) and activity.done):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert [(task.label, task.remark) for task in activity.done] == [("round 3, query", "BUNDLE")]
        assert activity.task == ""

    assert (reply.error.code, reply.error.reason) == (1008, "BUNDLE")
    assert not mark.exists()
    assert not (folder / "bundles").exists()
    (noted,) = refusals()
    assert bundle_digest(sent) in noted
    assert bundle_digest(pinned) in noted


def test_the_pinned_bundle_runs_and_not_the_installed_code(bed: Runtime, folder: Path) -> None:
    own = {"common/__init__.py": b"", "common/answer.py": b"WHAT = 'bundle'"}
    bundle = zipped(saying("common.answer.WHAT", "import common.answer") | own)
    pin(folder, bundle)

    with launched(folder, bed, os.environ):
        bed.offer(bundle)
        assert code_of(bed) == "bundle"
        bed.offer(bundle)
        assert code_of(bed) == "bundle"  # now from a folder that is there

    assert refusals() == []
    assert (folder / "bundles" / bundle_digest(bundle) / "client" / "app.py").is_file()


def test_a_process_is_started_anew_where_forking_is_not_safe(bed: Runtime, folder: Path) -> None:
    how = "multiprocessing.current_process().__class__.__name__"
    bundle = zipped(saying(how, "import multiprocessing"))
    pin(folder, bundle)

    with launched(folder, bed, os.environ, threaded=True):
        bed.offer(bundle)
        assert code_of(bed) == "SpawnProcess"
    with launched(folder, bed, os.environ):
        bed.offer(bundle)
        assert code_of(bed) == "ForkProcess"


def test_what_the_bundle_lacks_is_not_taken_from_the_installed_code(bed: Runtime, folder: Path) -> None:
    lacking = "try:\n    import common.errors\n    had = 'had'\nexcept ImportError:\n    had = 'lacked'\n"
    bundle = zipped(saying("had", lacking))
    pin(folder, bundle)

    with launched(folder, bed, os.environ):
        bed.offer(bundle)
        assert code_of(bed) == "lacked"


@pytest.mark.parametrize("how", ["changed", "added", "compiled", "link"])
def test_a_folder_that_was_tampered_with_is_not_run(bed: Runtime, folder: Path, tmp_path: Path, how: str) -> None:
    files = saying("what", "try:\n    from client.planted import what\nexcept ImportError:\n    what = 'digested'\n")
    bundle, mine = zipped(files), "what = 'planted'\n"
    pin(folder, bundle)
    place = write_files(files, folder / "bundles" / bundle_digest(bundle))
    if how == "changed":
        (place / "client" / "app.py").write_bytes(saying("'planted'")["client/app.py"])
    elif how == "added":
        (place / "client" / "planted.py").write_text(mine)
    elif how == "compiled":
        (place / "client" / "planted.py").write_text(mine)
        subprocess.run([sys.executable, "-m", "compileall", "-q", "-b", str(place / "client")], check=True)
        (place / "client" / "planted.py").unlink()
    else:
        place.rename(tmp_path / "elsewhere")
        place.symlink_to(tmp_path / "elsewhere")

    with launched(folder, bed, os.environ):
        bed.offer(bundle)
        assert code_of(bed) == "digested"

    assert not place.is_symlink()
    assert sorted(path.name for path in (place / "client").iterdir()) == ["__init__.py", "app.py"]


def test_the_nodes_configuration_comes_from_the_launcher(bed: Runtime, folder: Path) -> None:
    bundle = zipped(saying("str(dict(context.node_config))"))
    pin(folder, bundle)

    with launched(folder, bed, os.environ):
        bed.offer(bundle)
        said = code_of(bed)

    assert said == str({"bract-client": str(folder), "bract-bundle": bundle_digest(bundle)})


def test_an_unpinned_bundle_is_refused_under_dp_and_runs_without(bed: Runtime, folder: Path) -> None:
    bundle = zipped(saying("'ran'"))
    pin(folder, None)

    with launched(folder, bed, os.environ):
        bed.offer(bundle)
        refused = code_of(bed)
        pin(folder, None, POLICY + 'mechanisms = ["none"]\n')  # the policy counts as it is now
        bed.offer(bundle)
        ran = code_of(bed)

    assert (refused, ran) == ("BUNDLE", "ran")
    assert ["allows dp-sgd but pins no code" in why for why in refusals()] == [True]


@pytest.mark.parametrize(
    ("before", "what", "failure"),
    [
        ("raise ValueError('patient-4711')", "1", "INTERNAL"),
        ("raise SystemExit(3)", "1", "INTERNAL"),
        ("", "1 / 0", "INTERNAL"),
        ("del app\nclass Fake:\n    query = lambda self: lambda f: f\napp = Fake()", "1", "BUNDLE"),
    ],
)
def test_what_goes_wrong_in_a_bundle_is_a_code_and_nothing_else(
    bed: Runtime, folder: Path, before: str, what: str, failure: str
) -> None:
    bundle = zipped(saying(what, before))
    pin(folder, bundle)

    with launched(folder, bed, os.environ):
        bed.offer(bundle)
        reply = bed.reply()

    assert reply.error.reason == failure
    assert "patient" not in repr(reply)


def test_a_message_that_is_too_large_is_refused_before_it_is_whole(bed: Runtime, folder: Path) -> None:
    bundle = zipped(saying("'ran'"))
    pin(folder, bundle)
    large = RecordDict({"arrays": ArrayRecord({"a": Array(np.zeros(400_000, dtype=np.uint8))})})

    with launched(folder, bed, os.environ, max_bytes=300_000):
        bed.offer(bundle, content=large)
        assert code_of(bed) == "MESSAGE"
        bed.offer(bundle)
        assert code_of(bed) == "ran"


def test_a_process_that_dies_is_answered_for_at_once(bed: Runtime, folder: Path) -> None:
    bundle = zipped(saying("os.kill(os.getpid(), 9)", "import os"))
    pin(folder, bundle)

    with launched(folder, bed, os.environ):
        bed.offer(bundle, group="2")
        reply = bed.reply()  # long before the SuperNode would give up on it

    assert reply.error.code == ClientFailure.INTERNAL
    assert "round 2, query: its process ended without an answer" in (folder / "told.log").read_text()


def test_a_task_ends_with_its_launcher(bed: Runtime, folder: Path, tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    slow = f"import os, pathlib, time\npathlib.Path({str(mark)!r}).write_text(str(os.getpid()))\ntime.sleep(600)\n"
    bundle = zipped(saying("1", slow))
    pin(folder, bundle)

    with launched(folder, bed, os.environ) as launcher:
        bed.offer(bundle)
        until(lambda: mark.is_file() and mark.read_text() != "")
        launcher.kill()
        launcher.wait()
        task = int(mark.read_text())
        until(lambda: not is_alive(task))


def until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    state = Path(f"/proc/{process}/stat")
    return state.is_file() and state.read_text().rpartition(")")[2].split()[0] != "Z"


def test_the_launcher_loads_nothing_heavy() -> None:
    heavy = {"torch", "torchvision", "timm", "datasets", "opacus", "sklearn", "ray", "matplotlib", "pandas"}
    code = (
        "import sys, threading\nimport client.runtime.start\n"
        f"print(sorted({heavy!r} & set(sys.modules)), threading.active_count())\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[] 1"
