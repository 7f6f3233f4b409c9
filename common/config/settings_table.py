"""The reference of all settings in docs/settings.md.

Made by `python -m common.config.settings_table > docs/settings.md`.
"""

import sys
from collections.abc import Mapping
from typing import Any

from common.config.loading import Scalar, defaults
from common.config.schema import RunConfig

_INTRO = """# Settings

Set a value with `--set KEY=VALUE` (repeatable) or in a file with `--config FILE.toml`; `bract simulate --dry-run`
prints all values of a run. This page is made from the settings' declarations in `common/config`, and the defaults
from `pyproject.toml`: do not edit it, run `python -m common.config.settings_table > docs/settings.md`."""
_HEADER = "| key | default | allowed | meaning |\n|---|---|---|---|"
_TYPES = {"boolean": "`true`, `false`", "integer": "whole number", "number": "number", "string": "text"}
_BOUNDS = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}


def settings_page() -> str:
    """Return docs/settings.md, with one table for each section of the settings."""
    schema, base = RunConfig.model_json_schema(), defaults()
    parts = [_INTRO, *_section("", schema, base)]
    for name, setting in schema["properties"].items():
        if "$ref" in setting:
            parts += _section(name, schema["$defs"][setting["$ref"].rsplit("/", 1)[-1]], base)
    return "\n\n".join(parts) + "\n"


def _section(name: str, schema: Mapping[str, Any], base: Mapping[str, Scalar]) -> tuple[str, str, str]:
    title, summary = (name or "run").capitalize(), " ".join(schema["description"].split())
    return f"## {title}", summary, _table(f"{name}." if name else "", schema["properties"], base)


def _table(prefix: str, settings: Mapping[str, Mapping[str, Any]], base: Mapping[str, Scalar]) -> str:
    rows = (
        f"| `{prefix}{key}` | {_value(base[prefix + key])} | {_allowed(setting)} | {setting['description']} |"
        for key, setting in settings.items()
        if "$ref" not in setting
    )
    return "\n".join([_HEADER, *rows])


def _value(value: Scalar) -> str:
    """Return a value as it is written in TOML.

    >>> _value(1e-05), _value(True), _value("")
    ('`1e-05`', '`true`', 'empty')
    """
    return "empty" if value == "" else f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _allowed(setting: Mapping[str, Any]) -> str:
    """Return the values that a setting may have.

    >>> _allowed({"anyOf": [{"type": "integer", "minimum": 4, "maximum": 1024}, {"type": "null"}]})
    'whole number from 4 to 1024, or empty'
    """
    if "enum" in setting:
        return ", ".join(map(_value, setting["enum"]))
    if "anyOf" in setting:
        return f"{_allowed(setting['anyOf'][0])}, or empty"
    if "pattern" in setting:
        return "64 hex digits, or empty"
    bounds = (f" {word} {setting[key]}" for key, word in _BOUNDS.items() if key in setting)
    return _TYPES[setting["type"]] + "".join(bounds)


if __name__ == "__main__":
    sys.stdout.write(settings_page())
