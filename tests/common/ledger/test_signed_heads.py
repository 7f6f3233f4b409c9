"""Keys are made once and kept to oneself; a server believes no older head, no other ledger and no forgery.

Drives `common.ledger.holder_keys`.
"""

import json
import os
import stat
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import LedgerError
from common.ledger.database import Head
from common.ledger.holder_keys import HolderKeys, is_signed, ledger_id_of
from common.ledger.signed_heads import HeadKeeper, SignedHead, read_heads, sign_head
from tests.support.ledger.builders import KEYS

OTHER = HolderKeys.simulated(0, "b")


def head(seq: int, digit: str = "a", keys: HolderKeys = KEYS) -> SignedHead:
    return sign_head(keys, Head(seq, digit * 64))


def test_keys_of_a_folder_are_made_once_and_closed_to_others(tmp_path: Path) -> None:
    made, found = HolderKeys.of_folder(tmp_path), HolderKeys.of_folder(tmp_path)

    assert found == made
    assert made.fingerprint != made.signing
    assert sorted(file.name for file in tmp_path.iterdir()) == ["fingerprint.key", "signing.key"]
    assert {stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()} == {0o600}


def test_keys_of_two_folders_have_nothing_in_common(tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    one, other = (HolderKeys.of_folder(tmp_path / name) for name in "ab")

    assert one.ledger_id != other.ledger_id
    assert one.name_of(b"x", "file") != other.name_of(b"x", "file")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666, 0o601])
@pytest.mark.parametrize("name", ["fingerprint.key", "signing.key"])
def test_keys_that_others_can_read_are_refused(tmp_path: Path, name: str, mode: int) -> None:
    HolderKeys.of_folder(tmp_path)
    (tmp_path / name).chmod(mode)

    with pytest.raises(LedgerError, match=f"{name} can be read by others: chmod 600"):
        HolderKeys.of_folder(tmp_path)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_keys_that_are_damaged_are_refused_and_left_alone(tmp_path: Path, size: int) -> None:
    HolderKeys.of_folder(tmp_path)
    (tmp_path / "signing.key").write_bytes(b"x" * size)

    with pytest.raises(LedgerError, match="is damaged"):
        HolderKeys.of_folder(tmp_path)

    assert (tmp_path / "signing.key").read_bytes() == b"x" * size


def test_simulated_keys_follow_from_seed_and_name() -> None:
    names = [(0, "a"), (0, "b"), (1, "a"), (1, "0\x1fa")]
    keys = [HolderKeys.simulated(seed, name) for seed, name in names]

    assert [HolderKeys.simulated(seed, name) for seed, name in names] == keys
    assert len({key.ledger_id for key in keys}) == len(names)
    assert len({secret for key in keys for secret in (key.fingerprint, key.signing)}) == 2 * len(names)


def test_name_of_tells_files_from_pixels() -> None:
    assert KEYS.name_of(b"x", "file") != KEYS.name_of(b"x", "pixels")
    assert len(KEYS.name_of(b"x", "file")) == 32


def test_signature_holds_for_its_message_and_its_key_alone() -> None:
    signature = KEYS.sign(b"message")

    assert is_signed(KEYS.public, b"message", signature)
    assert not is_signed(KEYS.public, b"other", signature)
    assert not is_signed(OTHER.public, b"message", signature)


@pytest.mark.parametrize("public", ["", "zz", "00" * 31, "ä" * 64])
def test_is_signed_is_false_where_the_key_is_malformed(public: str) -> None:
    assert not is_signed(public, b"message", KEYS.sign(b"message"))


@pytest.mark.parametrize("signature", ["", "zz", "00" * 64, "00" * 63])
def test_is_signed_is_false_where_the_signature_is_malformed(signature: str) -> None:
    assert not is_signed(KEYS.public, b"message", signature)


def test_signed_head_of_its_own_key_is_good() -> None:
    found = head(7)

    found.check()

    assert (found.seq, found.hash, found.ledger) == (7, "a" * 64, ledger_id_of(KEYS.public))


@pytest.mark.parametrize(
    "change",
    [
        {"seq": 8},
        {"hash": "b" * 64},
        {"ledger": OTHER.ledger_id},
        {"public_key": OTHER.public},
        {"public_key": OTHER.public, "ledger": OTHER.ledger_id},
        {"public_key": "no hex"},
        {"signature": OTHER.sign(head(7).message)},
        {"signature": "00" * 64},
        {"signature": ""},
    ],
)
def test_signed_head_that_was_changed_is_refused(change: dict[str, object], tmp_path: Path) -> None:
    forged = replace(head(7), **change)  # type: ignore[arg-type]
    keeper = HeadKeeper([tmp_path / "heads.jsonl"])

    with pytest.raises(LedgerError, match="not signed by the key"):
        forged.check()
    assert set(keeper.accept([("a", forged)])) == {"a"}
    assert keeper.latest(["a"]) == {}
    assert not (tmp_path / "heads.jsonl").exists()


