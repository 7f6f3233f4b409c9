"""Settings as the user gives them to a command."""

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from common.config.loading import RIVALS, Scalar, load_file
from common.data.sources.registry import names_a_place
from common.errors import ConfigError
from common.models.weight_files import RANDOM


def set_value(text: str) -> tuple[str, Scalar]:
    """Parse one `key=value` from the command line with TOML's types.

    >>> set_value("data.alpha=0.5")
    ('data.alpha', 0.5)
    >>> set_value("model.backbone=cnn")
    ('model.backbone', 'cnn')

    Raises:
        ConfigError: There is no `=`, or the value is a list or table.
    """
    key, equals, raw = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r}: write it as key=value, such as --set data.alpha=0.5")
    try:
        value = tomllib.loads(f"v = {raw.strip()}")["v"]
    except tomllib.TOMLDecodeError:
        value = raw.strip()
    if not isinstance(value, str | int | float | bool):
        raise ConfigError(f"--set {text!r}: a setting is one number, word or true/false")
    return key.strip(), value


def given_settings(
    pairs: Iterable[str], file: Path | None, options: Mapping[str, tuple[str, Scalar | None]]
) -> dict[str, Scalar]:
    """All settings the user gave, the command line over the file; a rival in the file gives way.

    Args:
        pairs: `key=value`, each a `--set`.
        file: Of `--config`; None if there is none.
        options: An option, such as `--seed` -> the setting it stands for, and its value or None.

    Raises:
        ConfigError: The file or a pair cannot be read, or an option and `--set` name one setting.
    """
    said = dict(set_value(pair) for pair in pairs)
    for option, (key, value) in options.items():
        if value is not None and key in said:
            raise ConfigError(f"{option} and --set {key} name one setting twice: leave one of them out")
    said |= {key: value for key, value in options.values() if value is not None}
    given = load_file(file) if file else {}
    for one, other in (RIVALS, RIVALS[::-1]):
        if one in said:
            given.pop(other, None)
    return given | said


_PLACES = ("data.path", "model.weights", "output-dir", "privacy.policy", "data.source")


def settings_for_run(
    pairs: list[str], file: Path | None, out: Path | None, seed: int | None, device: str | None
) -> dict[str, Scalar]:
    """All settings the user gave, the command line over the file, paths made absolute.

    Args:
        pairs: `key=value`, each a `--set`.
        file: Of `--config`.
        out: Of `--out`.
        seed: Of `--seed`.
        device: Of `--device`.

    Raises:
        ConfigError: The file, a pair or a path cannot be read, or an option and `--set` name one setting.
    """
    given = given_settings(
        pairs,
        file,
        {
            "--seed": ("seed", seed),
            "--device": ("system.device", device),
            "--out": ("output-dir", None if out is None else str(out)),
        },
    )
    for key in _PLACES:
        value = given.get(key)
        names_a_file = names_a_place(str(value)) if key == "data.source" else (key, value) != ("model.weights", RANDOM)
        if isinstance(value, str) and value and names_a_file:
            given[key] = absolute(key, value)
    return given


def settings_for_resume(folder: Path, device: str | None, *changes: object) -> dict[str, Scalar]:
    """The settings that a run was started with; only the device may be another one.

    Args:
        folder: The run's.
        device: Of `--device`.
        changes: Values of the options that a resumed run does not take.

    Raises:
        ConfigError: One of them was given, or the folder is no run's.
    """
    if any(value is not None and value != [] for value in changes):
        raise ConfigError("--resume goes on with a run's own settings: leave --set, --config, --out and --seed out")
    given = load_file(folder / "config.toml", "--resume")
    given |= {"resume": True, "output-dir": absolute("--resume", str(folder))}
    return given | ({} if device is None else {"system.device": device})


def absolute(key: str, value: str) -> str:
    """A path that means the same wherever it is read.

    Args:
        key: What the user gave it as.
        value: The path.

    Raises:
        ConfigError: It cannot be one.
    """
    try:
        return str(Path(value).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:
        raise ConfigError(f"{key}={value!r} is not a usable path ({error})") from None
