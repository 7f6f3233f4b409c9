"""The command that installs an extra is one that works for the Bract that is running."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.system import extras
from common.system.extras import install_hint, is_installed


@pytest.mark.parametrize(
    ("origin", "cwd_is_place", "hint"),
    [
        ({"url": "file:///PLACE", "dir_info": {"editable": True}}, True, 'pip install -e ".[lora]"'),
        ({"url": "file:///PLACE", "dir_info": {"editable": True}}, False, 'pip install -e "PLACE[lora]"'),
        ({"url": "file:///PLACE", "dir_info": {}}, False, 'pip install "PLACE[lora]"'),
        ({"url": "file:///PLACE", "dir_info": {}}, True, 'pip install ".[lora]"'),
        # An index, a wheel, a repository, nothing at all.
        ({}, False, "pip install 'bract[lora]'"),
        ({"url": "file:///wheels/bract.whl", "archive_info": {}}, False, "pip install 'bract[lora]'"),
        ({"url": "https://example.org/bract", "vcs_info": {}}, False, "pip install 'bract[lora]'"),
        (None, False, "pip install 'bract[lora]'"),
    ],
)
def test_install_hint_follows_from_where_bract_came_from(
    origin: dict[str, object] | None,
    cwd_is_place: bool,
    hint: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    place = tmp_path / "a checkout"
    place.mkdir()
    text = None if origin is None else json.dumps(origin).replace("/PLACE", str(place).replace(" ", "%20"))
    monkeypatch.setattr(extras, "distribution", lambda _: SimpleNamespace(read_text=lambda _: text))
    monkeypatch.chdir(place if cwd_is_place else tmp_path)

    assert install_hint("lora") == hint.replace("PLACE", str(place))


def test_is_installed_asks_without_importing() -> None:
    assert is_installed("numpy")
    assert not is_installed("no_such_package_of_bract")
