"""`bract client leave`: what is derived from images goes, and the ledger stays."""

from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from typer.testing import CliRunner, Result

import bract
from client.secure.secrets_file import FOLDER, file_name
from client.training.personal_tensors import PersonalState
from common.errors import PolicyError
from common.ledger.audit.audit import audit_ledger
from common.ledger.data_holder import close_below, own_holder
from common.privacy.policy import ANYTHING
from common.system.paths import bract_home, cache_folder
from tests.support.clients.own_clients import OwnClient, write_images
from tests.support.ledger.builders import ASKED, PLAN, holding

SECRET = b"a kept reply of a private round"


@pytest.fixture(name="client")
def client_fixture(tmp_path: Path, own_home: Path) -> OwnClient:
    return OwnClient(tmp_path, write_images(tmp_path / "images", range(20)), name="a")


def leave(client: OwnClient, *more: str) -> Result:
    return CliRunner().invoke(bract.app, ["client", "leave", str(client.folder), *more])


def keep_reply(client: str) -> None:
    with own_holder().open_session() as session:
        agreed = session.register(f"run of {client}", client, PLAN, (holding(0, 6), holding(6, 8)), ANYTHING)
        session.reserve(agreed, 1, "train", ASKED, ANYTHING)
        session.commit(agreed, 1, "train", SECRET * 1000, keep=10)


def num_replies(client: str) -> int:
    with own_holder().open_session() as session:
        return int(session.ledger.query("SELECT count(*) FROM reply WHERE client = ?", (client,))[0][0])


def stored_bytes() -> bytes:
    return b"".join(file.read_bytes() for file in (bract_home() / "holder").glob("ledger.sqlite*"))


def personal_file(client: str) -> Path:
    return bract_home() / "holder" / "personal" / "agreed" / client / "round-000001.npz"


def test_leave_removes_nothing_that_a_link_leads_to_and_names_the_place(client: OwnClient, tmp_path: Path) -> None:
    disk, cache = tmp_path / "disk", bract_home() / "cache"
    disk.mkdir()
    (disk / "somebody's").write_bytes(b"kept")
    cache_folder("inputs")
    for name, target in (("linked", disk), ("dangling", disk / "nowhere")):
        (cache / name).symlink_to(target)

    done = leave(client, "--yes")
    (cache / "linked").unlink()
    again = leave(client, "--yes")

    assert done.exit_code == 2
    assert "leads to" in done.output
    assert (disk / "somebody's").read_bytes() == b"kept"
    assert again.exit_code == 0, again.output
    assert not list(cache.iterdir())


def test_leave_removes_what_is_derived_from_images_and_keeps_the_ledger(client: OwnClient) -> None:
    keep_reply("a")
    for name in ("a", "b"):
        PersonalState(personal_file(name).parent, durable=False).keep(1, {"w": np.ones(3)})
    for part in ("inputs", "scans", "partitions", "backbones"):
        (cache_folder(part) / "row.bin").write_bytes(b"from images")
    before = audit_ledger(bract_home() / "holder" / "ledger.sqlite")
    assert SECRET in stored_bytes()

    done = leave(client, "--yes")

    assert done.exit_code == 0, done.output
    assert "node.key, node.pub; personal tensors of 1 runs; 1 kept replies; " in done.stdout
    assert "bract server revoke a" in done.stdout
    assert SECRET not in stored_bytes()
    after = audit_ledger(bract_home() / "holder" / "ledger.sqlite")
    assert (after.remarks.doubts, after.entries) == ([], before.entries)
    assert not list(client.folder.glob("node.*"))
    assert {file.name for file in client.folder.iterdir()} >= {"client.toml", "policy.toml"}
    assert {file.name for file in (bract_home() / "cache").iterdir()} == {"backbones"}
    assert [personal_file(name).exists() for name in ("a", "b")] == [False, True]
    assert {file.name for file in (bract_home() / "holder").iterdir()} >= {"fingerprint.key", "signing.key"}


def test_replies_of_another_client_of_the_user_stay(client: OwnClient) -> None:
    keep_reply("a")
    keep_reply("b")

    assert leave(client, "--yes").exit_code == 0

    assert [num_replies(name) for name in ("a", "b")] == [0, 1]


def test_mask_secrets_go_also_those_that_a_killed_process_had_begun_to_write(client: OwnClient) -> None:
    sums = bract_home() / "holder" / FOLDER
    own, other = file_name("a"), file_name("b")
    for name in (f"run 1/{own}", f"run 1/.{own}.x1.part", f"run 2/.{own}.x2.part", f"run 2/{other}"):
        (sums / name).parent.mkdir(parents=True, exist_ok=True)
        (sums / name).write_bytes(SECRET)

    assert leave(client, "--yes").exit_code == 0

    assert [path.relative_to(sums).as_posix() for path in sorted(sums.rglob("*"))] == ["run 2", f"run 2/{other}"]


def test_a_running_client_does_not_leave(client: OwnClient) -> None:
    keep_reply("a")
    with FileLock(client.folder / "client.lock"):
        done = leave(client, "--yes")

    assert done.exit_code == 2
    assert "is running already: stop that process first" in done.output
    assert (num_replies("a"), (client.folder / "node.key").is_file()) == (1, True)


def test_nothing_is_removed_without_a_yes(client: OwnClient) -> None:
    done = CliRunner().invoke(bract.app, ["client", "leave", str(client.folder)], input="n\n")

    assert done.exit_code == 1
    assert (client.folder / "node.key").is_file()


def test_a_client_that_left_twice_comes_back_with_its_ledger(client: OwnClient, tmp_path: Path) -> None:
    keep_reply("a")
    assert [leave(client, "--yes").exit_code for _ in range(2)] == [0, 0]

    OwnClient(tmp_path, tmp_path / "images", name="a")

    with own_holder().open_session() as session:
        agreed = session.registration("run of a", "a")
        assert agreed is not None
        with pytest.raises(PolicyError, match="whose reply is not kept any more"):
            session.reserve(agreed, 1, "train", ASKED, ANYTHING)


def test_a_client_without_a_ledger_leaves_and_gets_none(client: OwnClient) -> None:
    close_below(bract_home())
    for file in (bract_home() / "holder").iterdir():
        file.unlink()

    assert leave(client, "--yes").exit_code == 0
    assert not list((bract_home() / "holder").iterdir())
