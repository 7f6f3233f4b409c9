"""Figures, settings and pictures of a run that a tracker may get.

Under a privacy mechanism these are values that a real federation releases; what only a simulation can know stays in the
run directory. Names of clients and paths of this machine never leave it.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from common.commands.run_settings import PATHS
from common.config.loading import Scalar
from common.data.sources.base_source import OWN_IMAGES
from common.data.sources.registry import names_a_place
from common.metrics import METRICS
from common.models.weight_files import RANDOM

_ALWAYS = ("clients", "seconds", "bytes_up", "bytes_down", "epsilon_so_far", "epsilon_of_plan")
_OF_THE_RUN = ("epsilon_max", "epsilon_max_rdp", "delta", "rounds", "clients", "rounds_skipped")
# Released figures, and those of the server's own public images.
_GROUPS = ("private", "public_test")
_PICTURES = {"curves": "curves.png", "confusion": "confusion.png"}


def round_figures(line: Mapping[str, Any], *, private: bool) -> dict[str, float]:
    """Return the figures of a line of `rounds.jsonl`, by name.

    >>> line = {"clients": 3, "failures": {"a": "lost"}, "simulation_only": True, "accuracy": 0.9}
    >>> round_figures(line, private=True), round_figures(line, private=False)
    ({'clients': 3.0, 'failures': 1.0}, {'clients': 3.0, 'failures': 1.0, 'accuracy': 0.9})
    """
    shown = {key: line.get(key) for key in _ALWAYS} | {"failures": len(line["failures"])}
    groups = (group for name in _GROUPS for group in _under(name, line.get(name)).items())
    return dict(_numbers(shown | _utility(line, private=private) | dict(groups)))


def final_figures(summary: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of a run's `summary.json`, by name."""
    figures = {key: summary.get(key) for key in _OF_THE_RUN} | _utility(summary, private=summary["private"])
    private = _under("private", summary.get("private_metrics"))
    public = _under("public_test", summary.get("public_test"))
    return dict(_numbers(_under("final", figures | private | public)))


def _utility(values: Mapping[str, Any], *, private: bool) -> dict[str, Any]:
    """Return exact figures, none where only a simulation could know them."""
    if private and values.get("simulation_only"):
        return {}
    return {key: values.get(key) for key in ("evaluated_model", *(metric.key for metric in METRICS))}


def _under(group: str, values: Mapping[str, Any] | None) -> dict[str, Any]:
    return {f"{group}/{key}": value for key, value in (values or {}).items()}


def _numbers(values: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in values.items():
        if isinstance(value, (int, float)) and math.isfinite(value):
            yield key, float(value)


def shown_settings(settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the settings of a run without local paths."""
    return {key: value for key, value in settings.items() if not _is_place(key, str(value))}


def _is_place(key: str, value: str) -> bool:
    """Return whether a setting names a place on this machine."""
    if key == "data.source":
        name = value.removeprefix("hf:")
        return names_a_place(value) or "\\" in name or (name != value and name.startswith(("/", ".", "~")))
    if key == "model.backbone":
        return bool({"/", "\\"} & set(value)) and not value.startswith(("timm:", "torchvision:", "clip:"))
    return key in PATHS and value not in ("", RANDOM)


def pictures(folder: Path, summary: Mapping[str, Any]) -> dict[str, Path]:
    """Return the pictures of a run by name.

    There are none of a private simulation, which show exact figures.
    """
    if summary["private"] and summary["config"]["data.source"] != OWN_IMAGES:
        return {}
    return {name: folder / file for name, file in _PICTURES.items() if (folder / file).is_file()}


def without_password(address: str) -> str:
    """Return an address without the name and password of its user.

    >>> without_password("https://anna:secret@tracker.example:5000/path")
    'https://tracker.example:5000/path'
    >>> without_password("sqlite:////home/anna/mlflow.db")
    'sqlite:////home/anna/mlflow.db'
    """
    before, marked, after = address.partition("://")
    host, slash, path = after.partition("/")
    return f"{before}{marked}{host.rpartition('@')[2]}{slash}{path}"
