"""Tasks of real clients that run other code than the pinned one, or under another client's name."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from client.client_config import BUNDLE_KEY, NODE_KEY
from client.runtime import bundle_import, task
from common.errors import BundleError
from common.ledger.data_holder import own_holder
from common.system import app_bundle
from common.system.app_bundle import files_digest, holds_exactly, write_files
from tests.mutants.faults import planted
from tests.support.clients.own_clients import POLICY, OwnClient, write_images
from tests.support.clients.supernode_lab import zipped

FILES = {"client/app.py": b"app = 1\n", "pyproject.toml": b""}
OTHER = FILES | {"client/app.py": b"app = 2\n"}


class _Asked:
    """A task that a SuperNode brings, with a configuration that another process may have changed."""

    def __init__(self, bundle: bytes) -> None:
        self.bundle, self.kind, self.round, self.run = bundle, "train", 1, 7
        self.context = SimpleNamespace(node_config={"partition-id": 0, "bract-simulation": True, NODE_KEY: "elsewhere"})
        self.ignored = 0

    def message(self, *, max_bytes: int) -> Message:
        assert max_bytes == task.MAX_MESSAGE_BYTES
        return Message(RecordDict(), 2, "train")

    def ignore(self, *, max_bytes: int) -> None:
        self.ignored += 1


def a_task_runs_the_pinned_bundle_alone(tmp_path: Path, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, ran = files_digest(FILES), list[Any]()
    client = OwnClient(tmp_path, write_images(tmp_path / "images", range(2)), POLICY + f'bundle = "{digest}"\n')
    folder, report = client.folder, SimpleNamespace(round=lambda _: None)
    unpacked = folder / "bundles" / digest
    monkeypatch.setattr(
        task, "load_app", lambda files, _: lambda message, context: ran.append((dict(files), context.node_config))
    )

    def run(files: dict[str, bytes]) -> _Asked:
        asked = _Asked(zipped(files))
        task._answer(folder, asked, report)  # type: ignore[arg-type]
        return asked

    for _ in range(2):
        run(FILES)
    assert ran == [(FILES, {NODE_KEY: str(folder), BUNDLE_KEY: digest})] * 2
    (unpacked / "client" / "app.py").write_bytes(b"app = 3\n")
    run(FILES)
    assert holds_exactly(unpacked, FILES), "what was changed since is written again"
    with pytest.raises(BundleError, match="the policy pins"):
        run(OTHER)
    (folder / "policy.toml").write_text(POLICY)
    with pytest.raises(BundleError, match="pins no code"):
        run(FILES)
    assert len(ran) == 3
    with own_holder().open_session() as session:
        assert len(session.ledger.entries("kind = 'refuse'")) == 1, "once a request"
    (folder / "policy.toml").write_text(POLICY + 'mechanisms = ["none"]\n')
    run(OTHER)
    assert ran[-1] == (OTHER, {NODE_KEY: str(folder), BUNDLE_KEY: ""}), "nothing was pinned, so nothing was checked"


_TASK = a_task_runs_the_pinned_bundle_alone
planted(
    _TASK,
    task._answer,
    {
        "a bundle that is checked at the first start alone": (
            "digest = check_bundle(policy, files)",
            "digest = policy.bundle if (folder / BUNDLES).exists() else check_bundle(policy, files)",
        ),
        "a task without a pin": ("check_pinned(policy)", "pass"),
        "a node's configuration from its SuperNode": (
            "task.context.node_config = {NODE_KEY: str(folder), BUNDLE_KEY: policy.bundle}",
            "task.context.node_config |= {BUNDLE_KEY: policy.bundle}",
        ),
        "a simulated client by its SuperNode's word": (
            "BUNDLE_KEY: policy.bundle}",
            "BUNDLE_KEY: policy.bundle} | {k: v for k, v in task.context.node_config.items() if k != NODE_KEY}",
        ),
        "a bundle that counts as checked without a pin": ("BUNDLE_KEY: policy.bundle", "BUNDLE_KEY: digest"),
        "a refused bundle that is not noted": ("_note(site, task, error)", "pass"),
        "a policy of the task before": (
            "policy = load_policy(site.policy_file)",
            "policy = load_policy.__dict__.setdefault(str(folder), load_policy(site.policy_file))",
        ),
    },
)
planted(
    _TASK,
    bundle_import.keep_bundle,
    {"an unpacked bundle that was changed": ("if holds_exactly(folder, files):", "if folder.exists():")},
)


def a_bundle_is_unpacked_for_its_owner_alone(tmp_path: Path) -> None:
    folder = write_files(FILES, tmp_path / "bundles" / "x")
    assert folder.stat().st_mode & 0o077 == 0
    assert folder.parent.stat().st_mode & 0o077 == 0
    with pytest.raises(BundleError, match="exists already"):
        write_files(OTHER, folder)


planted(
    a_bundle_is_unpacked_for_its_owner_alone,
    app_bundle.write_files,
    {
        "bundles that others can change": ("mode=0o700", "mode=0o777"),
        "a bundle that is written over another": ("folder.exists() or folder.is_symlink()", "folder.is_symlink()"),
    },
)