@pytest.mark.parametrize("again", [False, True])
def test_head_keeper_refuses_a_regress_also_after_a_restart(tmp_path: Path, again: bool) -> None:
    files = [tmp_path / "heads.jsonl"]
    keeper = HeadKeeper(files)
    assert keeper.accept([("a", head(12))]) == {}
    keeper = HeadKeeper(files) if again else keeper

    for older in (head(11), head(1), head(12, "b")):
        assert "older copy" in keeper.accept([("a", older)])["a"]

    assert keeper.accept([("a", head(12))]) == {}  # nothing was written since: no regress
    assert keeper.accept([("a", head(13, "b"))]) == {}
    assert keeper.latest(["a", "stranger"]) == {"a": head(13, "b")}


@pytest.mark.parametrize("again", [False, True])
def test_head_keeper_refuses_a_known_client_with_another_ledger(tmp_path: Path, again: bool) -> None:
    files = [tmp_path / "heads.jsonl"]
    keeper = HeadKeeper(files)
    keeper.accept([("a", head(12))])
    keeper = HeadKeeper(files) if again else keeper

    refused = keeper.accept([("a", head(99, keys=OTHER)), ("b", head(3, keys=OTHER))])

    assert list(refused) == ["a"]
    assert "another ledger than before" in refused["a"]
    assert keeper.latest("ab") == {"a": head(12), "b": head(3, keys=OTHER)}


def test_head_keeper_refuses_another_client_with_an_older_copy_of_a_known_ledger(tmp_path: Path) -> None:
    keeper = HeadKeeper([tmp_path / "heads.jsonl"])
    keeper.accept([("a", head(12))])

    assert "older copy" in keeper.accept([("new", head(11))])["new"]
    assert keeper.latest(["new"]) == {}


def test_head_keeper_writes_every_file_and_believes_each_alone(tmp_path: Path) -> None:
    files = [tmp_path / "run.jsonl", tmp_path / "home.jsonl"]
    HeadKeeper(files).accept([("a", head(12)), ("b", head(5, keys=OTHER))])

    assert files[0].read_bytes() == files[1].read_bytes()
    assert read_heads(files[0]) == [("a", head(12)), ("b", head(5, keys=OTHER))]
    assert all(stat.S_IMODE(file.stat().st_mode) & 0o077 == 0 for file in files)
    for left in (0, 1):
        keeper = HeadKeeper([files[left], tmp_path / "missing.jsonl"])
        assert set(keeper.accept([("a", head(11))])) == {"a"}


def test_head_keeper_believes_the_latest_of_two_files_in_either_order(tmp_path: Path) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    HeadKeeper([old]).accept([("a", head(3))])
    HeadKeeper([new]).accept([("a", head(9))])

    assert HeadKeeper([old, new]).latest("a") == HeadKeeper([new, old]).latest("a") == {"a": head(9)}


def test_head_keeper_goes_on_after_half_a_line(tmp_path: Path) -> None:
    file = tmp_path / "heads.jsonl"
    HeadKeeper([file]).accept([("a", head(12)), ("a", head(13))])
    file.write_bytes(file.read_bytes()[:-40])  # a crash while the last line was written

    assert HeadKeeper([file]).accept([("a", head(14)), ("b", head(1, keys=OTHER))]) == {}

    assert [found.seq for _, found in read_heads(file)] == [12, 14, 1]
    assert HeadKeeper([file]).latest("ab") == {"a": head(14), "b": head(1, keys=OTHER)}


def test_head_keeper_goes_on_after_a_first_line_that_is_half(tmp_path: Path) -> None:
    file = tmp_path / "heads.jsonl"
    file.write_text('{"client": "a", "led')

    HeadKeeper([file]).accept([("a", head(2))])

    assert read_heads(file) == [("a", head(2))]


@pytest.mark.parametrize("content", ["no json\n", "[1]\n", '{"client": "a"}\n', "3\n", '{"client": "a", "x": 1}\n'])
def test_head_keeper_refuses_a_damaged_file(tmp_path: Path, content: str) -> None:
    file = tmp_path / "heads.jsonl"
    file.write_text(content)

    with pytest.raises(LedgerError, match="cannot be read as heads"):
        HeadKeeper([file])


def test_heads_of_a_file_hold_nothing_but_the_head(tmp_path: Path) -> None:
    file = tmp_path / "heads.jsonl"
    HeadKeeper([file]).accept([("a", head(12))])

    assert set(json.loads(file.read_text())) == {"client", "ledger", "seq", "hash", "public_key", "signature"}


@pytest.mark.parametrize("durable", [False, True])
def test_head_keeper_syncs_each_file_and_the_name_of_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced: list[bytes | None] = []

    def note(handle: int) -> None:
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        synced.append(None if folder else (tmp_path / "heads.jsonl").read_bytes())

    monkeypatch.setattr(os, "fsync", note)
    keeper = HeadKeeper([tmp_path / "heads.jsonl"], durable=durable)
    keeper.accept([("a", head(12))])
    first = (tmp_path / "heads.jsonl").read_bytes()
    keeper.accept([("a", head(13))])

    # What a server has seen must last, and it must be in the file by the time it is synced.
    assert synced == ([first, None, (tmp_path / "heads.jsonl").read_bytes()] if durable else [])
