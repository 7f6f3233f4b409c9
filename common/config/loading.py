"""The reading, merging and checking of settings."""

import difflib
import math
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.config.listed_values import join_names
from common.config.project import open_values, tool_tables
from common.config.schema import RunConfig
from common.errors import ConfigError

Scalar = str | int | float | bool
# Value in the file of a 0.1.0 run -> the value that means the same today. Only a run's own file has the key `resume`.
_AS_BEFORE: dict[str, tuple[Scalar, Scalar]] = {"min-clients": ("", 0)}
# Setting that the file of an earlier run lacks -> the value that means the same today, where it is not the default.
_LACKED: dict[str, Scalar] = {"model.cnn-depth": 2, "training.step-rule": 1}
RIVALS = ("privacy.noise-multiplier", "privacy.target-epsilon")


def defaults() -> dict[str, Scalar]:
    """Return the defaults of all settings, from `[tool.flwr.app.config]`.

    Raises:
        ConfigError: The project's own pyproject.toml cannot be found.
    """
    return flatten(tool_tables()["flwr"]["app"]["config"])


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Turn nested TOML tables into flat dotted keys.

    >>> flatten({"seed": 1, "data": {"alpha": 0.5}})
    {'seed': 1, 'data.alpha': 0.5}
    """
    flat: dict[str, Scalar] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = value
    return flat


def nest(flat: Mapping[str, Scalar]) -> dict[str, Any]:
    """Turn flat dotted keys into nested tables.

    >>> nest({"seed": 1, "data.alpha": 0.5})
    {'seed': 1, 'data': {'alpha': 0.5}}
    """
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *tables, leaf = key.split(".")
        node = tree
        for table in tables:
            node = node.setdefault(table, {})
        node[leaf] = value
    return tree


def override(base: Mapping[str, Scalar], settings: Mapping[str, Scalar]) -> dict[str, Scalar]:
    """Return the defaults with a user's settings in their place.

    A noise multiplier empties the default target epsilon, because one determines the other.

    Raises:
        ConfigError: A key is unknown (the nearest known key is named), or both a noise multiplier and a target epsilon
            are set.
    """
    for key in settings:
        if key not in base:
            near = difflib.get_close_matches(key, base, n=1, cutoff=0.5)
            leaf = [known for known in base if known.rsplit(".", 1)[-1] == key]
            hint = f"; did you mean {(leaf or near)[0]!r}?" if leaf or near else ""
            raise ConfigError(f"unknown setting {key!r}{hint}\n  known: {', '.join(base)}")
    merged = dict(base) | dict(settings)
    noise, target = RIVALS
    if settings.get(noise, "") != "":
        if settings.get(target, "") != "":
            raise ConfigError(f"give {noise} or {target}, not both: one determines the other")
        merged[target] = ""
    return merged


def parse(flat: Mapping[str, Scalar]) -> RunConfig:
    """Check a complete set of settings and fill in empty ones.

    `flat` has every known key. `resolved` turns the frozen settings back into flat keys.

    Raises:
        ConfigError: A setting is wrong; the text names each one, its value and what is allowed.
    """
    try:
        config = RunConfig.model_validate(nest(flat))
    except ValidationError as error:
        raise ConfigError(_explain(error)) from None
    if config.private and (config.privacy.target_epsilon is None) == (config.privacy.noise_multiplier is None):
        raise ConfigError(
            f"privacy.mechanism={config.privacy.mechanism!r} needs exactly one of privacy.target-epsilon and "
            "privacy.noise-multiplier"
        )
    return _fill_open_values(config)


def _fill_open_values(config: RunConfig) -> RunConfig:
    chosen = open_values(config.open_kind)
    # A rate by rule is another one for each client, and stands in its plan.
    rate = config.training.learning_rate or (None if config.rate_by_rule else float(chosen["learning-rate"]))
    bound = tool_tables()["bract"]["balanced-head"] if config.counts_labels and config.needs_no_torch else chosen
    norm = config.privacy.max_grad_norm or float(bound["max-grad-norm"])
    clip = config.privacy.clipping_norm or (None if config.clip_by_rule else float(chosen["clipping-norm"]))
    privacy: dict[str, float | None] = {"max_grad_norm": norm, "clipping_norm": clip}
    if config.privacy.target_epsilon is None:
        # With a target this noise is calibrated when the plan is made.
        noise = tool_tables()["bract"]["counts-without-target"]
        privacy["counts_noise"] = config.privacy.counts_noise or noise["counts-noise"]
        privacy["closing_noise"] = config.privacy.closing_noise or noise["closing-noise"]
    return config.model_copy(
        update={
            "num_rounds": 1 if config.takes_statistics else config.num_rounds,
            "min_clients": _quorum(config.cohort_size, config.strategy.min_cohort[0])
            if config.min_clients is None
            else config.min_clients,
            "model": config.model.model_copy(update={"tuning": config.tuning}),
            "training": config.training.model_copy(update={"learning_rate": rate}),
            "privacy": config.privacy.model_copy(update=privacy),
        }
    )


def _quorum(cohort_size: int, strategy_cohort: int) -> int:
    """Return the default of `min-clients` for the planned cohort.

    A cohort of one client stays possible, because a written `client-fraction` can ask for it.
    """
    share = math.ceil(float(tool_tables()["bract"]["default-quorum"]) * cohort_size)
    return min(cohort_size, max(2, share, strategy_cohort))


def resolved(config: RunConfig) -> dict[str, Scalar]:
    """Return the settings as flat kebab-case keys, with empty strings for empty ones."""
    flat = flatten(config.model_dump(by_alias=True))
    return {key: "" if value is None else value for key, value in flat.items()}


def _explain(error: ValidationError) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        message = item["msg"].removeprefix("Value error, ")
        value = "" if item["type"] == "missing" or not key else f", got {item['input']!r}"
        lines.append(f"{key}: {message}{value}" if key else message)
    return "\n".join(lines)


def plain_values(flat: Mapping[str, Any]) -> dict[str, Scalar]:
    """Return settings with class names joined and paths as text.

    Raises:
        ConfigError: A value is a list of anything but class names, or nothing that a setting can be.
    """
    plain: dict[str, Scalar] = {}
    for key, value in flat.items():
        if key == "data.classes" and isinstance(value, list | tuple) and all(isinstance(name, str) for name in value):
            plain[key] = join_names(value)
        elif isinstance(value, os.PathLike):
            plain[key] = os.fspath(value)
        elif isinstance(value, Scalar):
            plain[key] = value
        else:
            raise ConfigError(f"{key} must be one number, word or true/false")
    return plain


def load_file(path: Path, option: str = "--config") -> dict[str, Scalar]:
    """Read settings from a TOML file, nested or dotted.

    Raises:
        ConfigError: The file is missing, is not TOML, or holds lists of anything but class names.
    """
    try:
        flat = flatten(tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"{option} {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{option} {path}: not a TOML file ({error})") from None
    try:
        flat = plain_values(flat)
    except ConfigError as error:
        raise ConfigError(f"{option} {path}: {error}") from None
    if "resume" in flat:
        flat = _LACKED | flat
        flat |= {key: now for key, (before, now) in _AS_BEFORE.items() if flat.get(key) == before}
    return flat
