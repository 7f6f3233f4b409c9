"""The reference of all settings.

Drives `common.config.settings_table`.
"""

from pathlib import Path

import pytest

from common.config.loading import defaults
from common.config.settings_table import settings_page

_PAGE = Path(__file__).parents[2] / "docs" / "settings.md"
_ROWS = {row.split("|")[1].strip(" `"): row for row in settings_page().splitlines() if row.startswith("| `")}


def test_settings_page_in_docs_is_current() -> None:
    assert _PAGE.read_text(encoding="utf-8") == settings_page(), (
        "run `python -m common.config.settings_table > docs/settings.md`"
    )


def test_settings_page_has_every_key_once() -> None:
    rows = [row.split("|")[1].strip(" `") for row in settings_page().splitlines() if row.startswith("| `")]

    assert rows == list(defaults())


@pytest.mark.parametrize("key", defaults())
def test_settings_page_describes_each_setting(key: str) -> None:
    *_, meaning, end = _ROWS[key].split(" |")

    assert meaning.strip().endswith(".")
    assert not end
    if defaults()[key] == "":
        assert "Empty: " in meaning or key.startswith("strategy.")
