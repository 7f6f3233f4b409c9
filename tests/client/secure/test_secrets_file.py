"""The file of mask secrets: what it leaves on the disk, also after a kill in the middle of writing it."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from client.secure.secrets_file import SecretsFile, file_name
from common.errors import FederationError
from common.secagg.protocol.client import ClientState
from tests.support.secagg.federation import Federation, terms_of

SIZES = {"client-0000": 3}


def some_state() -> ClientState:
    return Federation.copied(terms_of(4, honest=2)).clients[0]


def secrets_of(home: Path, client: str = "client-0000") -> SecretsFile:
    return SecretsFile.of(home, "run", client, durable=True)


def killed_while_writing(file: SecretsFile, state: ClientState, patch: pytest.MonkeyPatch) -> Path:
    """Write a part and die before it is renamed, as kill -9 does; gives what is left."""
    with patch.context() as stopped:
        stopped.setattr(os, "replace", lambda *_: os._exit(9))
        if (child := os.fork()) == 0:
            file.save(state, SIZES)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = file.file.parent.glob(".*")
    assert left.stat().st_size == file.file.stat().st_size
    return left


def erased(file: SecretsFile, _: ClientState) -> None:
    file.erase()


def saved(file: SecretsFile, state: ClientState) -> None:
    file.save(state, SIZES)


@pytest.mark.parametrize("step", [saved, erased])
def test_what_a_killed_process_began_to_write_goes_with_the_next_step(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: Callable[[SecretsFile, ClientState], None],
) -> None:
    state, file, other = some_state(), secrets_of(tmp_path), secrets_of(tmp_path, "another client of this user")
    for each in (file, other):
        each.save(state, SIZES)
    left = killed_while_writing(file, state, monkeypatch)

    step(file, state)

    assert not left.exists()
    assert file.file.exists() == (step is saved)
    assert other.load()[1] == SIZES


def test_the_folder_of_a_run_goes_with_its_last_file(tmp_path: Path) -> None:
    state, file, other = some_state(), secrets_of(tmp_path), secrets_of(tmp_path, "another client of this user")
    for each in (file, other):
        each.save(state, SIZES)
    file.erase()
    assert other.file.name == file_name("another client of this user")
    assert other.file.is_file()
    other.erase()

    assert not file.file.parent.exists()
    with pytest.raises(FederationError, match="not here"):
        file.load()
