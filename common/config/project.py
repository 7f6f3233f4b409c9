"""Reader of the defaults in Bract's own pyproject.toml."""

import tomllib
from functools import cache
from pathlib import Path
from typing import Any

from common.errors import ConfigError


@cache
def tool_tables() -> dict[str, Any]:
    """Return the `tool` tables of Bract's own pyproject.toml.

    Raises:
        ConfigError: The file cannot be found.
    """
    here = Path(__file__).resolve()
    # It is beside the rooms in a checkout or a bundle, and inside `common` in an installed wheel.
    for candidate in (here.parents[2] / "pyproject.toml", here.parents[1] / "pyproject.toml"):
        if candidate.is_file():
            tool: dict[str, Any] = tomllib.loads(candidate.read_text(encoding="utf-8")).get("tool", {})
            if "bract" in tool:
                return tool
    raise ConfigError(f"Bract's pyproject.toml is not beside {here.parents[1]}: reinstall bract")


def default_steps() -> dict[str, int]:
    """Return what an empty batch size and number of epochs become, from `[tool.bract.default-steps]`."""
    steps: dict[str, int] = tool_tables()["bract"]["default-steps"]
    return steps


def open_values(kind: str) -> dict[str, float]:
    """Return what empty settings become, from `[tool.bract.open-values]`.

    `kind` names the trained part and the optimizer, such as `head-sgd`.
    """
    values: dict[str, float] = tool_tables()["bract"]["open-values"][kind]
    return values
